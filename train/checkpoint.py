"""Checkpoints: complete or not there, never silently wrong. Tensors in safetensors, the rest in JSON; no pickle.

A `checkpoint-N` folder is a model that `from_pretrained` loads, and beside it what a resume needs:
`optimizer.safetensors`, `state.json`, and `manifest.json` with the size and SHA-256 of every file.
"""

import hashlib
import json
import re
import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.vit import PROCESSOR_FILE, read_weights, save_model
from train import ConfigError, distributed, fs
from train.serialize import pack_optimizer, pack_scheduler, unpack_optimizer, unpack_scheduler
from train.state import TrainState

MANIFEST, STATE, OPTIMIZER = "manifest.json", "state.json", "optimizer.safetensors"
MODEL_FILES = ("model.safetensors", "config.json", PROCESSOR_FILE)
COUNTERS = ("step", "skipped", "losses_since_log")
LOSSES = ("loss_since_log", "loss_total")


@dataclass
class CheckpointFolder:
    """The checkpoints of one run: its folder, its identity, and how many to keep."""

    folder: Path
    run_id: str  # only what carries it is ever deleted
    identity: dict[str, Any]  # what a resume must have in common with this run
    processor: dict[str, Any]  # content of preprocessor_config.json
    keep: int | None  # None keeps all
    in_background: bool = False  # write while training goes on
    writes: bool = True  # of several processes, one does
    _writer: threading.Thread | None = field(default=None, init=False)
    _failure: BaseException | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Nothing is being written yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; its failure is raised unless another is under way."""
        if kind is None:
            self.wait()
        elif self._writer is not None:
            self._writer.join()

    def save(self, state: TrainState, log_bytes: int) -> Path:
        """Write `checkpoint-N`, point `best` at the best one, and delete what is beyond `keep`, in that order.

        In the background, the state is copied and this returns; a failure is raised by the next save, or at the end.
        One checkpoint is written at a time, so that the order on the disk is that of the updates.

        Args:
            state: what to save; unchanged.
            log_bytes: length of metrics.jsonl at this step, to which a resume cuts it back.
        """
        self.wait()
        content = take(state, log_bytes)
        target = self.folder / f"checkpoint-{state.step}"
        if not self.writes:  # it took part in putting sharded tensors together
            return target
        if self.in_background:
            content = content.copied()
            self._writer = threading.Thread(target=self._write_or_remember, args=[content], name="checkpoint")
            self._writer.start()
        else:
            self._write(content)
        return target

    def wait(self) -> None:
        """Until nothing is being written; raises what went wrong in writing."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write_or_remember(self, content: "Content") -> None:
        try:
            self._write(content)
        except BaseException as error:
            self._failure = error

    def _write(self, content: "Content") -> None:
        target = self.folder / f"checkpoint-{content.step}"
        building = fs.beside(target)
        try:
            building.mkdir()
            save_model(content.network, self.processor, building, content.weights)
            save_file(content.optimizer, building / OPTIMIZER, metadata={"format": "pt"})
            (building / STATE).write_text(json.dumps(content.document, indent=1) + "\n", encoding="utf-8")
            write_manifest(building, self.run_id, content.step, self.identity)
            if target.exists():  # resumed from an earlier checkpoint: this one has just been computed again
                fs.remove(target)
            fs.rename(building, target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        verify(target)
        self._point_at_best(content.best_step)
        self.prune(content.best_step)

    def _point_at_best(self, step: int | None) -> None:
        name, link = f"checkpoint-{step}", self.folder / "best"
        if (self.folder / name).is_dir() and not (link.is_symlink() and str(link.readlink()) == name):
            fs.link(link, name)

    def prune(self, best: int | None) -> None:
        """Delete the checkpoints of this run beyond `keep`; never the best or the newest."""
        mine = {step: path for step, path in list_checkpoints(self.folder) if self._wrote(path)}
        for step in beyond_limit(list(mine), self.keep, best):
            fs.remove(mine[step])

    def _wrote(self, checkpoint: Path) -> bool:
        try:
            return read_manifest(checkpoint)["run_id"] == self.run_id
        except CheckpointError:
            return False


class CheckpointError(Exception):
    """A checkpoint cannot be trusted or does not fit; the message says which and why."""


def beyond_limit(steps: list[int], keep: int | None, best: int | None) -> list[int]:
    """Which checkpoints to delete so that `keep` remain: the best, the newest, then the next newest."""
    if keep is None or not steps:
        return []
    newest_first = sorted(steps, reverse=True)
    kept = [step for step in newest_first if step in (best, newest_first[0])]
    kept += [step for step in newest_first if step not in kept][: max(0, keep - len(kept))]
    return sorted(set(steps) - set(kept))


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every `checkpoint-N` in a run's folder, newest first; sound or not."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def newest_sound(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, or None; and a note for each bad one, which is renamed, not deleted."""
    notes = []
    for _, path in list_checkpoints(folder):
        try:
            verify(path)
            return path, notes
        except CheckpointError as error:
            aside = _unused(path.with_name(f"{path.name}.bad"))
            fs.rename(path, aside)
            notes.append(f"{error}; set aside as {aside.name}")
    return None, notes


def _unused(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


# -- the manifest ------------------------------------------------------------------------------------------


def write_manifest(folder: Path, run_id: str, step: int, identity: dict[str, Any]) -> None:
    """Flush every file to the disk, record its size and digest, and flush the record last."""
    files = {}
    usual = (folder / STATE).stat().st_mode
    for path in sorted(folder.iterdir()):
        path.chmod(usual)  # safetensors writes 0600, which a colleague or a server cannot read
        fs.flush(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": fs.sha256(path)}
    manifest = {"format": 1, "run_id": run_id, "step": step, "files": files, "identity": identity}
    fs.write_text(folder / MANIFEST, _sealed(manifest))


def _sealed(manifest: dict[str, Any]) -> str:
    """The text of a manifest with its own digest, so that not a bit of it can change unnoticed either."""
    content = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": manifest}, indent=2, sort_keys=True) + "\n"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The content of manifest.json; CheckpointError if it is not there, or not as it was written."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)["manifest"]
        if text != _sealed(manifest):
            raise ValueError("it is not what was saved")
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["identity"], dict):
            raise TypeError("files and identity must be objects")
        _ = manifest["run_id"], manifest["step"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: is not complete: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint}: its {MANIFEST} is damaged: {error}") from error
    return manifest


def verify(checkpoint: Path) -> dict[str, Any]:
    """Compare every file with the manifest, byte for byte by digest; returns the manifest.

    Raises:
        CheckpointError: a file is missing, or is not what was saved.
    """
    manifest = read_manifest(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not isinstance(expected, dict) or expected.keys() != {"size", "sha256"}:
            raise CheckpointError(f"{checkpoint}: its {MANIFEST} does not say what {name} should be")
        if Path(name).name != name:
            raise CheckpointError(f"{checkpoint}: its {MANIFEST} names {name}, outside the folder")
        if not path.is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing")
        if path.stat().st_size != expected["size"] or fs.sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{checkpoint}: {name} is not what was saved")
    if missing := {*MODEL_FILES, STATE, OPTIMIZER} - manifest["files"].keys():
        raise CheckpointError(f"{checkpoint}: its {MANIFEST} does not list {', '.join(sorted(missing))}")
    return manifest


# -- the state ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds, before it is written."""

    step: int
    best_step: int | None
    network: nn.Module  # for its configuration
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    document: dict[str, Any]  # of state.json

    def copied(self) -> "Content":
        """With tensors of its own, in the computer's memory, that training does not change any more."""
        weights, optimizer = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.weights, self.optimizer)
        )
        return replace(self, weights=weights, optimizer=optimizer)


