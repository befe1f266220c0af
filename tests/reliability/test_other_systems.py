"""A Python without what Windows and macOS lack: the same bits, after a kill, with spawned workers and the disk cache.

No such system could be had. Removed are the names below, links, and opening a folder; processes are spawned. The
libraries run on Linux all the same.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.running import ROOT

pytestmark = pytest.mark.reliability

CRIPPLED = """
import multiprocessing, os, signal, sys
import filelock  # has another way on Windows, and none that this file could take from Linux
sys.modules["fcntl"] = None
for module, names in (
    (os, ("posix_fallocate", "pwrite", "sched_getaffinity", "O_DIRECTORY", "fork", "forkpty")),
    (signal, ("SIGALRM", "setitimer", "ITIMER_REAL", "SIGSTOP", "SIGUSR1", "SIGHUP")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
def refuse(*_, **__):
    raise OSError("a required privilege is not held by the client")
os.symlink = refuse
plain = os.open
def opened(path, *rest, **options):
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return plain(path, *rest, **options)
os.open = opened
multiprocessing.set_start_method("spawn", force=True)
"""
FLAGS = [
    "--preset",
    "debug",
    "--max_steps",
    "12",
    "--eval_steps",
    "3",
    "--save_steps",
    "3",
    "--max_train_samples",
    "24",
]


@pytest.fixture
def crippled(tmp_path):
    """The environment of such a Python."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CRIPPLED)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}


def command(*flags):
    return [sys.executable, "-m", "train.main", *map(str, flags)]


def run(*flags, **environment):
    done = subprocess.run(
        command(*flags), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_and_resumed_with_spawned_workers_it_ends_in_the_same_bits(crippled, tmp_path):
    loading = ["--image_cache", "none", "--dataloader_num_workers", "2", "--cache_dir", tmp_path / "cache"]
    run(*FLAGS, *loading, "--output_dir", tmp_path / "whole")
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        command(*FLAGS, *loading, "--output_dir", tmp_path / "run"),
        **{"cwd": ROOT, "env": os.environ | crippled, "stdout": log, "stderr": subprocess.STDOUT},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint-3").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = run("--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto", **crippled)
    assert "a power cut may cost the last save" in (tmp_path / "log").read_text() and "resume: from" in said
    assert not (tmp_path / "run/best").is_symlink()
    assert (tmp_path / "run/best").read_text() == str((tmp_path / "whole/best").readlink())
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_with_the_disk_cache_it_ends_in_the_same_bits(crippled, tmp_path):
    for name, environment in (("whole", {}), ("run", crippled), ("again", crippled)):
        cache = tmp_path / ("cache" if environment else "other")
        run(*FLAGS, "--image_cache", "disk", "--cache_dir", cache, "--output_dir", tmp_path / name, **environment)
    bits = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run", "again")}
    assert len(bits) == 1
