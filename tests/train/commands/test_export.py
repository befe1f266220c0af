"""`plainloop export` on a real run."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.running import ROOT, run_here
from train.commands.export import main
from train.export import formats

LINE = re.compile(r"accuracy (\S+) -> (\S+), largest difference of a probability (\S+) .*, (\d+) of (\d+) labels equal")


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """A run on leaves. Read only."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("runs") / "leaves"
    assert run_here("--preset", "debug", "--max_eval_samples", 12, "--max_steps", 2, "--output_dir", folder) == 0
    return folder


def export(capsys, *arguments, code=0):
    """What it printed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert (said.err == "") if code == 0 else (said.err.startswith("error: ") and said.err.count("\n") == 1)
    return said.out if code == 0 else said.err


def judged(said):
    """Accuracies, largest difference, equal labels and images of the line about them."""
    return [float(value) for value in LINE.search(said).groups()]


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("format_", "file"), [("onnx", "model.onnx"), ("torch_export", "model.pt2")])
def test_a_run_is_exported_into_its_folder_and_judged_by_its_own_images(leaves, tmp_path, capsys, format_, file):
    run = shutil.copytree(leaves, tmp_path / "run")
    said = export(capsys, run, "--format", format_)
    before, after, largest, equal, images = judged(said)
    assert before == after and largest < 1e-4 and equal == images == 12
    results = json.loads((run / "eval_results.json").read_text())
    assert before == pytest.approx(results["eval_accuracy"], abs=6e-4)
    assert names_in(run) - names_in(leaves) == {file}
    assert "torch.onnx" not in said and "Warning" not in said  # what the exporters print


@pytest.mark.slow
def test_int8_is_judged_by_its_accuracy_and_its_speed_is_measured(leaves, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    said = export(capsys, leaves, "--format", "int8", "--out", out, "--tolerance", 0.5)
    assert judged(said)[4] == 12 and names_in(tmp_path) == {"small.onnx"}
    size, less, slow, fast, times = map(
        float, re.search(r"int8: (\S+) -> (\S+) MB, (\S+) -> (\S+) ms .*, (\S+) times as fast", said).groups()
    )
    assert less < size and slow > 0 and fast > 0 and times > 0


@pytest.mark.slow
def test_the_file_names_the_run_and_its_classes(leaves, tmp_path, capsys):
    import onnx

    export(capsys, leaves / "best", "--out", tmp_path / "model.onnx")
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    record = json.loads((leaves / "run.json").read_text())
    update = json.loads((leaves / "trainer_state.json").read_text())["best_global_step"]
    assert json.loads(about["class_names"]) == record["label_names"]
    assert about["model"] == f"run {record['run_id']}, update {update}"


def sabotaged(monkeypatch, forward):
    class Wrong(formats.Graph):
        pass

    Wrong.forward = forward
    monkeypatch.setattr(formats, "Graph", Wrong)


@pytest.mark.parametrize("format_", [pytest.param("onnx", marks=pytest.mark.slow), "torch_export"])
def test_a_graph_with_another_mean_is_refused_and_an_earlier_file_stays(leaves, tmp_path, capsys, monkeypatch, format_):
    right = formats.Graph.forward
    (tmp_path / "old").write_bytes(b"good")
    sabotaged(monkeypatch, lambda self, image: right(self, 255 - image))
    said = export(capsys, leaves, "--format", format_, "--out", tmp_path / "old", code=1)
    assert "refused: " in said and "differs by" in said and "_validation." in said  # the image
    assert names_in(tmp_path) == {"old"} and (tmp_path / "old").read_bytes() == b"good"


@pytest.mark.slow
def test_int8_is_made_of_a_file_that_is_right(leaves, tmp_path, capsys, monkeypatch):
    right = formats.Graph.forward
    sabotaged(monkeypatch, lambda self, image: right(self, image) * float("nan"))
    flags = ("--format", "int8", "--out", tmp_path / "model.onnx", "--tolerance", 1)
    assert "differs by nan" in export(capsys, leaves, *flags, code=1) and not names_in(tmp_path)


@pytest.mark.slow
def test_no_difference_at_all_can_be_asked_for(leaves, tmp_path, capsys):
    said = export(capsys, leaves, "--out", tmp_path / "model.onnx", "--tolerance", 0, code=1)
    assert "more than the tolerance of 0" in said and not names_in(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_without_a_run_needs_data_and_a_place(leaves, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        shutil.copy(leaves / name, model)
    assert "--out: name the file" in export(capsys, model, code=2)
    out = ("--out", tmp_path / "model.onnx")
    assert "--dataset: name one" in export(capsys, model, *out, code=2)
    said = export(capsys, model, *out, "--dataset", "builtin:leaves", "--max_eval_samples", 5)
    assert judged(said)[4] == 5


def pictures(root, classes):
    """An image folder of two pictures a class and split, and the data that a run on it was trained on."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (40 + number, 31, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.slow
