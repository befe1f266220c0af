"""Recipes that would change nothing, or change the same thing twice, are told before anything starts."""

import json

import pytest

from tests.running import run_here
from train.config.checks import check_flags
from train.config.cli import parse

DEBUG = ("--preset", "debug", "--max_steps", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freeze", "backbone", "--layer_decay", 0.7), "--layer_decay: has no effect with --freeze backbone"),
        (("--freeze", "backbone", "--gradient_checkpointing"), "--gradient_checkpointing: has no effect with --freeze"),
        (("--freeze", "backbone", "--torch_compile", "on"), "--torch_compile on: has no effect on a head"),
        (("--folds", 3), "--folds: needs --freeze backbone and features computed once; the backbone is not frozen"),
        (("--min_steps", 9), "--min_steps 9: --max_steps 2 is the length; name one"),
        (
            ("--sampler", "balanced", "--logit_adjustment", 1),
            "--logit_adjustment: would count rare classes twice beside --sampler balanced",
        ),
        (("--logit_adjustment", 1e18), "--logit_adjustment 1e+18: must be at most 10"),
        (
            ("--streaming", "--max_train_samples", "none", "--max_eval_samples", "none", "--logit_adjustment", 1),
            "--logit_adjustment: a stream does not say how many images",
        ),
        (("--augment", "flip", "--augment_magnitude", 20), "--augment_magnitude: is for --augment rand"),
        (("--until", "accuracy=98"), "--until accuracy=98: accuracy never reaches 98"),
        (("--until", "loss=nan"), "--until loss=nan: loss never reaches nan"),
        (
            ("--layer_decay", 0.5, "--lr_scheduler_type", "OneCycleLR", "--lr_scheduler_kwargs", "max_lr=0.01"),
            "--layer_decay: max_lr or base_lr would give all layers one rate",
        ),
        (("--freeze", "backbone", "--folds", 99), "--folds 99: there are 48 different training images"),
        (
            ("--freeze", "backbone", "--folds", 3, "--learning_rate", 1e38, "--optim", "sgd", "--max_grad_norm", 0),
            "--folds: ",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(flags, message, tmp_path, capsys):
    assert run_here(*DEBUG, *flags, "--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--class_weights", "balanced", "--sampler", "balanced"), "rare classes count twice over"),
        (("--ema", 0.999), "warning: --ema 0.999 averages over more updates than the 2 of this run"),
        (("--early_stopping_patience", 3), "--early_stopping_patience 3 cannot end this run early"),
        (("--sampler", "balanced", "--augment", "flip"), "training images: every class drawn equally often; aug"),
        (("--eval_steps", "epoch"), "--save_steps epoch: as --eval_steps"),
    ],
)
def test_what_may_surprise_is_said(flags, message, tmp_path, capsys):
    assert run_here(*DEBUG, *flags, "--output_dir", tmp_path / "run") == 0
    assert message in capsys.readouterr().out


def test_an_early_end_may_be_changed_by_a_resume(tmp_path, capsys):
    flags = ("--preset", "debug", "--eval_steps", 2, "--save_steps", 2, "--output_dir", tmp_path / "run")
    assert run_here(*flags, "--until", "loss=100") == 0
    assert "ended after update 2 of 12" in capsys.readouterr().out
    again = ("--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto")
    assert run_here(*again) == 0
    assert "ended after update 2 of 12" in capsys.readouterr().out
    # Killed after the record has the new value, but before a checkpoint has: as if it were asked for again.
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["config"]["until"] = "loss=0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert run_here(*again, "--until", "loss=0") == 0
    assert "update 12/12" in capsys.readouterr().out


def test_what_only_training_does_is_refused_beside_eval_only(tmp_path, capsys):
    flags = ("--preset", "debug", "--model", tmp_path, "--dataset", "builtin:leaves", "--eval_only")
    for given in (("--mixup", 0.2), ("--until", "loss=1"), ("--folds", 3), ("--ema", 0.9)):
        assert run_here(*flags, *given) == 2
        assert f"--eval_only: trains nothing, so {given[0]} has no meaning beside it" in capsys.readouterr().err