def take(state: TrainState, log_bytes: int) -> Content:
    """All that a resume needs; the tensors are still those of the state."""
    tensors, optimizer = pack_optimizer(state.optimizer)
    document: dict[str, Any] = {name: getattr(state, name) for name in COUNTERS}
    document |= {name: getattr(state, name).item() for name in LOSSES}
    document["best"] = {"value": state.best.value, "step": state.best.step}
    document["log_bytes"] = log_bytes
    document["seconds"] = dict(state.seconds)
    document["scaler"] = state.precision.scaler.state_dict()
    document["scheduler"] = pack_scheduler(state.scheduler, state.step - state.skipped)
    document["optimizer"] = optimizer
    weights = {name: distributed.whole(value) for name, value in state.model.state_dict().items()}
    return Content(state.step, state.best.step, state.model, weights, tensors, document)


def restore(state: TrainState, checkpoint: Path) -> int:
    """Set `state` to what was saved in `checkpoint`, which has been verified; returns the length of the log then.

    Raises:
        CheckpointError: the checkpoint is of another optimizer or schedule.
    """
    document = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    distributed.load_whole(state.model, read_weights(state.model, checkpoint))
    # The schedule first: replaying it changes learning rates, which the optimizer's saved ones then replace.
    unpack_scheduler(state.scheduler, document["scheduler"])
    try:
        unpack_optimizer(state.optimizer, load_file(checkpoint / OPTIMIZER), document["optimizer"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: its optimizer state does not fit: {error}") from error
    state.precision.scaler.load_state_dict(document["scaler"])
    for name in COUNTERS:
        setattr(state, name, document[name])
    for name in LOSSES:
        getattr(state, name).fill_(document[name])
    state.seconds |= document["seconds"]
    state.best.value, state.best.step = document["best"]["value"], document["best"]["step"]
    return document["log_bytes"]


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse to resume as another run than was saved.

    Raises:
        ConfigError: names each difference.
    """
    saved = read_manifest(checkpoint)["identity"]
    if saved.get("processes") == identity.get("processes"):
        same = set(identity)
    else:  # then another batch a process is needed for the same images an update
        same = identity.keys() - {"processes", "per_device_train_batch_size", "gradient_accumulation_steps", "fsdp"}
    different = [name for name in identity if name in same and saved.get(name) != identity[name]]
    if different:
        shown = "; ".join(f"{name} was {saved.get(name)}, is now {identity[name]}" for name in different)
        raise ConfigError(f"cannot resume {checkpoint}: {shown}; start a new run to change that")
