"""plainloop evaluate, and the test split at the end of a run, on leaves in folders."""

import csv
import json
import shutil

import pytest
import torch
from transformers import pipeline

from data.reading.leaves import LABEL_NAMES, png
from models.loading import load_model
from tests.running import records, run_here, same_tensors, weights
from train.commands.plainloop import main as plainloop
from train.evaluate import evaluate as evaluate_split
from train.inference.predictor import load_predictor
from train.precision import Precision

SIZES = {"train": 48, "validation": 24, "test": 30}


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """An image folder with a test split."""
    root = tmp_path_factory.mktemp("data") / "leaves"
    for split, count in SIZES.items():
        for index in range(count):
            folder = root / split / LABEL_NAMES[index % 3]
            folder.mkdir(parents=True, exist_ok=True)
            seed = 9 if split == "test" else 42
            (folder / f"{index}.png").write_bytes(png(seed, "validation" if split == "test" else split, index))
    return root


@pytest.fixture(scope="module")
def run(leaves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_here("--preset", "debug", "--dataset", leaves, "--output_dir", folder) == 0
    return folder


def evaluate(capsys, *arguments):
    capsys.readouterr()
    code = plainloop(["evaluate", *map(str, arguments), "--precision", "fp32"])
    return code, *capsys.readouterr()


def found(capsys, *arguments):
    code, out, _ = evaluate(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_a_run_ends_with_one_evaluation_on_the_test_split(run):
    test, everything = (json.loads((run / name).read_text()) for name in ("test_results.json", "all_results.json"))
    assert test["test_samples"] == 30 and test.items() <= everything.items()
    card = (run / "README.md").read_text()
    assert f"accuracy | {test['test_accuracy']:.4f}" in card and "on 30 test images, which selected nothing" in card
    assert not any("test" in name for line in records(run) for name in line)  # nothing of it while training


def test_the_test_split_changes_no_bit_of_the_run(run, leaves, tmp_path):
    assert run_here("--preset", "debug", "--dataset", leaves, "--output_dir", tmp_path / "o", "--no_test_at_end") == 0
    assert same_tensors(weights(run), weights(tmp_path / "o")) and records(run) == records(tmp_path / "o")
    assert not (tmp_path / "o" / "test_results.json").exists()
    assert "No test split was evaluated" in (tmp_path / "o" / "README.md").read_text()


def test_evaluate_agrees_with_what_the_run_recorded(run, capsys):
    test, validation = found(capsys, run), found(capsys, run, "--split", "validation")
    recorded = json.loads((run / "all_results.json").read_text())
    assert test["split"] == "test" and test["images"] == 30
    for name in ("accuracy", "loss", "f1_macro", "balanced_accuracy"):
        assert test[name] == pytest.approx(recorded[f"test_{name}"], abs=1e-6)
        assert validation[name] == pytest.approx(recorded[f"eval_{name}"], abs=1e-6)
    assert validation["confusion"] == recorded["eval_confusion"]
    assert sum(part["images"] for part in test["reliability"]) == 30
    assert sum(row["images"] for row in test["classes"].values()) == 30


def test_every_image_is_written_with_its_loss(run, leaves, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(capsys, run, "--out", out)[0] == 0
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads((out / "evaluation.json").read_text())
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(document["loss"], rel=1e-3)
    assert sum(row["label"] == row["predicted"] for row in rows) == round(document["accuracy"] * 30)
    assert (out / "reliability.svg").read_text().startswith("<svg")
    assert evaluate(capsys, run, "--out", out)[0] == 0  # an evaluation may be replaced
    code, _, err = evaluate(capsys, run, "--out", run)
    assert code == 2 and "is the folder of a run" in err


def test_data_without_a_train_split_and_with_fewer_classes(run, leaves, tmp_path, capsys):
    few = tmp_path / "few"
    for name in LABEL_NAMES[1:]:
        shutil.copytree(leaves / "test" / name, few / "test" / name)
    document = found(capsys, run, "--dataset", few)
    assert document["images"] == 20 and list(document["classes"]) == list(LABEL_NAMES[1:])
    predictor = load_predictor(str(run), Precision("fp32", torch.device("cpu")))
    right = [
        predictor(path.read_bytes())[0] == name
        for name in LABEL_NAMES[1:]
        for path in sorted((few / "test" / name).iterdir())
    ]
    assert document["accuracy"] == pytest.approx(sum(right) / 20)
    assert [sum(row) for row in document["confusion"]] == [10, 10]
    (few / "test" / "unknown").mkdir()
    shutil.copy(next((few / "test" / "healthy").iterdir()), few / "test" / "unknown")
    code, _, err = evaluate(capsys, run, "--dataset", few)
    assert code == 2 and "was not trained on: unknown" in err


def test_bad_images_are_refused_or_left_out_by_name(run, leaves, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(leaves / "test", data / "test")
    (data / "test" / "healthy" / "2.png").write_bytes(b"broken")
    code, _, err = evaluate(capsys, run, "--dataset", data)
    assert code == 2 and "healthy/2.png" in err and "--skip_bad_images" in err
    code, out, _ = evaluate(capsys, run, "--dataset", data, "--skip_bad_images")
    assert code == 0 and "left out: " in out and "test: 29 images" in out


def test_a_temperature_is_in_everything_that_loads_the_model(run, leaves, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    image = next((leaves / "test" / "healthy").iterdir())
    before = load_predictor(str(run), Precision("fp32", torch.device("cpu")))
    code, out, _ = evaluate(capsys, copy, "--fit_temperature")
    temperature = json.loads((copy / "temperature.json").read_text())["temperature"]
    assert code == 0 and f"temperature: {temperature:.4g}, fitted on 24 validation images" in out
    pixels = before.pixels(image.read_bytes(), "image")[None]
    wanted = (before.logits(pixels) / temperature).softmax(-1)[0]
    after = load_predictor(str(copy), Precision("fp32", torch.device("cpu")))
    assert torch.allclose(after.probabilities(pixels)[0], wanted, atol=1e-6)
    answers = {row["label"]: row["score"] for row in pipeline("image-classification", str(copy))(str(image))}
    assert [answers[name] for name in LABEL_NAMES] == pytest.approx(wanted.tolist(), abs=1e-5)
    # A second fit finds nothing left to change, and says the whole of it.
    assert evaluate(capsys, copy, "--fit_temperature")[0] == 0
    assert json.loads((copy / "temperature.json").read_text())["temperature"] == pytest.approx(temperature, rel=1e-3)
    loaded = load_model(str(copy), list(LABEL_NAMES))  # and it stays a checkpoint like any other
    assert not loaded.new_head
    code, _, err = evaluate(capsys, copy / "best", "--fit_temperature")
    assert code == 2 and "is a checkpoint, which stays as it was saved" in err


def test_a_test_split_that_cannot_be_judged_is_no_reason_not_to_train(leaves, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(leaves, data)
    (data / "test" / "healthy").rename(data / "test" / "other")
    assert run_here("--preset", "debug", "--dataset", data, "--output_dir", tmp_path / "run", "--stop_after", 1) == 0
    assert "warning: no evaluation on the test split at the end: " in capsys.readouterr().out


def test_a_test_image_that_was_trained_on_is_said(leaves, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(leaves, data)
    shutil.copy(data / "train" / "healthy" / "2.png", data / "test" / "healthy" / "copy.png")
    assert run_here("--preset", "debug", "--dataset", data, "--output_dir", tmp_path / "run", "--stop_after", 1) == 0
    assert "warning: 1 of the test images are in train or validation, too" in capsys.readouterr().out


def test_a_run_of_before_the_flag_goes_on_without_a_test(leaves, tmp_path):
    out = tmp_path / "run"
    assert run_here("--preset", "debug", "--dataset", leaves, "--output_dir", out, "--stop_after", 7) == 0
    record = json.loads((out / "run.json").read_text())
    del record["config"]["test_at_end"]
    (out / "run.json").write_text(json.dumps(record))
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
    assert (out / "predictions.csv").exists() and not (out / "test_results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test", "--dataset", "builtin:leaves"], "has no test split"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--split", "val"], "invalid choice"),
        (["--dataset", "nowhere/at/all"], "there is no such folder"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(run, capsys, arguments, message):
    code, _, err = evaluate(capsys, run, *arguments)
    assert code == 2 and message in err.splitlines()[-1]


def test_one_bad_test_image_is_no_reason_not_to_train(leaves, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(leaves, data)
    (data / "test" / "healthy" / "2.png").write_bytes(b"broken")
    assert run_here("--preset", "debug", "--dataset", data, "--output_dir", tmp_path / "run", "--max_steps", 6) == 0
    said = capsys.readouterr().out
    assert "warning: no evaluation on the test split at the end: 1 of 30 images" in said
    assert not (tmp_path / "run" / "test_results.json").exists() and (tmp_path / "run" / "predictions.csv").exists()


def test_a_test_image_that_vanishes_costs_the_test_and_not_the_run(leaves, tmp_path, capsys, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(leaves, data)
    flags = ("--preset", "debug", "--dataset", data, "--output_dir", out, "--max_steps", 6)

    def evaluate_then_lose_an_image(*arguments, **options):
        metrics = evaluate_split(*arguments, **options)
        (data / "test" / "healthy" / "2.png").unlink(missing_ok=True)
        return metrics

    monkeypatch.setattr("train.output.results.evaluate", evaluate_then_lose_an_image)
    assert run_here(*flags) == 0
    assert "warning: no evaluation on the test split: " in capsys.readouterr().out
    assert (out / "model.safetensors").exists() and (out / "predictions.csv").exists()
    assert not (out / "test_results.json").exists()


def test_the_same_data_are_held_out_again_however_they_are_named(leaves, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(leaves / "train", data / "train")
    flags = ("--preset", "debug", "--dataset", data, "--seed", 7, "--output_dir", tmp_path / "run")
    assert run_here(*flags) == 0
    own, named = found(capsys, tmp_path / "run"), found(capsys, tmp_path / "run", "--dataset", data)
    assert own == named and own["loss"] == pytest.approx(
        json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"], abs=1e-6
    )


def test_a_temperature_is_said_in_the_card_once_and_the_page(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    for _ in range(2):
        assert evaluate(capsys, copy, "--fit_temperature")[0] == 0
    assert (copy / "README.md").read_text().count("the logits were divided by") == 1
    assert plainloop(["report", str(copy)]) == 0
    assert "the logits were divided by a temperature of" in (copy / "report.html").read_text()