def test_a_head_alone_has_a_rate_and_a_length_that_suit_it():
    def recipe(*flags):
        config = parse(["--dataset", "x", "--freeze", "backbone", *flags])
        return (notes := check_flags(config)) and notes[0], config.recipe.learning_rate, config.recipe.num_train_epochs

    note, *found = recipe()
    assert "--learning_rate 0.002 --num_train_epochs 20, which suits a head alone" in note and found == [0.002, 20.0]
    note, *found = recipe("--learning_rate", "1e-3")
    assert "--freeze backbone: --num_train_epochs 20, which" in note and found == [1e-3, 20.0]
    assert recipe("--learning_rate", "1e-3", "--num_train_epochs", "4") == ([], 1e-3, 4.0)
    note, *found = recipe("--augment", "flip")
    assert "not set, as augmentation changes the images in every epoch" in note and found == [2e-4, 4.0]
    assert recipe("--preset", "debug") == ([], 1e-3, 2.0)


def test_few_images_are_trained_on_for_more_epochs(tmp_path, capsys):
    few = ("--preset", "debug", "--min_steps", 20, "--output_dir", tmp_path / "run")
    assert run_here(*few) == 0
    assert "length: 20 updates, 3.33 epochs, as --min_steps says; 2 epochs would be fewer" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_updates"] == 20


def test_a_length_of_ones_own_replaces_that_of_the_preset():
    for flags, length in ((["--num_train_epochs", "1"], (1.0, -1, 0)), (["--max_steps", "7"], (4.0, 7, 0))):
        config = parse(["--preset", "best", *flags])
        recipe = config.recipe
        assert (recipe.num_train_epochs, recipe.max_steps, recipe.min_steps) == length
        assert f"--min_steps 160: left out, as you named {flags[0]}" in config.notes
    assert parse(["--preset", "best", "--num_train_epochs", "1", "--min_steps", "9"]).recipe.min_steps == 9


def test_a_typed_length_replaces_that_of_a_file_and_one_repeated_in_a_resume_nothing(tmp_path):
    out = tmp_path / "run"
    assert run_here("--preset", "debug", "--min_steps", 8, "--stop_after", 1, "--output_dir", out) == 0
    recipe = parse([str(out / "config.yaml"), "--max_steps", "5", "--output_dir", str(tmp_path / "other")]).recipe
    assert (recipe.max_steps, recipe.min_steps) == (5, 0)
    again = ("--output_dir", out, "--resume_from_checkpoint", "auto", "--num_train_epochs", 2)
    assert run_here(*again) == 0
    assert json.loads((out / "run.json").read_text())["total_updates"] == 12


def test_the_presets_adjustment_gives_way_where_it_cannot_be_used():
    for flags in (["--sampler", "balanced"], ["--streaming", "--max_steps", "9"]):
        config = parse(["--preset", "best", "--dataset", "x", *flags])
        assert config.augment.logit_adjustment == 0
        assert any("--logit_adjustment 1 of the preset: left out, as" in note for note in config.notes)


def test_none_takes_back_what_a_preset_or_a_file_sets(tmp_path):
    (tmp_path / "flags.yaml").write_text("ema: 0.9\nclass_weights: balanced\nuntil: accuracy=0.9\nimage_size: 64\n")
    off = {"logit_adjustment": 0.0, "label_smoothing": 0.0, "min_steps": 0}
    config = parse(["--preset", "best", *(f"--{name}=none" for name in off)])
    assert {name: config.flat()[name] for name in off} == off
    names = ("ema", "class_weights", "until", "image_size", "random_resized_crop", "freeze", "early_stopping_patience")
    config = parse([str(tmp_path / "flags.yaml"), *(f"--{name}=none" for name in names)])
    assert [config.flat()[name] for name in names] == [None] * len(names)
    assert parse(["--train_dir", "none", "--dataset", "x"]).data.train_dir == "none"  # a folder may have that name
