"""Recipes that would change nothing, or change the same thing twice, are told before anything starts."""

import pytest

from tests.running import run_here

DEBUG = ("--preset", "debug", "--max_steps", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freeze", "backbone", "--layer_decay", 0.7), "--layer_decay: has no effect with --freeze backbone"),
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
    assert run_here(*again, "--until", "loss=0") == 0
    assert "update 12/12" in capsys.readouterr().out


def test_what_only_training_does_is_refused_beside_eval_only(tmp_path, capsys):
    flags = ("--preset", "debug", "--model", tmp_path, "--dataset", "builtin:leaves", "--eval_only")
    for given in (("--mixup", 0.2), ("--until", "loss=1"), ("--folds", 3), ("--ema", 0.9)):
        assert run_here(*flags, *given) == 2
        assert f"--eval_only: trains nothing, so {given[0]} has no meaning beside it" in capsys.readouterr().err
