import pytest

from train.config.record import RECORD, dated_stem, find_run


@pytest.mark.parametrize(
    ("dataset", "stem"),
    [
        ("AI-Lab-Makerere/beans", "beans"),
        ("builtin:leaves", "leaves"),
        ("s3://bucket/a:b?c*", "a_b_c_"),
        ("hf://datasets/x@~parquet...", "x@~parquet"),
        (r"C:\images\beans" + "\\", "beans"),
        ("D:", "D_"),
        ("..", "run"),
        ("/", "run"),
    ],
)
def test_the_folder_of_a_run_has_a_name_that_every_system_allows(dataset, stem):
    assert dated_stem(dataset) == stem


def test_a_run_is_found_under_the_name_that_an_earlier_version_gave_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "a_b"):
        folder = tmp_path / "runs" / f"{name}-20260101-000000"
        folder.mkdir(parents=True)
        (folder / RECORD).touch()
        assert find_run(None, "auto", "x/a:b").parent.name == folder.name
        (folder / RECORD).unlink()
