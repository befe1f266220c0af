"""Many processes as one, on PyTorch's own engine: torchrun, DDP, FSDP2. For one process, every function does nothing.

Each process trains on its part of every batch; gradients are averaged over all of them. What must be the same
everywhere is decided by the first process (`from_first`) or by all together (`mean`, `highest`).
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from train import LostProcessError, RunError
from train.config import Config
from train.launch import local_rank, rank, world_size
from train.rendezvous import meet
from train.signals import ending_at_once

T = TypeVar("T")
CPU = torch.device("cpu")


# -- one run out of many processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def joined(parse: Callable[[], Config]) -> Iterator[Config]:
    """The configuration, the same in every process, which are connected for the length of the block.

    Only the first process reads command line, files and folders: while it makes the run's folder, another would find
    it, and take it for the one to resume.

    Raises:
        RunError: another process cannot be reached, or no longer.
    """
    # Nothing can be lost yet, and who waits here for a process that died before it came would not hear a signal: the
    # agent would wait half a minute for it, before it could start all again.
    with ending_at_once():
        config = _connect(parse)
    try:
        yield config
    except RuntimeError as error:
        if not is_loss(error):
            raise
        kill_stopped_siblings()
        raise RunError(f"another process of this run is gone or frozen: {str(error).splitlines()[0]}") from error
    dist.destroy_process_group()  # not after a failure: it would wait for those that are gone


def _connect(parse: Callable[[], Config]) -> Config:
    try:
        store, _, _ = next(dist.rendezvous("env://"))
        config, meeting = meet(store, parse)
        if torch.cuda.is_available() and config.run.device == "auto":
            torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # Without a limit of ours, a frozen process would hold up all others for half an hour.
        limit = timedelta(seconds=config.run.ddp_timeout)
        dist.init_process_group(
            backend, store=dist.PrefixStore(meeting, store), rank=rank(), world_size=world_size(), timeout=limit
        )
        here = socket.gethostname(), os.getpid()
        everyone: list[tuple[str, int]] = [here] * world_size()
        dist.all_gather_object(everyone, here)
    except (RuntimeError, TimeoutError) as error:
        raise RunError(f"another process of this run cannot be reached: {str(error).splitlines()[0]}") from error
    SIBLINGS.extend(process for host, process in everyone if host == here[0] and process != here[1])
    return config


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, the only one to call it; it must be picklable.

    Raises:
        LostProcessError: it raised there.
    """
    if world_size() == 1:
        return make()
    result: list[tuple[bool, T | None]] = [(False, None)]
    try:
        if rank() == 0:
            result = [(True, make())]
    finally:
        dist.broadcast_object_list(result, device=CPU)
    made, value = result[0]
    if not made:
        raise LostProcessError("the first process has stopped")
    return value


def highest(number: int) -> int:
    """The highest of the numbers that all processes give."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    return total(tensor) / world_size() if world_size() > 1 else tensor


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def gathered(numbers: list[int]) -> list[int]:
    """The numbers of all processes, by rank."""
    if world_size() == 1:
        return numbers
    found: list[list[int]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, numbers)
    return [number for some in found for number in some]


def barrier() -> None:
    """Wait until every process has come this far."""
    highest(0)


# -- the network -------------------------------------------------------------------------------------------


def shard(network: nn.Module) -> None:
    """Spread parameters, gradients and optimizer state over the processes (FSDP2), a transformer layer at a time."""
    mesh = dist.init_device_mesh(next(network.parameters()).device.type, (world_size(),))
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    for layer in next(layers for layers in lists if len(layers) == network.config.num_hidden_layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(network: nn.Module) -> nn.Module:
    """The network as the loop calls it: with its gradients averaged over the processes (DDP), unless it is sharded."""
    if world_size() == 1 or isinstance(network, FSDPModule):
        return network
    on_gpu = next(network.parameters()).is_cuda
    return DistributedDataParallel(network, device_ids=[local_rank()] if on_gpu else None, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradients_averaged(network: nn.Module, when: bool) -> Iterator[None]:
    """Forward and backward passes inside leave gradients that are averaged only if `when`: once a window is enough."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(when)
        yield
    elif isinstance(network, DistributedDataParallel) and not when:
        with network.no_sync():
            yield
    else:
        yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together, on every process; any other as it is. All processes must ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as the parameter is if it has the parameter's shape."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def load_whole(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Set every parameter and buffer of a network, sharded or not, to whole tensors of the same names."""
    own = network.state_dict()
    network.load_state_dict({name: like(value, own[name]) for name, value in weights.items()}, strict=True)


# -- failure -----------------------------------------------------------------------------------------------

LOST = ("gloo", "Connection closed", "Connection reset", "NCCL", "Timed out waiting", "timed out", "Broken pipe")


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process did not answer; gloo raises plain RuntimeErrors."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(text in str(error) for text in LOST)


SIBLINGS: list[int] = []  # process ids of this run's other processes on this machine


def kill_stopped_siblings() -> None:
    """End those that are frozen: a stopped process answers nothing but SIGKILL, for which torchrun waits 30 seconds."""
    for process in SIBLINGS:
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "Tt":
                os.kill(process, signal.SIGKILL)
