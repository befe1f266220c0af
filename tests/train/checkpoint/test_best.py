"""The model at the top of a run's folder is the best one that is sound, or there is none."""

import json
import random
import shutil

import pytest

from tests.running import records, run_here, same_tensors, weights
from train.checkpoint.best import keep_sound_best
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import CheckpointError, read_manifest, verify, write_manifest
from train.errors import RunError
from train.evaluate import Metrics
from train.output.results import check_reevaluation
from train.state import Best

# More loss is "better" here, so that the best is one of the first checkpoints and not the newest.
FLAGS = (
    *("--preset", "debug", "--save_total_limit", 9, "--eval_steps", 2, "--save_steps", 2),
    *("--metric_for_best_model", "loss", "--greater_is_better", "true"),
)
AGAIN = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run_here(*FLAGS, "--output_dir", folder) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def by_loss(folder):
    """The updates that were evaluated, best first."""
    evaluated = {line["step"]: line["eval_loss"] for line in records(folder) if "eval_loss" in line}
    return sorted(evaluated, key=lambda step: (-evaluated[step], step))


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["flipped", "removed"])
def test_a_lost_best_is_said_and_the_next_best_is_exported(run, harm, capsys):
    first, second = by_loss(run)[:2]
    lost = run / f"checkpoint-{first}"
    if harm == "flipped":
        flip(lost / "model.safetensors", 5000)
    else:
        shutil.rmtree(lost)
    assert run_here("--output_dir", run, *AGAIN) == 0
    said = capsys.readouterr().out
    assert "the best checkpoint" in said and f"update {second} is the best one left" in said
    assert same_tensors(weights(run), weights(run / f"checkpoint-{second}"))
    assert (run / "best").resolve().name == f"checkpoint-{second}"
    assert json.loads((run / "trainer_state.json").read_text())["best_global_step"] == second
    assert (run / f"checkpoint-{first}.bad").is_dir() == (harm == "flipped")


def test_a_best_lost_while_training_goes_on_is_replaced_before_the_export(tmp_path, capsys):
    """Stopped, damaged, continued to the end: the later evaluations compare with what is left."""
    out = tmp_path / "run"
    assert run_here(*FLAGS, "--output_dir", out, "--stop_after", 6) == 0
    best = json.loads((out / "checkpoint-6" / "state.json").read_text())["best"]["step"]
    flip(out / f"checkpoint-{best}" / "config.json", 30)
    assert run_here("--output_dir", out, *AGAIN) == 0
    assert "renamed to" in capsys.readouterr().out
    chosen = (out / "best").resolve()
    verify(chosen)
    assert same_tensors(weights(out), weights(chosen))


def test_any_flipped_byte_of_the_best_is_noticed(run):
    draw, step = random.Random(0), by_loss(run)[0]
    checkpoint = run / f"checkpoint-{step}"
    whole = run / "whole"
    shutil.copytree(checkpoint, whole)
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    for _ in range(60):
        name = draw.choice(sorted(sizes))
        flip(checkpoint / name, draw.randrange(sizes[name]))
        best = Best("loss", True, 9.0, step)
        keep_sound_best(run, best, until=12)
        assert best.step != step, name
        shutil.rmtree(next(run.glob(f"{checkpoint.name}.bad*")))
        shutil.copytree(whole, checkpoint)


def test_where_every_checkpoint_is_lost_the_run_ends_with_1_and_exports_nothing(tmp_path, monkeypatch, capsys):
    """A disk that fails between the last update and the export."""
    out = tmp_path / "run"

    def lose_all_then_look(folder, best, until):
        for _, path in list_checkpoints(folder):
            shutil.rmtree(path)
        keep_sound_best(folder, best, until)

    monkeypatch.setattr("train.output.results.keep_sound_best", lose_all_then_look)
    assert run_here(*FLAGS, "--output_dir", out) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "every checkpoint of an evaluated model is lost" in last
    assert not (out / "model.safetensors").exists()


def test_a_run_whose_only_evaluated_checkpoint_is_lost_trains_on(tmp_path, capsys):
    out = tmp_path / "run"
    limits = ("--save_total_limit", 1, "--save_steps", 100)
    assert run_here(*FLAGS, *limits, "--output_dir", out, "--stop_after", 5) == 0
    shutil.rmtree(out / "checkpoint-2")
    assert run_here("--output_dir", out, *AGAIN) == 0
    assert "the next evaluation is the best so far" in capsys.readouterr().out
    assert (out / "best").resolve().name == "checkpoint-6"
    verify(out / "checkpoint-6")


def test_a_best_whose_re_evaluation_differs_from_the_log_is_not_exported(run, capsys):
    """Sealed anew, so that no digest shows it: the weights of another update under the name of the best."""
    order = by_loss(run)
    best, worst = (run / f"checkpoint-{step}" for step in (order[0], order[-1]))
    manifest = read_manifest(best)
    shutil.copy(worst / "model.safetensors", best)
    (best / "manifest.json").unlink()
    write_manifest(best, manifest["run_id"], manifest["step"], manifest["identity"])
    (run / "model.safetensors").unlink()
    assert run_here("--output_dir", run, *AGAIN) == 1
    assert "while training, and" in capsys.readouterr().err
    assert not (run / "model.safetensors").exists()


def test_a_rate_may_differ_by_one_image_of_the_smallest_class_and_a_loss_by_a_thousandth():
    metrics = Metrics({"loss": 0.5004, "accuracy": 0.9}, [[8, 2], [0, 10]], 20, 1.0)
    check_reevaluation(Best("loss", False, 0.5, 4), metrics)
    check_reevaluation(Best("accuracy", True, 0.95, 4), metrics)
    with pytest.raises(RunError, match=r"loss 0\.52 while"):
        check_reevaluation(Best("loss", False, 0.52, 4), metrics)
    with pytest.raises(RunError, match=r"accuracy 0\.6 while"):
        check_reevaluation(Best("accuracy", True, 0.6, 4), metrics)


def test_a_checkpoint_set_aside_is_not_read_again(run):
    flip(run / "checkpoint-12" / "state.json", 3)
    with pytest.raises(CheckpointError):
        verify(run / "checkpoint-12")
    assert run_here("--output_dir", run, *AGAIN) == 0
    assert (run / "checkpoint-12.bad").is_dir() and (run / "checkpoint-12").is_dir()
