"""The whole run, from the command line to what lies in the folder."""

import json
import math
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import ViTForImageClassification, pipeline

from tests.running import ROOT, TIMES, records, run_here, run_process, same_tensors, weights

OUTPUT = {
    *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.jsonl", "config.yaml"),
    *("train_results.json", "eval_results.json", "all_results.json", "trainer_state.json", "run.json"),
    *("tensorboard", "best", "checkpoint-6", "checkpoint-12", "predictions.csv", "report.html"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the debug preset."""
    out = tmp_path_factory.mktemp("runs") / "debug"
    assert run_here("--preset", "debug", "--output_dir", out, "--metric_for_best_model", "accuracy") == 0
    return out


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_run_leaves_exactly_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == OUTPUT


def test_the_folder_holds_the_weights_that_scored_best(finished):
    state = read(finished, "trainer_state.json")
    evaluations = {line["step"]: line["eval_accuracy"] for line in records(finished) if "eval_accuracy" in line}
    assert state["best_metric"] == max(evaluations.values()) == evaluations[state["best_global_step"]]
    assert state["best_model_checkpoint"].endswith(f"checkpoint-{state['best_global_step']}")
    assert same_tensors(weights(finished), weights(finished / f"checkpoint-{state['best_global_step']}"))
    assert same_tensors(weights(finished), weights(finished / "best"))


def test_the_printed_command_evaluates_on_the_same_images(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        run_here("--preset", "debug", "--max_eval_samples", 9, "--seed", 7, "--max_steps", 2, "--output_dir", out) == 0
    )
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    assert run_here(*shlex.split(command)[3:], "--device", "cpu", "--precision", "fp32") == 0
    printed = capsys.readouterr().out
    said = json.loads(printed[printed.index("{") :])
    assert {n: v for n, v in said.items() if not TIMES.search(n)}.items() <= read(out, "eval_results.json").items()


def test_evaluating_without_naming_the_data_is_refused(finished, capsys):
    assert run_here("--model", finished, "--eval_only") == 2
    assert "name the --dataset" in capsys.readouterr().err


def test_evaluating_the_folder_gives_exactly_the_best_logged_metrics(finished, capsys):
    best = read(finished, "trainer_state.json")["best_global_step"]
    logged = next(line for line in records(finished) if line["step"] == best and "eval_loss" in line)
    assert read(finished, "eval_results.json")["eval_loss"] == logged["eval_loss"]
    capsys.readouterr()
    assert run_here("--preset", "debug", "--model", finished, "--eval_only") == 0
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :])["eval_loss"] == logged["eval_loss"]


def folder_of(classes, folder):
    """Three pictures of each class in both splits."""
    noise = np.random.default_rng(5)
    for split in ("train", "validation"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_a_model_is_evaluated_on_some_of_its_classes_by_name(finished, tmp_path, capsys):
    names = ["healthy", "bean_rust"]
    data = folder_of(names, tmp_path / "data")
    assert run_here("--preset", "debug", "--dataset", data, "--model", finished, "--eval_only", "true") == 0
    printed = capsys.readouterr().out
    said = json.loads(printed[printed.index("{") :])
    assert "the model has 3 classes, 1 of which the data does not have" in printed
    classify = pipeline("image-classification", str(finished))
    answers = {name: [] for name in sorted(names)}
    for name, found in answers.items():
        for number in range(3):
            image = Image.open(data / "validation" / name / f"{number}.png")
            found.append({item["label"]: item["score"] for item in classify(image, top_k=3)})
    losses = [-math.log(scores[name]) for name, found in answers.items() for scores in found]
    assert said["eval_loss"] == pytest.approx(sum(losses) / 6, abs=1e-4)
    best = {name: [max(scores, key=scores.get) for scores in found] for name, found in answers.items()}
    counts = [[row.count(name) for name in (*answers, "angular_leaf_spot")] for row in best.values()]
    assert said["eval_confusion"] == counts and said["eval_samples"] == 6
    assert said["eval_recall_macro"] == pytest.approx((counts[0][0] + counts[1][1]) / 6)
    assert "eval_f1/healthy" in said and "eval_f1/angular_leaf_spot" not in said


def test_a_model_is_not_evaluated_on_classes_it_does_not_have(finished, tmp_path, capsys):
    data = folder_of(["healthy", "mildew", "bean_rust"], tmp_path / "data")
    assert run_here("--preset", "debug", "--dataset", data, "--model", finished, "--eval_only", "true") == 2
    assert re.fullmatch(r"error: .*: mildew; its own are .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_dropout_prob", float("nan")), ("num_hidden_layers", 10**6), ("image_size", 10**9), ("id2label", [1])],
)
def test_a_model_with_an_impossible_configuration_is_one_line(key, value, finished, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "preprocessor_config.json"):
        (model / name).symlink_to(finished / name)
    (model / "config.json").write_text(json.dumps(read(finished, "config.json") | {key: value}))
    assert run_here("--preset", "debug", "--model", model, "--eval_only", "true") == 2
    assert re.fullmatch(rf"error: --model .*config.json: {key} .*\n", capsys.readouterr().err)


def test_from_pretrained_and_pipeline_just_work(finished, tmp_path):
    model = ViTForImageClassification.from_pretrained(finished)
    assert model.config.id2label == {0: "angular_leaf_spot", 1: "bean_rust", 2: "healthy"}
    assert model.config.label2id["healthy"] == 2
    path = tmp_path / "leaf.png"
    Image.fromarray(np.full((50, 40, 3), 90, dtype=np.uint8)).save(path)
    answer = pipeline("image-classification", str(finished))(str(path))
    assert {item["label"] for item in answer} == set(model.config.label2id)


def test_results_have_the_trainers_keys(finished):
    train, evaluation = read(finished, "train_results.json"), read(finished, "eval_results.json")
    assert train.keys() >= {
        *("epoch", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
        *("preset", "preset_reason", "precision"),
    }
    assert evaluation.keys() >= {"epoch", "eval_loss", "eval_accuracy", "eval_runtime", "eval_samples_per_second"}
    assert read(finished, "all_results.json") == evaluation | train
    low, high = evaluation["eval_accuracy_wilson_95"]
    assert low < evaluation["eval_accuracy"] < high
    assert sum(map(sum, evaluation["eval_confusion"])) == evaluation["eval_samples"] == 24
    state = read(finished, "trainer_state.json")
    assert (state["global_step"], state["max_steps"], state["epoch"]) == (12, 12, 2.0)
    assert len(state["log_history"]) == len(records(finished))


def test_losses_are_logged_when_the_recipe_says(finished):
    lines = records(finished)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "eval_loss" in line] == [6, 12]
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_tensorboard_has_the_trainers_tags_and_more(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        *("train/loss", "train/learning_rate", "train/grad_norm", "train/epoch"),
        *("eval/loss", "eval/accuracy", "eval/runtime", "eval/samples_per_second", "final/accuracy"),
    } <= set(tags["scalars"])
    logged = {line["step"]: line["loss"] for line in records(finished) if "loss" in line}
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == pytest.approx(logged, rel=1e-6)
    assert set(tags["images"]) == {"validation/confusion", "validation/predictions"}
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_record_says_what_was_decided(finished):
    record = read(finished, "run.json")
    assert (
        record["preset"] == "debug"
        and record["precision"] == "fp32"
        and record["versions"]["torch"] == torch.__version__
    )
    assert record["config"]["metric_for_best_model"] == "accuracy"


def test_the_model_card_tells_data_recipe_and_interval(finished):
    card = (finished / "README.md").read_text()
    for part in ("builtin:leaves", "48 training images", "Wilson interval", "learning_rate | 0.001", "seed | 42"):
        assert part in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "datasets" not in head and "base_model" not in head
    result = head["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "builtin:leaves", "type": "imagefolder", "split": "validation"}
    assert [metric["type"] for metric in result["metrics"]] == ["accuracy", "f1"]


def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert run_here("--preset", "debug", "--seed", seed, "--output_dir", tmp_path / name, "--stop_after", 3) == 0
    one, two, three = (weights(tmp_path / name / "checkpoint-3") for name in ("one", "two", "three"))
    assert same_tensors(one, two) and not same_tensors(one, three)


def test_the_recorded_recipe_runs_again_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_here("--preset", "debug", "--seed", 5, "--output_dir", "first", "--stop_after", 3) == 0
    assert run_here("first/config.yaml", "--output_dir", "again", "--stop_after", 3) == 0
    assert same_tensors(weights(tmp_path / "first" / "checkpoint-3"), weights(tmp_path / "again" / "checkpoint-3"))


def test_a_folder_that_holds_another_run_is_left_alone(finished, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run_here("--preset", "debug", "--output_dir", finished) == 2
    assert "holds another run" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    (tmp_path / "thesis.txt").write_text("mine")
    assert run_here("--preset", "debug", "--output_dir", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_wrong_metric_or_optimizer_stops_before_a_folder_is_made(tmp_path, capsys):
    for flags in (("--metric_for_best_model", "acuracy"), ("--optim", "adamv"), ("--lr_scheduler_type", "liner")):
        assert run_here("--preset", "debug", "--output_dir", tmp_path / "run", *flags) == 2
        assert flags[0] in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_names_its_images_and_keeps_what_was_saved(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ("--preset", "debug", "--eval_steps", 1, "--save_steps", 1, "--optim", "sgd", "--max_grad_norm", 0)
    assert run_here(*flags, "--learning_rate", 1e30, "--output_dir", out) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"update [2-9]: the (loss|gradient norm) is (nan|inf); stopped before it changed the weights", error
    )
    assert "train/" in error and error.count("\n") == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(out / "checkpoint-1").values())


def test_a_broken_image_is_named_before_anything_is_written(tmp_path, capsys):
    for split in ("train", "validation"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(folder / f"{number}.jpg")
    (tmp_path / "data" / "train" / "b" / "1.jpg").write_bytes(b"not a picture")
    out = tmp_path / "run"
    flags = (
        "--preset",
        "debug",
        "--dataset",
        tmp_path / "data",
        "--cache_dir",
        tmp_path / "cache",
        "--output_dir",
        out,
    )
    assert run_here(*flags) == 2
    error = capsys.readouterr().err
    assert "1 of 12 images cannot be used" in error and "train/b/1.jpg" in error and not out.exists()


def test_the_debug_preset_is_over_in_seconds(tmp_path):
    started = time.perf_counter()
    done = run_process("--preset", "debug", "--output_dir", tmp_path / "run")
    seconds = time.perf_counter() - started
    assert done.returncode == 0 and seconds < 20  # 10 on a machine that does nothing else: .ci/run measures that
    assert done.stderr == ""  # no bar where there is no terminal, and no library's warnings


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_loss_rate_and_time_left(tmp_path):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 140))
    process = subprocess.Popen(
        [sys.executable, "-m", "train.main", "--preset", "debug", "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        stdout=slave,
        stderr=slave,
        stdin=subprocess.DEVNULL,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(timeout=60) == 0
    assert re.search(rb"12/12 \[.*loss=.*lr=.*img/s=", shown)
