"""--seeds and --sweep: what is refused before anything is written, and real series in real processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import ROOT, records, run_here, run_process, same_tensors, weights
from train.commands.compare import main as compare
from train.config.cli import parse
from train.errors import ConfigError
from train.recipes.grid import make_grid, parse_seeds, parse_sweep

SHORT = (
    *("--preset", "debug", "--max_eval_samples", 12, "--max_train_samples", 24, "--max_steps", 2, "--eval_steps", 1),
    *("--save_steps", 1),
)


def grid(*flags):
    arguments = ["--preset", "debug", "--output_dir", "nowhere", *flags]
    return make_grid(arguments, parse(arguments))


def test_every_combination_has_every_seed():
    sweep = "learning_rate=1e-4,2e-4,weight_decay=0,0.01"
    assert parse_sweep(sweep) == {"learning_rate": ["1e-4", "2e-4"], "weight_decay": ["0", "0.01"]}
    starts = grid("--seeds", "7,8", "--sweep", sweep, "--max_steps", "3")
    assert [start.name for start in starts] == [
        f"learning_rate={rate},weight_decay={decay},seed-{seed}"
        for rate in ("1e-4", "2e-4")
        for decay in ("0", "0.01")
        for seed in (7, 8)
    ]
    last = starts[-1].flags
    assert (last["learning_rate"], last["weight_decay"], last["seed"], last["max_steps"]) == (2e-4, 0.01, 8, 3)
    assert {start.flags["split_seed"] for start in starts} == {42}  # all are judged on the same images


def test_what_is_off_by_default_is_swept_with_none():
    starts = grid("--sweep", "class_weights=none,balanced,ema=none,0.5")
    found = [(start.flags["class_weights"], start.flags["ema"]) for start in starts]
    assert found == [(None, None), (None, 0.5), ("balanced", None), ("balanced", 0.5)]


def test_a_split_seed_of_ones_own_is_kept_and_without_seeds_there_is_none():
    assert grid("--seeds", "7,8", "--split_seed", "5")[0].flags["split_seed"] == 5
    assert grid("--sweep", "learning_rate=1,2", "--seed", "9")[1].flags["split_seed"] is None


def test_folders_have_names_that_every_file_system_takes(tmp_path):
    names = [start.name for start in grid("--sweep", "model=google/vit:base*,C:\\models\\x. ")]
    assert names == ["model=google_vit_base_", "model=C__models_x"]
    (long,) = [start.name for start in grid("--sweep", f"model={'ü' * 200}")]
    (tmp_path / long).mkdir()
    assert len(long.encode()) < 200


@pytest.mark.parametrize("text", ["", "1,", "1,x", "-1", "1,1", "1.5", "1,01"])
def test_seeds_are_different_whole_numbers(text):
    with pytest.raises(ConfigError, match=r"^--seeds .*must be different whole numbers"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sweep", "learning_rate=1e-4,-1"), "learning_rate=-1: --learning_rate -1.0: must be"),
        (("--sweep", "learning_rate=1e-4,fast"), "learning_rate=fast: --learning_rate"),
        (("--sweep", "optim=adamw,adamv"), "optim=adamv: --optim adamv"),
        (("--sweep", "eval_steps=1,4", "--save_steps", 6), "eval_steps=4: --save_steps 6"),
        (("--sweep", "lerning_rate=1"), "did you mean --learning_rate"),
        (("--sweep", "1e-4,2e-4"), "must look like"),
        (("--sweep", "learning_rate="), "must look like"),
        (("--sweep", "learning_rate=1,learning_rate=2"), "names learning_rate twice"),
        (("--sweep", "learning_rate=1e-4,0.0001"), "is there twice"),
        (("--sweep", "learning_rate=1", "--sweep", "weight_decay=0,1"), "--sweep: is there twice; name all values"),
        (("--sweep", "seed=1,2"), "name the seeds in --seeds"),
        (("--sweep", "dataset=a,b"), "judged on different images"),
        (("--sweep", "output_dir=a,b"), "nothing to compare"),
        (("--sweep", "device=cpu,auto"), "nothing to compare"),
        (("--sweep", "preset=debug,leaves"), "start one run for each"),
        (("--sweep", "until=accuracy=1"), "start one run for each"),
        (("--sweep", "precision=auto,fp32"), "auto chooses one of the others"),
        (("--sweep", "class_weights=none,a=2"), "values that have commas cannot be swept"),
        (("--sweep", "label_smoothing=0,0.2", "--label_smoothing", "0.1"), "--label_smoothing: is swept as well"),
        (("--sweep", "optim_args=momentum=0.9"), "one run for each"),
        (("--seeds", "1,2", "--seed", "3"), "--seed 3: leave it out"),
        (("--seeds", "1,2", "--eval_only"), "--eval_only: has no meaning"),
        (("--seeds", "1,2", "--stop_after", "1"), "--stop_after: has no meaning"),
        (("--seeds", "1,2", "--resume_from_checkpoint", "x"), "there is no such folder"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(tmp_path, flags, message, capsys):
    assert run_here("--preset", "debug", "--output_dir", tmp_path / "out", *flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and message in said.err
    assert not list(tmp_path.iterdir())


def test_folder_file_and_torchrun_are_checked(tmp_path, capsys, monkeypatch):
    assert run_here("--preset", "debug", "--seeds", "1,2") == 2
    assert "--output_dir: name one beside --seeds" in capsys.readouterr().err
    (tmp_path / "note.txt").write_text("mine")
    assert run_here("--preset", "debug", "--seeds", "1,2", "--output_dir", tmp_path) == 2
    assert "holds something else than a series" in capsys.readouterr().err
    (tmp_path / "flags.yaml").write_text("preset: debug\nseeds: 1,2\noutput_dir: nowhere\n")
    assert run_here(tmp_path / "flags.yaml") == 2
    assert "belongs on the command line" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="leave torchrun out"):
        parse(["--preset", "debug", "--seeds", "1,2", "--output_dir", "nowhere"])


@pytest.mark.slow
def test_seeds_train_once_and_are_compared(tmp_path, capfd):
    out = tmp_path / "out"
    (tmp_path / "flags.yaml").write_text("preset: debug\nseed: 5\nmax_train_samples: 24\n")
    arguments = (tmp_path / "flags.yaml", *SHORT[2:], "--seeds", "42,43", "--output_dir", out)
    assert run_here(*arguments) == 0
    said = capfd.readouterr().out
    assert "run 1 of 2, seed-42: starts" in said and "run 2 of 2, seed-43: starts" in said
    table = said[said.index("judged on the same 12") : said.index("compare again:")]
    assert "all runs  2      " in table
    for seed in (42, 43):
        assert json.loads((out / f"seed-{seed}" / "run.json").read_text())["config"]["seed"] == seed
    assert not same_tensors(weights(out / "seed-42"), weights(out / "seed-43"))
    assert compare([str(out)]) == 0
    assert capfd.readouterr().out == table

    assert run_here(*arguments) == 0  # again: nothing is left to do
    said = capfd.readouterr().out
    assert said.count("is finished already") == 2 and "starts" not in said and table in said
    assert run_here(*arguments, "--learning_rate", "0.5") == 2
    assert "learning_rate was 0.001, is now 0.5; name another --output_dir" in capfd.readouterr().err
    assert run_here("--output_dir", out / "seed-43", "--resume_from_checkpoint", "auto") == 0  # it is a run like others


# -- stopped, killed, failed -------------------------------------------------------------------------------

LONG = (*SHORT[:6], "--max_steps", 40, "--eval_steps", 5, "--save_steps", 5, "--logging_steps", 1)


def start(*flags):
    command = [sys.executable, "-m", "train.main", *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_update(folder, update):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (folder / "metrics.jsonl").exists() and f'"step": {update},' in (folder / "metrics.jsonl").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} did not reach update {update}")


def child_of(process):
    """The process that trains."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_process(*LONG, "--seeds", "42,43", "--output_dir", out).returncode == 0
    return out


