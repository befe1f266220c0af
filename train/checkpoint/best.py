"""The best checkpoint, trusted only after it has been verified; where it is lost, the next best takes its place."""

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from train.checkpoint.folder import set_aside
from train.checkpoint.manifest import CheckpointError, verify
from train.config.record import read_log
from train.distributed.collectives import on_rank_zero
from train.state import Best
from train.system.console import say


def keep_sound_best(folder: Path, best: Best, until: int) -> None:
    """Verify the checkpoint that `best` names; if it is damaged or missing, change `best` to the next best sound one.

    A damaged checkpoint is renamed, not deleted, and every change is printed. In several processes rank 0 reads.

    Args:
        folder: of the run.
        best: changed in place; its step is None if no sound checkpoint holds an evaluated model.
        until: the update that the run has reached; the log may go further, and is cut there when it is continued.
    """
    if best.step is None:
        return
    value, step, notes = on_rank_zero(lambda: _find_sound(folder, best, until))
    for note in notes:
        say(f"warning: {note}")
    if step is None:
        say("warning: no other checkpoint of an evaluated model is sound, so the next evaluation is the best so far")
    elif step != best.step:
        say(f"warning: update {step} is the best one left: {best.metric} {value:.6g}, not {best.value:.6g}")
    best.value, best.step = value, step


def _find_sound(folder: Path, best: Best, until: int) -> tuple[float | None, int | None, list[str]]:
    """Value and update of the best sound checkpoint, and what was wrong with those that were better."""
    notes: list[str] = []
    for number, (value, step) in enumerate(chain([(best.value, best.step)], evaluations(folder, best, until))):
        path = folder / f"checkpoint-{step}"
        if number and not path.is_dir():
            continue  # most updates were never saved, or their checkpoints made room for newer ones
        try:
            verify(path)
            return value, step, notes
        except CheckpointError as error:
            notes.append(f"the best checkpoint {error}" if number == 0 else str(error))
            if path.is_dir() or path.is_symlink():
                notes[-1] += f"; renamed to {set_aside(path).name}"
    return None, None, notes


def evaluations(folder: Path, best: Best, until: int) -> Iterator[tuple[float, int]]:
    """(value, update) of the run's other evaluations by its metric, best first; of equals the earlier."""
    found = []
    for record in read_log(folder):
        value, step = record.get(f"eval_{best.metric}"), record["step"]
        if isinstance(value, float) and not math.isnan(value) and step <= until and step != best.step:
            found.append((value, step))
    yield from sorted(found, key=lambda pair: (-pair[0] if best.greater_is_better else pair[0], pair[1]))
