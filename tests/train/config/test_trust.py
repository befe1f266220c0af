"""A record or a file of flags is data: it imports nothing, and whatever stands in it is at worst one line."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests.running import run_here, run_process
from train.checkpoint.manifest import read_manifest, write_manifest
from train.config.cli import parse
from train.errors import ConfigError
from train.system.lock import Lock

CODE = "import pathlib, torch\npathlib.Path(__file__).with_name('ran').touch()\nclass Mine(torch.optim.SGD): pass\n"
AGAIN = ("--resume_from_checkpoint", "auto")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported; its path."""
    (tmp_path / "somebodys.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "ran"
    sys.modules.pop("somebodys", None)


def test_a_record_or_a_file_that_names_code_does_not_run_it(module, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_here("--preset", "debug", "--stop_after", 2, "--output_dir", out) == 0
    record = json.loads((out / "run.json").read_text())
    record["config"]["optim"] = "somebodys:Mine"
    (out / "run.json").write_text(json.dumps(record))
    (tmp_path / "flags.yaml").write_text("preset: debug\noptim: somebodys:Mine\n")
    for flags in (("--output_dir", out, *AGAIN), (tmp_path / "flags.yaml",)):
        capsys.readouterr()
        assert run_here(*flags) == 2
        assert "if you trust it, add --optim somebodys:Mine" in capsys.readouterr().err
    assert not module.exists()


def test_the_command_that_a_run_prints_names_its_own_classes_again(module, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ("--preset", "debug", "--output_dir", out, "--optim", "somebodys:Mine", "--learning_rate", "0.01")
    assert run_here(*flags, "--stop_after", 2) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "to continue: " in line)
    assert run_here(*shlex.split(line.split("to continue: ")[1])[2:]) == 0
    assert module.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", [1]),
        ("learning_rate", {"a": 1}),
        ("learning_rate", True),
        ("max_steps", "many"),
        ("max_steps", 1.5),
        ("seed", "HUGE"),
        ("preset", ["debug"]),
        ("preset", 3),
        ("fsdp", "perhaps"),
        ("precision", "fp8"),
        ("dataset", 7),
        ("lr_scheduler_kwargs", {"a": [1]}),
        ("dataloader_num_workers", -1),
    ],
    ids=str,
)
def test_a_wrong_type_in_a_record_is_one_line(name, value, tmp_path, capsys):
    text = json.dumps({"config": {"preset": "debug", name: value}, "total_updates": 12, "run_id": "x"})
    text = text.replace('"HUGE"', "9" * 5000)
    (tmp_path / "run.json").write_text(text)
    assert run_here("--output_dir", tmp_path, *AGAIN) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert run_here("--preset", "debug", "--stop_after", 3, "--output_dir", folder) == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"},
        {"step": -1},
        {"step": True},
        {"step": 10**30},
        {"skipped": 1.5},
        {"loss_total": "much"},
        {"loss_total": None},
        {"best": None},
        {"best": {"value": "x", "step": 2}},
        {"best": {"value": 0.5, "step": "../../x"}},
        {"best": {"value": 0.5, "step": 10**9}},
        {"log_bytes": -5},
        {"log_bytes": "all"},
        {"seconds": [1]},
        {"seconds": {"data": "long"}},
        {"scheduler": {"steps": 10**15}},
        {"scheduler": {"steps": "many"}},
        {"scheduler": []},
        {"scaler": 3},
        {"optimizer": None},
        {"optimizer": {"class": "AdamW", "groups": [], "scalars": {}}},
        {"optimizer": {"class": "AdamW", "groups": [{}, {}], "scalars": {"900.step": 1}}},
        {"optimizer": {"class": "AdamW", "groups": [{"lr": "x"}, {"lr": "x"}], "scalars": {}}},
        None,
        [],
        "RemovedStep",
    ],
    ids=str,
)
def test_a_state_that_no_run_wrote_is_one_line_however_well_it_is_sealed(change, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    checkpoint = out / "checkpoint-3"
    document = json.loads((checkpoint / "state.json").read_text())
    if isinstance(change, dict):
        document |= change
    elif change == "RemovedStep":
        del document["step"]
    else:
        document = change
    (checkpoint / "state.json").write_text(json.dumps(document))
    manifest = read_manifest(checkpoint)
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, manifest["run_id"], manifest["step"], manifest["identity"])
    capsys.readouterr()
    assert run_here("--output_dir", out, *AGAIN) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "checkpoint-3" in error


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: 1\nseed: 2\n", "names seed twice"),
        (BOMB, "holds an alias"),
        ("lr_scheduler_kwargs: &x [*x]\n", "holds an alias"),
        ("seed: " + "9" * 5000 + "\n", "--seed"),
        ("lr_scheduler_kwargs: {a: 2026-01-01}\n", "is not YAML"),
        ("? [a, b]\n: 1\n", "no such flag"),
        ("[" * 1000, "is not YAML"),
        ("optim: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        ("", "must hold lines"),
        ("seed: 1\n---\nseed: 2\n", "is not YAML"),
    ],
    ids=lambda value: value[:24],
)
def test_a_strange_file_is_one_line(content, said, tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text(content)
    assert run_here(tmp_path / "flags.yaml", "--preset", "debug") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_values_in_a_file_are_what_is_written(tmp_path):
    """YAML itself would make False of `off`, an octal number of 010, and a date of the third."""
    (tmp_path / "flags.yaml").write_text("preset: debug\ntorch_compile: off\nseed: 010\nmodel: 2026-01-01\nfsdp: no\n")
    config = parse([str(tmp_path / "flags.yaml")])
    assert (config.run.torch_compile, config.run.seed, config.model.model) == ("off", 10, "2026-01-01")
    assert config.run.fsdp is False


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "foo", "MASTER_ADDR": "localhost"}, "WORLD_SIZE='foo' in the environment: must be a number"),
        ({"TORCHELASTIC_RESTART_COUNT": "-1"}, "must be a number"),
        ({"PYTHONOPTIMIZE": "2"}, "PYTHONOPTIMIZE=2 (python -OO) is not supported"),
    ],
    ids=["WORLD_SIZE", "restarts", "OO"],
)
def test_an_environment_in_which_nothing_can_run_is_one_line(environment, said):
    done = run_process("--preset", "debug", env=environment)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_forked_worker_does_not_keep_the_folder_locked(tmp_path):
    """The owner is killed while a child that it forked lives on."""
    code = (
        "import os, sys, time, pathlib\n"
        "from train.system.lock import Lock\n"
        f"lock = Lock(); lock.take(pathlib.Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60); os._exit(0)\n"
        "print(child, flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    try:
        with Lock() as other, pytest.raises(ConfigError, match="another process"):
            other.take(tmp_path)
        owner.kill()
        owner.wait()
        os.kill(child, 0)  # it lives
        time.sleep(0.1)
        with Lock() as other:
            other.take(tmp_path)
    finally:
        os.kill(child, 9)
        owner.stdout.close()
