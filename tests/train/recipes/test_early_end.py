"""Runs that are over before their plan is, and how often a run evaluates."""

import csv
import json

import pytest

from data.reading.leaves import table
from tests.running import records, run_here, same_tensors, weights
from train.config.early_end import parse_early_end
from train.errors import ConfigError

DEBUG = ("--preset", "debug", "--max_train_samples", 24, "--max_eval_samples", 6, "--max_steps", 20, "--eval_steps", 2)
DEBUG = (*DEBUG, "--save_steps", 2)


def evaluated(folder):
    return [line["step"] for line in records(folder) if "eval_loss" in line]


@pytest.mark.slow
def test_a_run_ends_after_evaluations_without_a_new_best_and_resumes_to_the_same_end(tmp_path, capsys):
    flags = (*DEBUG, "--learning_rate", 0.05, "--early_stopping_patience", 2, "--output_dir")
    assert run_here(*flags, tmp_path / "whole") == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())
    end = record["global_step"]
    assert end == record["best_global_step"] + 4 < 20 and evaluated(tmp_path / "whole")[-1] == end
    assert f"ended after update {end} of 20: no new best in 2 evaluations (--early_stopping_patience)" in printed
    assert "done: " in printed and (tmp_path / "whole" / "model.safetensors").exists()
    assert json.loads((tmp_path / "whole" / "train_results.json").read_text())["ended"].startswith("no new best in 2")
    for stop in (3, end - 2, end):  # between evaluations, at one that decides nothing yet, at the one that ends it
        out = tmp_path / f"broken-{stop}"
        assert run_here(*flags, out, "--stop_after", stop) == 0
        assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
        assert same_tensors(weights(out), weights(tmp_path / "whole")) and records(out) == records(tmp_path / "whole")


@pytest.mark.parametrize(("goal", "reached"), [("eval_loss=100", True), ("accuracy=0", True), ("loss=0", False)])
def test_a_run_ends_once_it_is_good_enough(goal, reached, tmp_path, capsys):
    assert run_here(*DEBUG, "--until", goal, "--output_dir", tmp_path / "run") == 0
    assert ("is good enough (--until)" in capsys.readouterr().out) == reached
    assert evaluated(tmp_path / "run")[-1] == (2 if reached else 20)


def test_a_run_ends_when_its_time_is_up_with_an_evaluation(tmp_path, capsys):
    flags = ("--max_time", "0.2s", "--max_steps", 100_000, "--eval_steps", 50_000, "--save_steps", 50_000)
    assert run_here(*DEBUG, *flags, "--output_dir", tmp_path / "run") == 0
    end = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"]
    assert 0 < end < 50_000 and evaluated(tmp_path / "run") == [end]
    assert f"ended after update {end} of 100000: the time is up (--max_time)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [("--until", "loss"), ("--until", "los=1"), ("--until", "loss=x"), ("--max_time", "1d"), ("--max_time", "0")],
)
def test_what_cannot_be_read_is_refused_before_anything_starts(flags, tmp_path, capsys):
    assert run_here(*DEBUG, *flags, "--output_dir", tmp_path / "run") == 2
    assert f"error: {flags[0]}" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_times_have_units():
    assert [parse_early_end(None, None, text).max_seconds for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    with pytest.raises(ConfigError, match="--max_time"):
        parse_early_end(None, None, "-1s")


def test_once_an_epoch_where_there_would_be_fewer_than_three_evaluations(tmp_path, capsys):
    named = (
        "--dataset",
        "builtin:leaves",
        "--model",
        "builtin:tiny",
        "--max_train_samples",
        32,
        "--max_eval_samples",
        6,
    )
    assert run_here(*named, "--output_dir", tmp_path / "run") == 0  # the preset beans: batch 16, 4 epochs, every 100
    printed = capsys.readouterr().out
    assert "evaluation: every 100 updates would be 1 in a run of 8, so once an epoch, every 2 updates" in printed
    assert evaluated(tmp_path / "run") == [2, 4, 6, 8]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["eval_steps"] == 2
    assert run_here(*named, "--eval_steps", 100, "--output_dir", tmp_path / "said") == 0
    assert evaluated(tmp_path / "said") == [8]


def test_epoch_may_be_asked_for_and_a_resume_goes_on_so(tmp_path):
    each = ("--eval_steps", "epoch", "--save_steps", "epoch", "--logging_steps", "epoch", "--max_steps", 9)
    assert run_here(*DEBUG, *each, "--output_dir", tmp_path / "run", "--stop_after", 4) == 0
    assert run_here(*DEBUG, *each, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto") == 0
    assert evaluated(tmp_path / "run") == [3, 6, 9]
    assert [line["step"] for line in records(tmp_path / "run") if "loss" in line] == [3, 6, 9]


def test_saves_and_evaluations_must_meet(tmp_path, capsys):
    assert run_here(*DEBUG, "--eval_steps", "epoch", "--output_dir", tmp_path / "run") == 2
    assert "--save_steps 2: must be a multiple of --eval_steps epoch" in capsys.readouterr().err


def test_rare_classes_are_told(tmp_path, capsys):
    images, rows = tmp_path / "images", table("train", 1, 30)
    images.mkdir()
    with (images / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        for index in range(30):
            rows[index]["image"].save(images / f"{index}.png")
            writer.writerow([f"{index}.png", "common" if index < 24 else "rare"])
    flags = ("--preset", "debug", "--max_train_samples", 1000, "--max_eval_samples", 1000, "--max_steps", 1)
    assert run_here(*flags, "--dataset", images, "--output_dir", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "fewer than 5 validation images, so that a class's figures mean little: common (4), rare (1)" in printed
    assert "classes are unequal (5 of rare, 20 of common training images)" in printed
    assert "--metric_for_best_model balanced_accuracy" in printed
