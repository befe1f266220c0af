"""`plainloop report` on real runs."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from data.reading import leaves
from tests.running import run_here
from tests.train.commands.test_inspect import make
from train.commands.plainloop import main as plainloop
from train.config.cli import parse
from train.config.schema import OF_THE_START

SHORT = ("--preset", "debug", "--max_steps", 4, "--eval_steps", 2, "--save_steps", 2)


def report(*arguments):
    return plainloop(["report", *map(str, arguments)])


def pictures(path):
    return path.read_text().count("data:image/jpeg")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes; of the third, validation has no image; and one that is broken."""
    root = tmp_path_factory.mktemp("data") / "pets"
    counts = {"train": {"ant": 5, "cat": 5, "dog": 5}, "validation": {"cat": 5, "dog": 5}}
    make(root, counts)
    for split, classes in counts.items():  # a table of labels, as validation may then lack a class
        rows = [f"{name}/{number}.png,{name}" for name, count in classes.items() for number in range(count)]
        (root / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows, ""]))
    (root / "validation/cat/1.png").write_bytes(b"words")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pets"
    cache = ("--cache_dir", out.parent / "cache")
    assert run_here(*SHORT, *cache, "--dataset", data, "--skip_bad_images", "--output_dir", out) == 0
    return out


def test_a_run_ends_with_a_page_and_the_command_makes_the_same(trained, tmp_path, capsys):
    before = (trained / "report.html").read_text()
    assert pictures(trained / "report.html") == 9
    assert "Warning:</b>" in before and "left out:" in before
    (trained / "report.html").unlink()
    assert report(trained) == 0
    assert f"written: {trained / 'report.html'}" in capsys.readouterr().out
    assert (trained / "report.html").read_text() == before


def test_data_that_are_gone_or_others_cost_the_pictures_and_no_page(trained, data, tmp_path, capsys):
    hidden = data.with_name("hidden")
    data.rename(hidden)
    try:
        assert report(trained, "--out", tmp_path / "page.html") == 0
        said = capsys.readouterr().out
        assert (
            "no pictures: its validation images cannot be read again" in said and pictures(tmp_path / "page.html") == 0
        )
        assert "No pictures: its validation images" in (tmp_path / "page.html").read_text()
        assert report(trained) == 0  # a page with pictures stays
        assert "is left as it is" in capsys.readouterr().out and pictures(trained / "report.html") == 9
        shutil.copytree(hidden, data)
        Image.new("RGB", (9, 9)).save(data / "validation/cat/0.png")
        assert report(trained, "--out", tmp_path / "other.html") == 0
        assert "not those that it was judged on" in capsys.readouterr().out and pictures(tmp_path / "other.html") == 0
    finally:
        shutil.rmtree(data, ignore_errors=True)
        hidden.rename(data)


def test_the_command_to_reproduce_gives_the_same_flags(trained):
    (shown,) = re.findall(r"<pre[^>]*>(.*?)</pre>", (trained / "report.html").read_text(), re.DOTALL)
    words = shlex.split(shown.replace("&#39;", "'").replace("&#34;", '"').replace("\\\n", " "))
    assert words[:2] == ["plainloop", "train"]
    recorded = json.loads((trained / "run.json").read_text())["config"]
    again = parse(words[2:]).flat()
    assert {n: v for n, v in again.items() if n not in OF_THE_START} == {
        n: v for n, v in recorded.items() if n not in OF_THE_START
    }


def test_several_runs_stand_side_by_side(trained, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--dataset", data, "--skip_bad_images", "--learning_rate", 0.123, "--cache_dir", trained.parent / "cache")
    assert run_here(*SHORT, *flags, "--output_dir", "other", "--stop_after", 2) == 0
    assert not (tmp_path / "other/report.html").exists()
    assert report("other") == 0 and pictures(tmp_path / "other/report.html") == 0  # what there is so far
    assert "This run is not finished, update 2 of 4." in (tmp_path / "other/report.html").read_text()
    assert report(trained, "other") == 0
    page = (tmp_path / "report.html").read_text()
    assert (
        "<h1>2 runs</h1>" in page and "not finished, update 2 of 4" in page and pictures(tmp_path / "report.html") == 9
    )
    assert ">learning_rate</th>" in page and "<td>0.123</td>" in page and "different validation images" not in page
    assert run_here("--output_dir", "other", "--resume_from_checkpoint", "auto") == 0
    assert pictures(tmp_path / "other/report.html") == 9
    (tmp_path / "report.html").write_text("mine")
    assert report(trained, "other") == 2 and (tmp_path / "report.html").read_text() == "mine"
    assert "is not a report of plainloop" in capsys.readouterr().err


def test_a_page_that_cannot_be_made_fails_no_run(data, tmp_path, capsys):
    out, flags = tmp_path / "run", ("--dataset", data, "--skip_bad_images", "--cache_dir", tmp_path / "cache")
    assert run_here(*SHORT, *flags, "--output_dir", out, "--stop_after", 2) == 0
    (out / "report.html").mkdir()
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: ") and "report.html is not written" in line]
    assert f"to try again: plainloop report {out}" in warning and (out / "predictions.csv").is_file()


VANISHING = """
import pathlib, torch
class Vanishing(torch.optim.SGD):
    def __init__(self, groups, lr):
        super().__init__(groups, lr=lr)
    def step(self, closure=None):
        if pathlib.Path({out!r}).exists():  # every image is in the cache by now
            pathlib.Path({path!r}).unlink(missing_ok=True)
        return super().step(closure)
"""


def test_images_that_vanish_while_training_cost_the_pictures_and_not_the_run(data, tmp_path, monkeypatch, capsys):
    own = shutil.copytree(data, tmp_path / "own")
    out, path = tmp_path / "run", own / "validation/cat/0.png"
    (tmp_path / "vanishing_part.py").write_text(VANISHING.format(out=str(out), path=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--dataset", own, "--skip_bad_images", "--cache_dir", tmp_path / "cache", "--image_cache", "memory")
    assert run_here(*SHORT, *flags, "--optim", "vanishing_part:Vanishing", "--output_dir", out) == 0
    assert "warning: trackers get no predictions" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "No pictures: a validation image cannot be read any more" in page and (out / "predictions.csv").is_file()


def test_a_stream_has_a_page_without_pictures(tmp_path, capsys):
    for split, size in (("train", 16), ("validation", 6)):
        leaves.table(split, 1, size).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    flags = ("--preset", "trainer", "--model", "builtin:tiny", "--device", "cpu", *SHORT[2:], "--streaming")
    assert run_here(*flags, "--dataset", tmp_path, "--output_dir", tmp_path / "run") == 0
    assert "No pictures: the images of this run are not stored" in (tmp_path / "run/report.html").read_text()
    assert report(tmp_path / "run") == 0 and "no pictures: the images of this run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the folders of runs"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "holds no run"),
        (["x", "--out", "no/such/folder.html"], "--out no/such/folder.html: there is no folder"),
        (["--oout", "x"], "--oout"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_help_answers_without_torch():
    code = "import sys; from train.commands.report import main\ntry: main(['--help'])"
    code += "\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "RUN... [--out PAGE.html]" in done.stdout and not done.stderr
