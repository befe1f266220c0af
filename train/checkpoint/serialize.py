"""Optimizer state as tensors and JSON, and back: exactly, and without pickle."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from train.distributed.parallel import full_tensor, shard_like
from train.errors import ConfigError

Document = dict[str, Any]  # what JSON can hold


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Document]:
    """State tensors under `INDEX.NAME`, where INDEX counts parameters through the groups; and all else.

    Raises:
        ConfigError: the optimizer keeps something that is neither a tensor nor fit for JSON.
    """
    saved = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: Document = {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = full_tensor(value.detach()).contiguous()
            else:
                scalars[f"{index}.{name}"] = value
    document = {"class": type(optimizer).__name__, "groups": saved["param_groups"], "scalars": scalars}
    try:
        return tensors, json.loads(json.dumps(document, default=_number))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--optim {type(optimizer).__name__}: its state cannot be saved: {error}") from error


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], document: Document) -> None:
    """Give a fresh optimizer of the same class and parameters the packed state, bit for bit.

    Raises:
        ValueError: it is of another class, or its groups have other sizes.
    """
    if document["class"] != type(optimizer).__name__:
        raise ValueError(f"it is of {document['class']}, not {type(optimizer).__name__}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, Document] = {}
    for key, value in [*tensors.items(), *document["scalars"].items()]:
        index, _, name = key.partition(".")
        sharded = shard_like(value, parameters[int(index)]) if isinstance(value, torch.Tensor) else value
        state.setdefault(int(index), {})[name] = sharded
    groups = [
        _with_tuples(fresh, saved) for fresh, saved in zip(optimizer.param_groups, document["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # load_state_dict casts to the parameter's dtype; what the optimizer itself keeps in another one goes back.
    for index, values in state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                loaded = optimizer.state[parameters[index]]
                loaded[name] = loaded[name].to(value.dtype)


def _number(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:  # a learning rate kept as a tensor
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither a tensor nor a number")


def _with_tuples(fresh: Document, saved: Document) -> Document:
    """JSON makes lists of tuples such as betas; the fresh group tells which were tuples, and which are numbers."""
    for name, value in fresh.items():
        if isinstance(value, int | float) and not isinstance(saved.get(name, value), int | float):
            raise ValueError(f"{name} is {saved[name]!r}, not a number")
    return {
        name: tuple(value) if isinstance(fresh.get(name), tuple) and name != "params" else value
        for name, value in saved.items()
    }
