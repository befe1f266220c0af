"""Connecting the processes of a run, and noticing when one of them is lost."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train.distributed.env import local_rank, rank, world_size
from train.distributed.rendezvous import meet
from train.errors import RunError

LOST = ("gloo", "Connection closed", "Connection reset", "NCCL", "Timed out waiting", "timed out", "Broken pipe")
SIBLINGS: list[int] = []  # process ids of this run's other processes on this machine


@contextlib.contextmanager
def connected(make: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Connect all processes for the length of the block, and give each the configuration that `make` returns on rank 0.

    Only rank 0 reads the command line, files and folders: once it has created the run's folder, another process would
    find the folder there and take it for a run to resume.

    Raises:
        RunError: another process cannot be reached, or no longer.
    """
    with _default_signals():
        document = _connect(make)
    with noticing_loss():
        yield document
    dist.destroy_process_group()  # not after a failure: it would wait for the processes that are gone


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Say so if a process is lost in the block; all are connected already, by `connected` or by Ray.

    Raises:
        RunError: another process can no longer be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        kill_stopped_siblings()
        raise RunError(f"another process of this run is gone or frozen: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the process at once while it waits for the others.

    Python's handlers run only after the C++ call returns, and torchrun would wait 30 s for that before it restarts the
    group. There is nothing to lose yet.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _connect(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        store, _, _ = next(dist.rendezvous("env://"))
        document, meeting = meet(store, make)
        if torch.cuda.is_available() and document["run"]["device"] == "auto":
            torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # torch's default limit would let one frozen process hold up all others for half an hour.
        limit = timedelta(seconds=document["run"]["ddp_timeout"])
        dist.init_process_group(
            backend, store=dist.PrefixStore(meeting, store), rank=rank(), world_size=world_size(), timeout=limit
        )
        find_siblings()
    except (RuntimeError, TimeoutError) as error:
        raise RunError(f"another process of this run cannot be reached: {str(error).splitlines()[0]}") from error
    return document


def find_siblings() -> None:
    """Fill SIBLINGS, once all processes are connected."""
    here = socket.gethostname(), os.getpid()
    everyone: list[tuple[str, int]] = [here] * world_size()
    dist.all_gather_object(everyone, here)
    SIBLINGS[:] = [process for host, process in everyone if host == here[0] and process != here[1]]


def is_lost_peer(error: Exception) -> bool:
    """Whether an error means that another process did not answer; gloo raises plain RuntimeErrors."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(text in str(error) for text in LOST)


def kill_stopped_siblings() -> None:
    """Kill the frozen ones: a stopped process reacts to SIGKILL only, which torchrun sends 30 s later. Linux only."""
    for process in SIBLINGS:
        with contextlib.suppress(OSError, IndexError, AttributeError):
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "Tt":
                os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has one that ends at once
