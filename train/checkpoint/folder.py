"""The checkpoints of one run: complete or absent, never silently wrong.

A `checkpoint-N` folder is a model that `from_pretrained` loads, and beside it what a resume needs:
`optimizer.safetensors`, `state.json`, and `manifest.json` with the size and SHA-256 of every file. No pickle.
"""

import json
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from data import files
from models.saving import save_model
from train.checkpoint.manifest import (
    OPTIMIZER,
    RAW_WEIGHTS,
    STATE,
    CheckpointError,
    read_manifest,
    verify,
    write_manifest,
)
from train.checkpoint.snapshot import Snapshot, take_snapshot
from train.state import TrainState


@dataclass
class CheckpointFolder:
    """The checkpoints of one run: where they are, which run they belong to, and how many to keep."""

    folder: Path
    run_id: str  # only checkpoints that carry it are ever deleted
    identity: dict[str, Any]  # what a resume must have in common with this run
    keep: int | None  # None keeps all
    in_background: bool = False  # write while training continues
    writes: bool = True  # in several processes, one of them does
    _writer: threading.Thread | None = field(default=None, init=False)
    _failure: BaseException | None = field(default=None, init=False)

    def save(self, state: TrainState, log_bytes: int) -> Path:
        """Write `checkpoint-N`, point `best` at the best one, and delete what exceeds `keep`, in that order.

        In the background, this returns once the state is copied; a failure is raised by the next save, or at the end.
        One checkpoint is written at a time, so that they reach the disk in the order of the updates.

        Args:
            state: what to save; unchanged.
            log_bytes: length of metrics.jsonl at this step, to which a resume truncates it.
        """
        self.wait()
        snapshot = take_snapshot(state, log_bytes)  # on all ranks: it gathers sharded tensors
        target = self.folder / f"checkpoint-{state.step}"
        if not self.writes:
            return target
        if self.in_background:
            snapshot = snapshot.on_cpu()
            self._writer = threading.Thread(target=self._write_or_remember, args=[snapshot], name="checkpoint")
            self._writer.start()
        else:
            self._write(snapshot)
        return target

    def wait(self) -> None:
        """Wait until nothing is being written; raise what went wrong in writing."""
        self.close(raise_failure=True)

    def close(self, raise_failure: bool) -> None:
        """Wait until nothing is being written."""
        if self._writer is not None:
            self._writer.join()
        failure, self._writer, self._failure = self._failure, None, None
        if failure is not None and raise_failure:
            raise failure

    def _write_or_remember(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:
            self._failure = error

    def _write(self, snapshot: Snapshot) -> None:
        target = self.folder / f"checkpoint-{snapshot.step}"
        building = files.beside(target)
        try:
            building.mkdir()
            save_model(snapshot.model, building, snapshot.weights)
            save_file(snapshot.optimizer, building / OPTIMIZER, metadata={"format": "pt"})
            if snapshot.raw_weights:
                save_file(snapshot.raw_weights, building / RAW_WEIGHTS, metadata={"format": "pt"})
            (building / STATE).write_text(json.dumps(snapshot.document, indent=1) + "\n", "utf-8", newline="\n")
            write_manifest(building, self.run_id, snapshot.step, self.identity)
            if target.exists():  # the run resumed from an earlier checkpoint and has reached this step again
                files.remove(target)
            files.rename(building, target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        verify(target)
        self._point_at_best(snapshot.best_step)
        self.prune(snapshot.best_step)

    def _point_at_best(self, step: int | None) -> None:
        name, link = f"checkpoint-{step}", self.folder / "best"
        if (self.folder / name).is_dir() and files.linked(link) != name:
            files.link(link, name)

    def prune(self, best: int | None) -> None:
        """Delete the checkpoints of this run that exceed `keep`; never the best or the newest."""
        mine = {step: path for step, path in list_checkpoints(self.folder) if self._wrote(path)}
        for step in beyond_limit(list(mine), self.keep, best):
            files.remove(mine[step])

    def _wrote(self, checkpoint: Path) -> bool:
        try:
            return not checkpoint.is_symlink() and read_manifest(checkpoint)["run_id"] == self.run_id
        except CheckpointError:
            return False


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
            notes.append(f"{error}; renamed to {set_aside(path).name}")
    return None, notes


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint to a free name that ends in `.bad`, which nothing reads; returns the new path."""
    number, aside = 1, checkpoint.with_name(f"{checkpoint.name}.bad")
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = checkpoint.with_name(f"{checkpoint.name}.bad-{number}")
    files.rename(checkpoint, aside)
    return aside
