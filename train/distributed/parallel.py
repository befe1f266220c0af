"""The model over several processes: replicated (DDP) or sharded (FSDP2).

torch's classes for it are imported only where they are used: they take most of a second, which one process can save.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from train.distributed.env import local_rank, world_size


def shard(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Shard parameters, gradients and optimizer state over the processes (FSDP2), one transformer block at a time."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process has a part."""
    return hasattr(tensor, "full_tensor")


def replicate(model: nn.Module) -> nn.Module:
    """The model as the loop calls it: DDP around it in several processes, unless it is sharded; else itself."""
    if world_size() == 1 or is_sharded(next(model.parameters())):
        return model
    from torch.nn.parallel import DistributedDataParallel

    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(model, device_ids=[local_rank()] if on_gpu else None, gradient_as_bucket_view=True)


@contextlib.contextmanager
def sync_gradients(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Average gradients over the processes in this block only if `enabled`; once per accumulation window is enough."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(enabled)
        yield
    elif hasattr(model, "no_sync") and not enabled:  # DDP
        with model.no_sync():
            yield
    else:
        yield


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered on every process; any other tensor as it is. A collective: call it on all ranks."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A full tensor, sharded as the parameter is if it has the parameter's shape."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def load_full_state_dict(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load full tensors into a model, sharded or not; every name must match."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(value, own[name]) for name, value in weights.items()}, strict=True)
