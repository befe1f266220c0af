"""Real runs of several processes under torchrun's own agent, forked from one that has imported everything."""

import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.reliability.harness import FORK, RUN, Report, draw, finish, kill_group, outcome


def start_group(
    flags: tuple, world: int = 2, restarts: int = 0, before: Callable[[], None] | None = None, log: Path | None = None
) -> BaseProcess:
    """Start an agent with `world` processes, all in one process group; `before` runs first in each of them."""
    process = FORK.Process(target=_agent, args=([str(flag) for flag in flags], world, restarts, before, log))
    process.start()
    return process


def _agent(flags: list[str], world: int, restarts: int, before: Callable[[], None] | None, log: Path | None) -> None:
    os.setsid()
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ["OMP_NUM_THREADS"] = "1"
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=uuid.uuid4().hex,
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0},
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="fork",
    )
    try:
        elastic_launch(config, _worker)(flags, before)
        code = 0
    except ChildFailedError:
        code = 1
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _worker(flags: list[str], before: Callable[[], None] | None) -> None:
    import torch

    from train.main import main

    # A fork leaves torch's thread pool unusable until the first call; made by several threads at once, that one aborts.
    torch.set_num_threads(1)
    if before is not None:
        before()

    if code := main(flags):  # the agent waits for a process that was well to return
        sys.exit(code)


def members(agent: BaseProcess) -> list[int]:
    """Every living process of the agent's group, itself included."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == agent.pid and state != "Z":
                found.append(int(entry.name))
    return found


def process_of(agent: BaseProcess, rank: int) -> int | None:
    """The process id of a rank, once it is there."""
    for process in members(agent):
        with contextlib.suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                return process
    return None


def groups_killed(folder: Path, trials: int, seed: int, kills: int = 10) -> Report:
    """Two processes killed `kills` times a trial: all at once, or one of them under an agent that restarts both."""
    report, rng = Report("two processes killed and resumed"), draw(seed)
    # Long enough that few runs are done before their last kill.
    flags = (*RUN, "--per_device_train_batch_size", 1, "--max_steps", 16 * kills, "--async_save", "true")
    flags = (*flags, "--ddp_timeout", 20, "--output_dir")
    assert finish(start_group((*flags, folder / "unbroken"))) == 0
    expected, done = outcome(folder / "unbroken"), {"all": 0, "one": 0}
    for trial in range(trials):
        out, left, code = folder / f"trial-{trial}", kills, None
        again = (*flags, out, "--resume_from_checkpoint", "auto")
        while left and code != 0:
            of_one = rng.randint(0, left)
            agent = start_group(again, restarts=of_one)
            killed = kill_ranks(agent, of_one, rng)
            done["one"] += killed
            left -= killed
            if left:
                agent.join(rng.uniform(0.2, 2.0))
                left -= agent.exitcode is None
                done["all"] += agent.exitcode is None
                kill_group(agent)
            code = finish(agent)
        if code != 0:
            code = finish(start_group(again))
        report.check(code == 0 and outcome(out) == expected, f"trial {trial} of seed {seed}: exit code {code}")
        print(f"trial {trial}: {kills - left} kills, {len(report.failures)} failures so far", flush=True)
        shutil.rmtree(out, ignore_errors=True)
    report.facts |= {"seed": seed, "kills of all": done["all"], "kills of one, restarted": done["one"]}
    return report


def kill_ranks(agent: BaseProcess, times: int, rng: random.Random) -> int:
    """Kill one process of the group at a time, so often, unless the run ends before; how often it was."""
    killed = 0
    while killed < times:
        agent.join(rng.uniform(0.2, 2.0))
        if agent.exitcode is not None:
            break
        with contextlib.suppress(IndexError, ProcessLookupError):  # between two lives there is none
            os.kill(rng.choice(workers_of(agent)), signal.SIGKILL)
            killed += 1
    return killed


def workers_of(agent: BaseProcess) -> list[int]:
    """The agent's direct children."""
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
    return []


def gone_within(agent: BaseProcess, seconds: float) -> float | None:
    """How long it took until no process of the group was left; None if some still are after `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        agent.join(0.02)
        if agent.exitcode is not None and not members(agent):
            return time.monotonic() - started
    return None
