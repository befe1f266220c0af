"""A run that was stopped and resumed ends in the same bits as one that was not."""

import json
import shutil

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.running import TIMES, records, run_here, same_tensors, weights
from train.checkpoint.folder import list_checkpoints

SHORT = ("--preset", "debug", "--save_total_limit", 9)


def final_state(folder):
    checkpoint = list_checkpoints(folder)[0][1]
    state = json.loads((checkpoint / "state.json").read_text())
    state.pop("seconds")
    state.pop("log_bytes")  # the lines of evaluations hold times of different length
    return state


@pytest.mark.parametrize(
    ("stops", "first_workers", "then_workers", "accumulation"),
    [([4], 0, 0, 1), pytest.param([1, 4, 5], 0, 2, 1, marks=pytest.mark.slow), ([3], 2, 0, 3), ([2], 2, 1, 2)],
)
def test_weights_state_and_log_equal_those_of_an_unbroken_run(
    tmp_path, stops, first_workers, then_workers, accumulation
):
    flags = (*SHORT, "--gradient_accumulation_steps", accumulation, "--eval_steps", 2, "--save_steps", 2)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_here(*flags, "--output_dir", unbroken) == 0
    assert (
        run_here(*flags, "--output_dir", broken, "--dataloader_num_workers", first_workers, "--stop_after", stops[0])
        == 0
    )
    again = ("--output_dir", broken, "--resume_from_checkpoint", "auto", "--dataloader_num_workers", then_workers)
    for stop in stops[1:]:
        assert run_here(*again, "--stop_after", stop) == 0
    assert run_here(*again) == 0
    assert same_tensors(weights(unbroken), weights(broken))
    assert final_state(unbroken) == final_state(broken)
    assert records(unbroken) == records(broken)


def test_a_last_batch_of_one_image_and_many_classes_is_resumed_to_the_bit(tmp_path):
    """BLAS multiplies a matrix by one vector in an order that depends on where in memory the matrix begins."""
    data = tmp_path / "data"
    for index in range(17):
        for split in ("train", "validation"):
            image = data / split / f"class {index % 8}" / f"{index}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((64, 64), 99 + index).convert("RGB").save(image)
    flags = (*SHORT, "--dataset", data, "--per_device_train_batch_size", 8, "--max_steps", 9)
    flags = (*flags, "--eval_steps", 3, "--save_steps", 3, "--learning_rate", 1e-3)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_here(*flags, "--output_dir", unbroken) == 0
    assert run_here(*flags, "--output_dir", broken, "--stop_after", 3) == 0
    assert run_here("--output_dir", broken, "--resume_from_checkpoint", "auto") == 0
    assert same_tensors(weights(unbroken / "checkpoint-9"), weights(broken / "checkpoint-9"))