def test_data_that_moved_can_be_named_and_bad_images_are_told(tmp_path, capsys):
    data = pictures(tmp_path / "data", ["cat", "dog"])
    run = tmp_path / "run"
    flags = ("--preset", "debug", "--max_steps", 1, "--output_dir", run, "--dataset")
    assert run_here(*flags, data) == 0
    data.rename(tmp_path / "moved")
    said = export(capsys, run, code=2)
    assert "there is no such folder" in said and "name it with --dataset" in said
    moved = ("--dataset", tmp_path / "moved")
    (tmp_path / "moved/validation/cat/0.png").write_bytes(b"broken")
    assert "1 of 4 images cannot be used" in export(capsys, run, *moved, code=2)
    said = export(capsys, run, *moved, "--skip_bad_images")
    assert "left out: " in said and judged(said)[4] == 3 and (run / "model.onnx").exists()
    strangers = pictures(tmp_path / "strangers", ["cat", "emu"])
    assert "emu" in export(capsys, run, "--dataset", strangers, code=2)


def test_what_cannot_be_used_is_refused_in_a_line(leaves, tmp_path, capsys):
    for arguments, reason in (
        ((), "RUN"),
        ((leaves, "--format", "pickle"), "invalid choice"),
        ((leaves, "--tolerance", "nan"), "between 0 and 1"),
        ((leaves, "--out", tmp_path), "is a folder"),
        ((leaves, "--out", tmp_path / "no" / "file"), "there is no folder"),
        ((tmp_path / "no" / "run", "--out", tmp_path / "x"), "there is no such folder"),
        (("builtin:tiny", "--out", tmp_path / "x"), "has no trained weights"),
        ((leaves, "--train_val_split", 2), "between 0 and 1"),
    ):
        assert reason in export(capsys, *arguments, code=2), arguments


def test_missing_libraries_are_named(leaves, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert 'needs onnxscript: pip install -e ".[export]"' in export(capsys, leaves, code=2)


def test_help_and_mistyped_flags_answer_without_torch():
    code = "import sys; from train.commands.export import main\ntry: print(main(sys.argv[1:]))\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules or 'onnx' in sys.modules)"
    for flag in ("--help", "--formt"):
        found = subprocess.run([sys.executable, "-c", code, flag], cwd=ROOT, capture_output=True, text=True)
        assert found.stdout.splitlines()[-1] == "False", found.stderr
        assert flag == "--formt" or all(text in found.stdout for text in ("0.005", "0.02", "--dataset"))


@pytest.mark.slow
def test_deit_tiny_on_all_validation_images_of_beans(beans, deit_tiny, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ("--max_steps", 20, "--eval_steps", 20, "--save_steps", 20, "--output_dir", run)
    assert run_here("--dataset", beans, "--model", deit_tiny, *flags) == 0
    for format_, most in (("onnx", 5e-3), ("torch_export", 5e-3), ("int8", 1)):
        before, after, largest, equal, images = judged(export(capsys, run, "--format", format_))
        assert images == 133 and largest <= most and abs(before - after) <= 0.02
        assert equal == 133 or format_ == "int8"
