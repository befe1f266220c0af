import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.inspect.test_duplicates import picture
from tests.running import run_here
from train.commands.inspect import main
from train.commands.plainloop import main as plainloop


def make(root, counts):
    """`{"train": {"cat": 3}}` -> train/cat/0.png ..., each another picture."""
    number = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(number).save(root / split / name / f"{i}.png")
                number += 1
    return root


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "pets", {"train": {"cat": 6, "dog": 6}, "validation": {"cat": 5, "dog": 3}})


def inspect(folder, out, *flags):
    code = main(["--dataset", str(folder), "--output_dir", str(out), "--cache_dir", str(out.parent / "cache"), *flags])
    return code, json.loads((out / "inspect.json").read_text()) if code == 0 else None


def names(groups):
    return [["/".join(image["name"].split("/")[-3:]) for image in group["images"]] for group in groups]


def test_clean_data_gets_counts_and_one_warning_about_a_small_class(folder, tmp_path, capsys):
    code, found = inspect(folder, tmp_path / "out")
    assert code == 0 and found["images"] == {"train": {"cat": 6, "dog": 6}, "validation": {"cat": 5, "dog": 3}}
    assert found["exact_duplicates"] == found["near_duplicates"] == found["undecodable"] == []
    (warning,) = found["warnings"]
    assert "fewer than 5 validation images" in warning and "dog (3)" in warning and "cat" not in warning
    assert warning in capsys.readouterr().out
    assert found["files"]["formats"] == {"PNG": 20} and found["files"]["sizes"]["median"] == [240, 200]


def test_leaks_contradictions_copies_and_broken_files_are_named(folder, tmp_path, capsys):
    (folder / "validation/cat/leak.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/dog/other.png").write_bytes((folder / "train/cat/1.png").read_bytes())
    ImageOps.mirror(picture(2)).save(folder / "validation/cat/mirror.jpg", quality=80)
    (folder / "train/dog/words.jpg").write_bytes(b"words")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(99).save(folder / "train/dog/turned.jpg", exif=exif)
    code, found = inspect(folder, tmp_path / "out")
    assert code == 0
    assert sorted(names(found["exact_duplicates"])) == [
        ["train/cat/0.png", "validation/cat/leak.png"],
        ["train/cat/1.png", "train/dog/other.png"],
    ]
    (near,) = found["near_duplicates"]
    assert names([near]) == [["train/cat/2.png", "validation/cat/mirror.jpg"]] and near["across_splits"]
    assert [group["contradictory_labels"] for group in found["exact_duplicates"]].count(True) == 1
    (bad,) = found["undecodable"]
    assert bad["name"].endswith("words.jpg") and "cannot be decoded" in bad["problem"]
    assert found["files"]["orientations"] == {"1": 23, "6": 1}
    printed = capsys.readouterr().out
    for text in ("1 image is in both", "1 image has more than one label", "1 group of near duplicates is in both"):
        assert f"warning: {text}" in printed
    assert "warning: 1 of 25 images cannot be decoded" in printed
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6 + 2 * 6 and "http" not in page.split("base64")[0]


def test_names_of_others_steer_neither_terminal_nor_page(tmp_path, capsys):
    evil = "<script>alert(1)<!-- \x1b[31m\u202e"
    root = make(tmp_path / "pets", {"train": {"cat": 6, evil: 6}, "validation": {"cat": 5, evil: 5}})
    name = "a\x1b]0;x\x07<img src=x onerror=alert(1)>'\".png"
    (root / "validation/cat" / name).write_bytes((root / "train/cat/0.png").read_bytes())
    assert inspect(root, tmp_path / "out")[0] == 0
    out, page = capsys.readouterr().out, (tmp_path / "out" / "inspect.html").read_text()
    for text in (out, page):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "<script" not in page and "<img src" not in page and "onerror" in page
    lines = [line for line in out.splitlines() if "onerror" in line]
    assert lines and all(line.startswith(("warning", "  ")) for line in lines)


def test_only_an_earlier_inspection_is_replaced(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert [inspect(folder, out)[0] for _ in range(2)] == [0, 0]
    (out / "notes.txt").write_text("mine")
    before = (out / "inspect.json").read_bytes()
    assert inspect(folder, out)[0] == 2 and (out / "inspect.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "inspect.json").write_text("{}")
    assert inspect(folder, other)[0] == 2 and (other / "inspect.json").read_text() == "{}"
    assert inspect(folder, folder)[0] == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 3 and errors.count("something else") == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--dataset: name one"),
        (["--learning_rate", "1"], "--learning_rate: no such flag"),
        (["--dataset", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--dataset", "d", "--train_val_split", "2"], "--train_val_split"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert plainloop(["inspect", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("inspect*"))


def test_a_trained_model_doubts_a_wrong_label_and_so_do_heads_on_the_features_of_a_stranger(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pets"
    for split, count in (("train", 24), ("validation", 6)):
        for label, (name, grey) in enumerate((("dark", 30), ("light", 220))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([label, count, i]).integers(-25, 25, (32, 32, 3))
                Image.fromarray((grey + noise).clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    common = ("--dataset", root, "--cache_dir", tmp_path / "cache")
    flags = ("--preset", "debug", "--max_train_samples", 48, "--learning_rate", 3e-3, "--max_steps", 24)
    assert run_here(*common, *flags, "--output_dir", "run") == 0
    (root / "train/light/0.png").rename(root / "validation/dark/wrong.png")
    code, found = inspect(root, tmp_path / "out", "--model", "run", "--device", "cpu")
    assert code == 0
    (doubt,) = found["suspicious_labels"]
    assert doubt["name"].endswith("wrong.png") and (doubt["class"], doubt["predicted"]) == ("dark", "light")
    assert doubt["probability"] >= 0.8 and "weak evidence" in capsys.readouterr().out
    assert plainloop(["inspect", "run/config.yaml", "--cache_dir", str(tmp_path / "cache")]) == 0
    assert (tmp_path / "inspect-pets" / "inspect.html").is_file()
    for split in ("train", "validation"):
        (root / split / "dark").rename(root / split / "night")
    code, found = inspect(root, tmp_path / "strange", "--model", "run", "--device", "cpu", "--folds", "4")
    (doubt,) = found["suspicious_labels"]
    assert (
        code == 0 and doubt["name"].endswith("wrong.png") and (doubt["class"], doubt["predicted"]) == ("night", "light")
    )
    assert "by heads on the model's features that have not seen the image" in capsys.readouterr().out
    assert inspect(root, tmp_path / "untrained", "--model", "builtin:tiny")[0] == 2
    assert "is not trained, so it has no opinion of labels" in capsys.readouterr().err


def test_a_training_warns_and_records_at_its_first_and_at_a_later_start(folder, tmp_path, capsys):
    (folder / "validation/cat/leak.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    common = ["--preset", "debug", "--dataset", folder, "--cache_dir", tmp_path / "cache", "--max_steps", 2]
    for number, kind in enumerate(("disk", "disk", "memory", "none")):
        assert run_here(*common, "--output_dir", tmp_path / str(number), "--image_cache", kind) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "leak.png" in line]
        assert line.startswith("warning: ") and "1 image is in both train and validation" in line and "leak.png" in line
        assert line in json.loads((tmp_path / str(number) / "run.json").read_text())["data_notes"]