def test_lines_written_after_the_checkpoint_are_written_once(tmp_path):
    """As after a kill: the log is ahead of the newest checkpoint."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_here(*SHORT, "--output_dir", unbroken) == 0
    shutil.copytree(unbroken, broken, symlinks=True)
    shutil.rmtree(broken / "checkpoint-12")
    with (broken / "metrics.jsonl").open("a") as log:
        log.write('{"step": 12, "half a li')
    assert run_here("--output_dir", broken, "--resume_from_checkpoint", "auto") == 0
    assert records(unbroken) == records(broken)
    assert same_tensors(weights(unbroken), weights(broken))


def test_an_earlier_checkpoint_can_be_named(tmp_path):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out) == 0
    before = weights(out)
    assert run_here("--resume_from_checkpoint", out / "checkpoint-6") == 0
    assert same_tensors(before, weights(out))
    assert [line["step"] for line in records(out) if "loss" in line] == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_resumed_stays_as_it_is(tmp_path):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out) == 0
    before = (weights(out), records(out))
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
    assert same_tensors(before[0], weights(out)) and before[1] == records(out)


def test_auto_starts_a_run_that_is_not_there_and_says_so(tmp_path, capsys):
    flags = (*SHORT, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto")
    assert run_here(*flags, "--stop_after", 2) == 0
    assert "no run to continue yet" in capsys.readouterr().out
    assert run_here(*flags) == 0
    assert "resume: from" in capsys.readouterr().out


def test_auto_without_a_folder_takes_the_newest_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(*SHORT, "--stop_after", 2) == 0
    said = capsys.readouterr().out
    assert "stopped after update 2 of 12; to continue: plainloop train --output_dir runs/leaves-" in said
    assert run_here("--resume_from_checkpoint", "auto") == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--seed", 7), "seed was 42, is now 7"),
        (("--per_device_train_batch_size", 4), "per_device_train_batch_size was 8, is now 4"),
        (("--learning_rate", 0.5), "learning_rate was 0.001, is now 0.5"),
        (("--optim", "sgd"), "optim was adamw, is now sgd"),
        (("--max_train_samples", 24), "dataset_fingerprint was"),
        (("--num_train_epochs", 3), "num_train_epochs was 2.0, is now 3.0"),
        (("--precision", "fp64"), "precision was fp32, is now fp64"),
    ],
)
def test_another_run_is_refused_with_the_difference_and_nothing_is_lost(tmp_path, capsys, change, said):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out, "--stop_after", 2) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto", *change) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_what_does_not_change_bits_may_change(tmp_path):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out, "--stop_after", 2) == 0
    again = ("--output_dir", out, "--resume_from_checkpoint", "auto")
    assert run_here(*again, "--logging_steps", 3, "--save_total_limit", 1) == 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, capsys):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out) == 0
    good = weights(out)
    newest = out / "checkpoint-12" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    capsys.readouterr()
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
    said = capsys.readouterr().out
    assert "warning: " in said and "renamed to checkpoint-12.bad" in said and "from" in said
    assert same_tensors(good, weights(out)) and (out / "checkpoint-12.bad").is_dir()


def test_a_damaged_checkpoint_that_was_named_is_an_error(tmp_path, capsys):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out, "--stop_after", 2) == 0
    (out / "checkpoint-2" / "config.json").unlink()
    assert run_here("--resume_from_checkpoint", out / "checkpoint-2") == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 2
    assert "no checkpoint" in capsys.readouterr().err  # and not: from the beginning, as if nothing had been


def test_a_checkpoint_of_another_run_is_not_mixed_in(tmp_path, capsys):
    out = tmp_path / "run"
    assert run_here(*SHORT, "--output_dir", out, "--stop_after", 2) == 0
    assert run_here("--resume_from_checkpoint", out / "checkpoint-2", "--output_dir", tmp_path / "other") == 2
    assert "give it as --model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_may_grow_where_its_schedule_ignores_the_length_and_says_so(tmp_path, capsys):
    longer, grown = tmp_path / "longer", tmp_path / "grown"
    flags = (*SHORT, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 3)
    assert run_here(*flags, "--max_steps", 18, "--output_dir", longer) == 0
    assert run_here(*flags, "--max_steps", 12, "--output_dir", grown) == 0
    again = ("--output_dir", grown, "--resume_from_checkpoint", "auto")
    capsys.readouterr()
    assert run_here(*again, "--max_steps", 18) == 0
    assert "18 updates instead of 12, which this schedule allows" in capsys.readouterr().out
    assert same_tensors(weights(longer), weights(grown)) and records(longer) == records(grown)
    assert run_here(*again, "--max_steps", 6) == 2
    assert "18 updates are done, and now only 6 are asked for" in capsys.readouterr().err
    assert run_here(*again) == 0  # it is remembered


@pytest.mark.slow
def test_tensorboard_of_a_resumed_run_equals_that_of_an_unbroken_one(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run_here(*SHORT, "--output_dir", unbroken) == 0
    shutil.copytree(unbroken, broken, symlinks=True)
    shutil.rmtree(broken / "checkpoint-12")  # as if killed after update 12 was logged, but before it was saved
    assert run_here("--output_dir", broken, "--resume_from_checkpoint", "auto") == 0
    assert scalars(unbroken) == scalars(broken)


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not TIMES.search(tag)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
