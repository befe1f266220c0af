"""plainloop predict: rows for real files, through real processes where pipes and exit codes matter."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from data.reading.leaves import LABEL_NAMES, png
from models.loading import load_model
from tests.reliability.harness import draw
from tests.reliability.pictures import KINDS
from tests.running import ROOT, run_here
from train.commands.plainloop import main as plainloop
from train.inference.predict import predict_files
from train.inference.predictor import Predictor, distinct, load_predictor
from train.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_here("--preset", "debug", "--output_dir", folder) == 0
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for index in range(10):
        place = folder / "more" if index % 3 == 0 else folder
        (place / f"{index}.png").write_bytes(png(7, "validation", index))
    return folder


def predict(capsys, *arguments):
    code = plainloop(["predict", *map(str, arguments), "--precision", "fp32"])
    return code, *capsys.readouterr()


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_every_image_of_a_folder_is_a_row_and_only_rows_are_printed(run, images, capsys):
    code, out, err = predict(capsys, run, images)
    rows = rows_of(out)
    assert code == 0 and len(rows) == 10 and "model: " in err
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        probabilities = [float(row[f"probability/{name}"]) for name in LABEL_NAMES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert row["label"] == LABEL_NAMES[probabilities.index(max(probabilities))]


def test_the_three_forms_say_the_same_and_agree_with_the_predictor(run, images, tmp_path, capsys):
    outs = [tmp_path / f"rows{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
    for out in outs:
        assert predict(capsys, run, images, "--out", out, "--batch_size", "4")[0] == 0
    as_csv, as_lines, as_table = (
        rows_of(outs[0].read_text()),
        [json.loads(line) for line in outs[1].read_text().splitlines()],
        parquet.read_table(outs[2]).to_pylist(),
    )
    predictor = load_predictor(str(run), Precision("fp32", CPU))
    for text, line, row in zip(as_csv, as_lines, as_table, strict=True):
        assert text["path"] == line["path"] == row["path"] and text["label"] == line["label"] == row["label"]
        label, probabilities = predictor((images.parent / line["path"]).read_bytes())
        assert label == line["label"] and next(iter(line["probabilities"])) == label
        for name, value in probabilities.items():
            assert line["probabilities"][name] == pytest.approx(value, abs=1e-6)
            assert row[f"probability/{name}"] == line["probabilities"][name]


def test_top_keeps_the_most_probable(run, images, capsys):
    row = rows_of(predict(capsys, run, images / "1.png", "--top", 2)[1])[0]
    assert list(row) == ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert float(row["probability"]) >= float(row["probability_2"]) and row["label"] != row["label_2"]


def test_files_that_cannot_be_used_are_rows_in_their_place_and_the_code_is_1(run, images, tmp_path, capsys):
    (images / "1.png").write_bytes(b"no picture")
    (images / "2.png").write_bytes(png(7, "validation", 2)[:300])
    os.mkfifo(images / "3b.png")
    (images / "4.png").unlink()
    (images / "4.png").symlink_to("nothing")
    (images / "more" / "loop").symlink_to(images)
    (images / "notes.txt").write_text("not an image")
    code, out, err = predict(capsys, run, images)
    bad = {row["path"].removeprefix(f"{images}/"): row["error"] for row in rows_of(out) if row["error"]}
    assert code == 1 and "5 of 12 files could not be used" in err
    assert "left out, as no images by their names: 1 (" in err and "notes.txt" in err
    assert "not a JPEG" in bad.pop("1.png") and "cannot be decoded" in bad.pop("2.png")
    assert bad == {
        "3b.png": "cannot be read: is no ordinary file",
        "4.png": "cannot be read: No such file or directory",
        "more/loop": "cannot be read: is a folder inside itself, by a link",
    }
    good = [row for row in rows_of(out) if not row["error"]]
    assert len(good) == 7 and all(row["label"] for row in good)


def test_names_that_are_not_utf_8_or_formulas_are_written(run, images, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(images) + b"/\xff.png")
    shutil.copy(images / "1.png", odd)
    shutil.copy(images / "1.png", images / "new\nline.png")
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert predict(capsys, run, images, "--out", tmp_path / f"x{suffix}")[0] == 0
    lines = [json.loads(line)["path"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert f"{images}/\\xff.png" in lines and f"{images}/new\nline.png" in lines
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and f"{images}/\\xff.png" in [row["path"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "name images, or folders of images"),
        (["RUN", "missing.jpg"], "missing.jpg: there is no such file or folder"),
        (["RUN", "s3://a/b.jpg"], "addresses are not read here"),
        (["RUN", "IMAGES", "--top", "0"], "--top 0: must be at least 1"),
        (["RUN", "IMAGES", "--out", "x.txt"], "--out x.txt: must end in .csv, .jsonl, .parquet"),
        (["RUN", "IMAGES", "--out", "no/x.csv"], "there is no folder no"),
        (["RUN", "EMPTY"], "holds no image"),
        (["builtin:tiny", "IMAGES"], "has no trained weights"),
        (["EMPTY", "IMAGES"], "holds no model (config.json)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(run, images, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"RUN": run, "IMAGES": images, "EMPTY": tmp_path / "empty"}
    code, _, err = predict(capsys, *(names.get(word, word) for word in arguments))
    assert code == 2 and message in err.splitlines()[-1]


def test_an_unfinished_run_names_its_best_so_far(tmp_path, images, capsys):
    assert run_here("--preset", "debug", "--output_dir", tmp_path / "run", "--stop_after", 7) == 0
    code, _, err = predict(capsys, tmp_path / "run", images)
    assert code == 2 and f"{tmp_path}/run/best is the best model so far" in err
    assert predict(capsys, tmp_path / "run" / "best", images)[0] == 0


def test_a_failure_leaves_the_old_file(run, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "rows.csv"
    out.write_text("old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.inference.tables._Utf8.write", fails)
    code, _, err = predict(capsys, run, images, "--out", out)
    assert code == 1 and "No space left" in err and out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_command(run, images):
    command = [sys.executable, "-c", "import sys; from train.commands.plainloop import main; sys.exit(main())"]
    many = [str(images / "1.png")] * 3000
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -2; exit ${PIPESTATUS[0]}', "bash", *command, "predict", str(run), *many],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1 and "standard output: cannot be written" in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_memory_of_waiting_rows_is_bounded_however_many_files_are_bad(images, tmp_path):
    """The first row comes before the last file is even asked for."""
    loaded = load_model("builtin:tiny", list(LABEL_NAMES))
    predictor = Predictor(loaded.model.eval(), Precision("fp32", CPU), list(LABEL_NAMES))
    asked = []

    def paths():
        for number in range(5000):
            asked.append(number)
            yield str(tmp_path / "missing.png")

    next(predict_files(predictor, paths(), batch_size=8))
    assert len(asked) < 1000


def test_equal_class_names_are_told_apart():
    assert distinct(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]
    assert len(set(distinct(["x", "x", "x (0)", "x (1)'"]))) == 4


def test_every_kind_of_odd_image_is_classified_by_what_is_seen_or_has_a_reason(run, tmp_path, capsys):
    rng, folder, expected = draw(5), tmp_path / "odd", {}
    folder.mkdir()
    predictor = load_predictor(str(run), Precision("fp32", CPU))
    for number, (kind, make) in enumerate(KINDS.items()):
        content, pixels, tolerance = make(rng)
        path = folder / f"{number:02}.jpg"  # whatever the name says, the bytes count
        path.write_bytes(content)
        expected[str(path)] = kind, pixels, tolerance
    code, out, _ = predict(capsys, run, folder)
    rows = rows_of(out)
    assert code == 1 and [row["path"] for row in rows] == list(expected) and len(rows) >= 40
    for row in rows:
        kind, pixels, tolerance = expected[row["path"]]
        assert bool(row["error"]) == (pixels is None), (kind, row)
        if pixels is not None and tolerance == 0:
            seen = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(seen, "PNG")
            _, probabilities = predictor(seen.getvalue())
            found = {name: float(row[f"probability/{name}"]) for name in probabilities}
            assert found == pytest.approx(probabilities, abs=1e-5), kind
