"""Several processes: killed, frozen, signalled; what is left of them, and what comes out."""

import os
import signal
import time

import pytest

from tests.reliability.groups import gone_within, groups_killed, members, start_group, workers_of
from tests.reliability.harness import RUN, finish, kill_group, outcome, wait_for
from tests.reliability.test_signals import PauseBefore
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import verify

GROUP = (*RUN, "--per_device_train_batch_size", 1, "--async_save", "true")
TIMEOUT = 3


class PauseRank:
    """Run in each process: one rank stops before a call, says its process id in a file, and waits there."""

    def __init__(self, rank, module, name, flag):
        self.rank, self.pause, self.flag = rank, PauseBefore(module, name, flag), str(flag)

    def __call__(self):
        if os.environ["RANK"] == str(self.rank):
            self.pause()


def test_groups_killed_at_random_end_in_the_same_bits(tmp_path):
    report = groups_killed(tmp_path, trials=1, seed=20261124, kills=4)
    assert not report.failures, report


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "frozen"])
@pytest.mark.parametrize(
    ("rank", "module", "name"),
    [(1, "train.loop", "train_step"), (1, "train.loop", "evaluate"), (0, "train.checkpoint.folder", "write_manifest")],
    ids=["training", "evaluation", "saving"],
)
def test_a_dead_or_frozen_rank_ends_all_in_time_and_leaves_no_orphan(rank, module, name, number, tmp_path):
    out, log, flag = tmp_path / "run", tmp_path / "log", tmp_path / "flag"
    flags = (*GROUP, "--ddp_timeout", TIMEOUT, "--async_save", "false", "--output_dir", out)
    agent = start_group(flags, before=PauseRank(rank, module, name, flag), log=log)
    try:
        wait_for(flag.exists)
        os.kill(sorted(workers_of(agent))[rank], number)
        took = gone_within(agent, TIMEOUT + 5)
        assert took is not None, f"still there: {members(agent)}"
    finally:
        kill_group(agent)
    said = log.read_text()
    if number == signal.SIGSTOP:  # that one is dead, the agent often notices before the others do
        assert "another process of this run is gone or frozen" in said
    assert "in run\n" not in said  # no traceback of ours
    for _, checkpoint in list_checkpoints(out):
        verify(checkpoint)


def test_a_rank_that_dies_before_all_are_connected_does_not_keep_the_others_waiting(tmp_path):
    flag = tmp_path / "flag"
    flags = (*GROUP, "--ddp_timeout", 60, "--output_dir", tmp_path / "run")
    agent = start_group(flags, before=PauseRank(1, "torch.distributed", "init_process_group", flag))
    try:
        wait_for(flag.exists)
        os.kill(sorted(workers_of(agent))[1], signal.SIGKILL)
        assert gone_within(agent, 5) is not None, f"still there: {members(agent)}"
    finally:
        kill_group(agent)


class DieOnceConnected:
    """Run in each process: rank 1 waits to be killed once all are connected; started again, it comes a second late."""

    def __init__(self, flag):
        self.flag = flag

    def __call__(self):
        if os.environ["RANK"] == "1":
            if self.flag.exists():
                time.sleep(1)
            else:
                PauseBefore("torch.distributed", "all_gather_object", str(self.flag))()


def test_processes_that_are_started_again_do_not_look_for_the_dead(tmp_path):
    flag = tmp_path / "flag"
    flags = (*GROUP, "--ddp_timeout", 60, "--output_dir", tmp_path / "run")
    agent = start_group(flags, restarts=1, before=DieOnceConnected(flag))
    try:
        wait_for(flag.exists)
        os.kill(sorted(workers_of(agent))[1], signal.SIGKILL)
        assert gone_within(agent, 30) is not None, f"still there: {members(agent)}"
        assert agent.exitcode == 0
    finally:
        kill_group(agent)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_saves_on_all_at_the_same_update(rank, tmp_path):
    out, log, flag = tmp_path / "run", tmp_path / "log", tmp_path / "flag"
    agent = start_group(
        (*GROUP, "--output_dir", out), before=PauseRank(rank, "train.loop", "train_step", flag), log=log
    )
    wait_for(flag.exists)
    os.kill(sorted(workers_of(agent))[rank], signal.SIGTERM)
    assert finish(agent) == 1
    (step, newest), *_ = list_checkpoints(out)
    verify(newest)
    assert f"stopped after update {step} of 40" in log.read_text() and step < 40
    assert finish(start_group(("--output_dir", out, "--resume_from_checkpoint", "auto"))) == 0
    assert finish(start_group((*GROUP, "--output_dir", tmp_path / "unbroken"))) == 0
    assert outcome(out) == outcome(tmp_path / "unbroken")


def test_an_error_of_the_first_rank_in_saving_stops_all(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"

    agent = start_group((*GROUP, "--output_dir", out), before=FullDisk(str(out)), log=log)
    assert gone_within(agent, 60) is not None and agent.exitcode == 1
    assert "error: cannot write in" in log.read_text() and "in run\n" not in log.read_text()


class FullDisk:
    """Run in each process: the run's folder takes no second checkpoint."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        import errno
        import sys

        def watch(event, arguments):
            if event == "os.mkdir" and str(arguments[0]).startswith(f"{self.folder}/.tmp-checkpoint-8"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        sys.addaudithook(watch)
