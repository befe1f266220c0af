"""Optimizer state as tensors and JSON, and back: exactly, and without pickle."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from train.distributed.parallel import full_tensor, shard_like
from train.errors import ConfigError
from train.optimizers.arguments import like

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
    document["parameters"] = len(_indices(tensors, scalars))
    try:
        return tensors, json.loads(json.dumps(document, default=_number))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--optim {type(optimizer).__name__}: its state cannot be saved: {error}") from error


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], document: Document) -> None:
    """Give a fresh optimizer of the same class and parameters the packed state, bit for bit.

    Raises:
        ValueError: it is of another class, its groups have other sizes, or a tensor or a number is not what this
            optimizer keeps; a kernel would read beyond a tensor that is too small.
    """
    if document["class"] != type(optimizer).__name__:
        raise ValueError(f"it is of {document['class']}, not {type(optimizer).__name__}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [
        _like_fresh(fresh, saved) for fresh, saved in zip(optimizer.param_groups, document["groups"], strict=True)
    ]
    if [index for group in groups for index in group["params"]] != list(range(len(parameters))):
        raise ValueError("its groups do not count the parameters")
    state: dict[int, Document] = {index: {} for index in sorted(_indices(tensors, document["scalars"]))}
    if not all(0 <= index < len(parameters) for index in state):
        raise ValueError(f"it has state of a parameter beyond the {len(parameters)} that there are")
    if len(state) != document.get("parameters", len(state)):
        raise ValueError(f"it has state of {len(state)} parameters, not {document['parameters']}")
    for key, value in [*tensors.items(), *document["scalars"].items()]:
        index, _, name = key.partition(".")
        sharded = shard_like(value, parameters[int(index)]) if isinstance(value, torch.Tensor) else value
        state[int(index)][name] = sharded
    _check_state(optimizer, parameters, state)
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


def _indices(tensors: Document, scalars: Document) -> set[int]:
    """The parameters that `INDEX.NAME` keys speak of."""
    return {int(key.partition(".")[0]) for key in [*tensors, *scalars]}


def _like_fresh(fresh: Document, saved: Document) -> Document:
    """A saved group, with what it lacks from the fresh one. JSON makes lists of tuples such as betas."""
    settings = {name: value for name, value in fresh.items() if name != "params"}
    for name, value in settings.items():
        known = value.item() if isinstance(value, torch.Tensor) else value
        if name in saved and not like(known, saved[name]):
            raise ValueError(f"{name} is {str(saved[name])[:80]}, and {value} in a fresh one")
    tuples = {name for name, value in settings.items() if isinstance(value, tuple)}
    return settings | {name: tuple(value) if name in tuples else value for name, value in saved.items()}


def _check_state(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], state: dict[int, Document]
) -> None:
    """Compare what was saved with what the optimizer keeps after an update; ValueError names what differs."""
    closed = type(optimizer).__module__.partition(".")[0] in ("torch", "train")  # others may keep more, later
    for index, fresh in _after_one_update(optimizer, parameters).items():
        if index not in state:
            continue  # a parameter that never had a gradient
        saved = state[index]
        names = fresh.keys() ^ saved.keys() if closed else fresh.keys() - saved.keys()
        if names:
            raise ValueError(f"{min(names)} of parameter {index} is missing or strange")
        for name, value in fresh.items():
            if _form(value) != _form(saved[name]) and value is not None:
                raise ValueError(f"{name} of parameter {index} is {_form(saved[name])}, not {_form(value)}")


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return "a number" if isinstance(value, int | float) else type(value).__name__


def _after_one_update(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps for each parameter, found by an update with gradients of zero; the weights stay.

    Nothing if the optimizer cannot make one so, because it wants a closure, say.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return {index: dict(optimizer.state[parameter]) for index, parameter in enumerate(parameters)}
    except Exception:  # the class may be of any package
        return {}
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
