"""A Python without what Windows and macOS lack: the same bytes as with it. Emulated on Linux, not run there."""

import os
import signal
import subprocess
import sys

import pytest

from tests.reliability.harness import wait_for
from tests.running import ROOT, run_process
from train.checkpoint.folder import list_checkpoints

DEBUG = ("--preset", "debug", "--dataloader_timeout", 60)

# Run before the program, in its workers, too. What only libraries need here, they keep: their Windows code is another.
# filelock has imported fcntl (on Windows: LockFileEx), torch and the like have what they look for at import, and torch
# and multiprocessing keep their view of the module signal, because they watch and kill processes differently there.
LACKING = """
import sys
if "resource_tracker" not in " ".join(sys.orig_argv):
    import fcntl, multiprocessing, multiprocessing.popen_fork, multiprocessing.popen_spawn_posix, os, shutil, signal
    import types
    import datasets, filelock, torch, torch.utils.data
    if "--multiprocessing-fork" not in sys.orig_argv:  # a worker needs no more, and starts sooner
        import torch._dynamo, torch.distributed.elastic.multiprocessing, torch.utils.tensorboard, torchmetrics
        from transformers import ViTForImageClassification
    from torch.utils.data._utils import signal_handling

    multiprocessing.popen_fork.signal = signal_handling.signal = types.SimpleNamespace(**vars(signal))
    for name in ("SIGALRM", "SIGKILL", "SIGCHLD", "SIGSTOP", "setitimer", "ITIMER_REAL", "alarm"):
        delattr(signal, name)
    access = fcntl.F_GETFL, os.O_ACCMODE
    get_flags, open_, fsync = fcntl.fcntl, os.open, os.fsync
    for name in ("posix_fallocate", "pwrite", "register_at_fork", "fork", "sched_getaffinity", "O_DIRECTORY", "killpg"):
        delattr(os, name)
    sys.modules["fcntl"] = None
    shutil._use_fd_functions = False  # as on Windows: it would open folders

    def open_files_only(path, flags, mode=0o777, **options):
        if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return open_(path, flags, mode, **options)

    def flush_what_may_be_written(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if get_flags(number, access[0]) & access[1] == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        fsync(number)

    def no_link(*arguments, **options):
        raise OSError(22, "A required privilege is not held by the client")

    os.open, os.fsync, os.symlink = open_files_only, flush_what_may_be_written, no_link
    multiprocessing.set_start_method("spawn")
"""


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """The environment of a process that runs on such a Python."""
    folder = tmp_path_factory.mktemp("lacking")
    (folder / "sitecustomize.py").write_text(LACKING)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bytes of the model that the whole Python trains."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run_process(*DEBUG, "--output_dir", out).returncode == 0
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, lacking):
    """A run of the debug preset, and what it printed."""
    out = tmp_path_factory.mktemp("lacking-runs") / "run"
    done = run_process(*DEBUG, "--output_dir", out, env=lacking)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_debug_preset_ends_in_the_same_bytes_and_says_once_what_is_lost(finished, expected):
    out, said = finished
    assert (out / "model.safetensors").read_bytes() == expected
    assert said.count("warning: folders cannot be flushed") == said.count("warning: links cannot be made") == 1
    assert not list(out.glob(".tmp-*"))


def test_best_without_links_is_followed_wherever_a_folder_is_named(finished, lacking):
    out, _ = finished
    best = out / "best"
    assert best.is_file() and not best.is_symlink()
    assert (out / best.read_text().strip() / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()
    done = run_process("--preset", "debug", "--model", best, "--eval_only", env=lacking)
    assert done.returncode == 0, done.stderr
    again = run_process("--resume_from_checkpoint", best, env=lacking)
    assert again.returncode == 0 and "resume" not in again.stderr, again.stderr


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, lacking, expected):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "train.main", *map(str, DEBUG), "--output_dir", str(out)]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, env=os.environ | lacking, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(lambda: (out / "run.json").exists() and list_checkpoints(out), 120)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    done = run_process("--output_dir", out, "--resume_from_checkpoint", "auto", env=lacking)
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    "flags",
    [
        ("--image_cache", "none", "--dataloader_num_workers", 2),
        ("--image_cache", "disk", "--dataloader_num_workers", 1),
    ],
    ids=["workers", "cache"],
)
def test_spawned_workers_and_the_disk_cache_change_no_byte(flags, tmp_path, lacking, expected):
    flags = (*DEBUG, *flags)
    done = run_process(
        *flags, "--cache_dir", tmp_path / "hub", "--output_dir", tmp_path / "run", env=lacking, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "warning: DataLoader" not in done.stdout
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == expected


def test_one_process_at_a_time_and_the_lock_dies_with_it(tmp_path, lacking):
    out = tmp_path / "run"
    out.mkdir()
    code = (
        "import pathlib, sys, time\nfrom train.system.lock import Lock\n"
        "lock = Lock(); lock.take(pathlib.Path(sys.argv[1])); print('taken', flush=True); time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    owner = subprocess.Popen(command, env=os.environ | lacking, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "taken\n"
        refused = run_process(*DEBUG, "--output_dir", out, env=lacking)
        assert refused.returncode == 2 and "another process is writing in it" in refused.stderr
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert run_process(*DEBUG, "--output_dir", out, env=lacking).returncode == 0
