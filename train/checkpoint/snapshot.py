"""From a `TrainState` to what a checkpoint holds, and back."""

import json
import math
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.saving import read_weights
from train.checkpoint.manifest import OPTIMIZER, RAW_WEIGHTS, STATE, CheckpointError, read_manifest
from train.checkpoint.serialize import pack_optimizer, unpack_optimizer
from train.config.early_end import EarlyEnd
from train.distributed.parallel import full_tensor, load_full_state_dict
from train.errors import is_out_of_memory
from train.state import PARTS, TrainState

COUNTERS = ("step", "skipped", "losses_since_log", "evaluations_since_best")
# What the first checkpoints lack, and what it was then.
YOUNGER = {"evaluations_since_best": 0, "ended": "", "early_end": None}
LOSSES = ("loss_since_log", "loss_total")
STRANGE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)  # raised by JSON of another form


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, before it is written."""

    step: int
    best_step: int | None
    model: nn.Module  # knows how its weights are saved
    weights: dict[str, torch.Tensor]  # that were evaluated
    raw_weights: dict[str, torch.Tensor]  # that training goes on from, if those are their average; else none
    optimizer: dict[str, torch.Tensor]
    document: dict[str, Any]  # of state.json

    def on_cpu(self) -> "Snapshot":
        """A copy in CPU memory, which training no longer changes."""
        weights, raw_weights, optimizer = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.weights, self.raw_weights, self.optimizer)
        )
        return replace(self, weights=weights, raw_weights=raw_weights, optimizer=optimizer)


def take_snapshot(state: TrainState, log_bytes: int) -> Snapshot:
    """Everything a resume needs; the tensors are still those of the state. A collective where they are sharded."""
    tensors, optimizer = pack_optimizer(state.optimizer)
    document: dict[str, Any] = {name: getattr(state, name) for name in COUNTERS}
    document |= {name: getattr(state, name).item() for name in LOSSES}
    document["ended"], document["early_end"] = state.ended, _listed(state.early_end)
    document["best"] = {"value": state.best.value, "step": state.best.step}
    document["log_bytes"] = log_bytes
    document["seconds"] = dict(state.seconds)
    document["scaler"] = state.precision.scaler.state_dict()
    document["scheduler"] = state.schedule.state_dict()
    document["optimizer"] = optimizer
    weights = {name: full_tensor(value) for name, value in state.evaluated_model.state_dict().items()}
    raw_weights = {} if state.average is None else state.raw_model.state_dict()
    raw_weights = {name: value.contiguous() for name, value in raw_weights.items()}
    return Snapshot(state.step, state.best.step, state.raw_model, weights, raw_weights, tensors, document)


def restore(state: TrainState, checkpoint: Path, weights_loaded: bool = False) -> int:
    """Set `state` to what was saved in `checkpoint`, which has been verified; returns the length of the log then.

    Args:
        state: of the same model, optimizer and schedule.
        checkpoint: a `checkpoint-N` folder.
        weights_loaded: the model was loaded from this very checkpoint, which need not be read again.

    Raises:
        CheckpointError: the checkpoint is of another optimizer or schedule, or holds what no run writes.
    """
    document = YOUNGER | json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    try:
        _check(document, read_manifest(checkpoint)["step"])
    except STRANGE as error:
        raise CheckpointError(f"{checkpoint}: its {STATE} is not of a run: {error}") from error
    if not weights_loaded:
        load_full_state_dict(state.raw_model, read_weights(state.raw_model, checkpoint))
    if state.average is not None:
        _restore_average(state, checkpoint, document)
    # The schedule first: replaying it changes learning rates, which the optimizer's saved ones then replace.
    state.schedule.load_state_dict(document["scheduler"])
    try:
        unpack_optimizer(state.optimizer, load_file(checkpoint / OPTIMIZER), document["optimizer"])
    except (*STRANGE, IndexError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{checkpoint}: its optimizer state does not fit: {error}") from error
    state.precision.scaler.load_state_dict(document["scaler"])
    for name in COUNTERS:
        setattr(state, name, document[name])
    for name in LOSSES:
        getattr(state, name).fill_(document[name])
    # What ended it may be another now: then it goes on.
    state.ended = document["ended"] if document["early_end"] in (None, _listed(state.early_end)) else ""
    state.seconds |= document["seconds"]
    state.best.value, state.best.step = document["best"]["value"], document["best"]["step"]
    return document["log_bytes"]


def _listed(early_end: EarlyEnd) -> list[Any]:
    """As JSON has it."""
    return json.loads(json.dumps(astuple(early_end)))


def _restore_average(state: TrainState, checkpoint: Path, document: dict[str, Any]) -> None:
    """The average is what the checkpoint has as the model; the weights that it averages lie beside it."""
    state.average.module.load_state_dict(state.raw_model.state_dict())
    state.average.n_averaged.fill_(document["step"] - document["skipped"])
    try:
        state.raw_model.load_state_dict(load_file(checkpoint / RAW_WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{checkpoint}: its {RAW_WEIGHTS} does not fit: {error}") from error


def _check(document: Any, step: Any) -> None:
    """Refuse a state.json that no run wrote, whatever its manifest says: a schedule is stepped as often as it says.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: something is missing, or of another type or
            size, or of another `step` than the manifest.
    """
    best, steps = document["best"], document["scheduler"].get("steps", 0)
    counts = [document[name] for name in COUNTERS] + [document["log_bytes"], steps]
    losses = [document[name] for name in LOSSES]  # infinite after an fp16 overflow
    numbers = list(document["seconds"].values()) + list(document["scaler"].values())
    numbers += [best["value"]] if best["value"] is not None else []
    counts += [best["step"]] if best["step"] is not None else []
    if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
        raise ValueError(f"a count is no number of at least 0 in {counts}")
    if not all(type(number) in (int, float) for number in losses + numbers):
        raise ValueError("a loss, a metric, a scale or a time is no number")
    if not all(map(math.isfinite, numbers)) or (any(map(math.isinf, map(float, losses))) and not document["skipped"]):
        raise ValueError("a loss, a metric, a scale or a time is not finite")
    if not document["seconds"].keys() <= set(PARTS) or min(document["seconds"].values(), default=0) < 0:
        raise ValueError(f"its seconds are not those of {', '.join(PARTS)}")
    if type(document["ended"]) is not str:
        raise TypeError("why it ended is no text")
    if document["step"] != step:
        raise ValueError(f"it is of update {document['step']}, and its manifest of {step}")
    if (best["step"] is None) != (best["value"] is None):
        raise ValueError("a best model needs both an update and a value")
    if max(steps, document["skipped"], best["step"] or 0) > document["step"]:
        raise ValueError(f"it has more steps of something than the {document['step']} updates")
