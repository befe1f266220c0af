"""R12: workers that are killed, frozen, or crash."""

import os
import signal
from pathlib import Path

import pytest

from tests.reliability.harness import RUN, finish, outcome, start, wait_for
from tests.reliability.kills import unbroken
from tests.reliability.test_signals import PauseBefore

WORKERS = ("--dataloader_num_workers", 2, "--dataloader_timeout", 3)


def children(pid):
    """Process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return unbroken(tmp_path_factory.mktemp("workers"), 1)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV], ids=["killed", "frozen", "crashed"]
)
def test_a_worker_that_dies_or_freezes_is_replaced_and_the_bits_are_the_same(number, tmp_path, expected):
    out, log, flag = tmp_path / "run", tmp_path / "log", tmp_path / "flag"
    process = start((*RUN, *WORKERS, "--output_dir", out), PauseBefore("train.loop", "train_step", flag), log)
    wait_for(flag.exists)
    for child in children(process.pid):
        os.kill(child, number)
    assert finish(process, seconds=60) == 0, log.read_text()
    assert "the workers are replaced and continue at the same image" in log.read_text()
    assert outcome(out) == expected


class DieOnImage:
    """Run in the child: every worker that is given one image kills itself, as a codec's crash would."""

    def __init__(self, index):
        self.index = index

    def __call__(self):
        import torch.utils.data

        from data.loading.loader import Images

        original = Images.__getitems__

        def deadly(self_, samples):
            if any(index == self.index for _, index in samples) and torch.utils.data.get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self_, samples)

        Images.__getitems__ = deadly


def test_an_image_that_kills_every_worker_ends_the_run_with_one_line_and_a_way_on(tmp_path, expected):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start((*RUN, *WORKERS, "--output_dir", out), DieOnImage(15), log)
    assert finish(process, seconds=60) == 1
    last = log.read_text().splitlines()[-1]
    assert (
        last.startswith("error: update ") and "failed 3 times in a row" in last and "--dataloader_num_workers 0" in last
    )
    again = ("--output_dir", out, "--resume_from_checkpoint", "auto", "--dataloader_num_workers", 0)
    assert finish(start(again)) == 0
    assert outcome(out) == expected


def test_no_worker_outlives_its_run(tmp_path):
    flag = tmp_path / "flag"
    flags = (*RUN, *WORKERS, "--output_dir", tmp_path / "run")
    process = start(flags, PauseBefore("train.loop", "train_step", flag))
    wait_for(flag.exists)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)  # not the group: the workers must notice by themselves
    process.join()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=30)