def assert_ends_the_same(out, undisturbed):
    for seed in ("seed-42", "seed-43"):
        assert same_tensors(weights(out / seed), weights(undisturbed / seed))
        assert (out / seed / "predictions.csv").read_text() == (undisturbed / seed / "predictions.csv").read_text()
        assert records(out / seed) == records(undisturbed / seed)


@pytest.mark.reliability
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_that_trains_and_the_printed_command_continues(tmp_path, undisturbed, number, code):
    out = tmp_path / "out"
    process = start(*LONG, "--seeds", "42,43", "--output_dir", out)
    wait_for_update(out / "seed-43", 7)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "stopped in run 2 of 2, seed-43; to continue: plainloop train " in said
    assert list((out / "seed-43").glob("checkpoint-*")) and not (out / "seed-43" / "predictions.csv").exists()
    command = next(line for line in said.splitlines() if line.startswith("stopped in run 2")).partition(" train ")[2]
    again = run_process(*shlex.split(command))
    assert again.returncode == 0, again.stderr
    assert "seed-42: is finished already" in again.stdout and "seed-43: continues" in again.stdout
    assert_ends_the_same(out, undisturbed)


@pytest.mark.reliability
def test_a_run_that_is_killed_fails_the_series_which_then_goes_on(tmp_path, undisturbed):
    out = tmp_path / "out"
    flags = (*LONG, "--seeds", "42,43", "--output_dir", out)
    process = start(*flags)
    wait_for_update(out / "seed-42", 12)
    os.kill(child_of(process), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "run 1 of 2, seed-42: was ended by SIGKILL; to continue: " in said
    assert run_process(*flags).returncode == 0
    assert_ends_the_same(out, undisturbed)


@pytest.mark.reliability
def test_a_series_whose_own_process_is_killed_goes_on(tmp_path, undisturbed):
    out = tmp_path / "out"
    flags = (*LONG, "--seeds", "42,43", "--output_dir", out)
    process = start(*flags)
    wait_for_update(out / "seed-42", 12)
    child = child_of(process)
    process.kill()
    if sys.platform != "linux":
        os.kill(child, signal.SIGKILL)  # on Linux it ends by itself
    process.communicate(timeout=60)  # until nobody holds the pipe any more
    assert run_process(*flags).returncode == 0
    assert_ends_the_same(out, undisturbed)


@pytest.mark.reliability
def test_a_run_that_fails_ends_the_series_with_its_exit_code(tmp_path):
    found = run_process(*SHORT, "--dataset", tmp_path / "none", "--seeds", "42,43", "--output_dir", tmp_path / "out")
    assert found.returncode == 2 and "run 1 of 2, seed-42: failed, as said above" in found.stderr
    assert found.stderr.count("error:") == 2
    # Nothing was trained, so the flag may be corrected.
    assert run_process(*SHORT, "--seeds", "42", "--output_dir", tmp_path / "out").returncode == 0
