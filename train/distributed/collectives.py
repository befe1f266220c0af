"""The collectives that training needs. With one process each of them returns what it was given."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from train.distributed.env import rank, world_size
from train.errors import LostProcessError

T = TypeVar("T")
CPU = torch.device("cpu")


def on_rank_zero(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only and return its result, which must be picklable, on every rank.

    Raises:
        LostProcessError: on the other ranks, if `make` raised on rank 0.
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
        raise LostProcessError("rank 0 has stopped")
    return value


def all_reduce_max(number: int) -> int:
    """The largest of the numbers that the processes pass in."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    return all_reduce_sum(tensor) / world_size() if world_size() > 1 else tensor


def all_gather(items: list[T]) -> list[T]:
    """The items of all processes in one list, by rank; they must be picklable."""
    if world_size() == 1:
        return items
    found: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, items)
    return [item for some in found for item in some]
