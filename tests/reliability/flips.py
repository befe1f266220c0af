"""R5: every single-bit flip of a checkpoint, truncations, and swapped files; flips of the best one."""

import itertools
import json
import shutil
from pathlib import Path

from tests.reliability.harness import Report, draw
from tests.reliability.small import small_state, train
from train.checkpoint.best import keep_sound_best
from train.checkpoint.folder import CheckpointFolder
from train.checkpoint.manifest import MODEL_FILES, CheckpointError, verify
from train.config.record import LOG
from train.errors import RunError
from train.output.results import export
from train.state import Best


def is_noticed(checkpoint: Path) -> bool:
    """Whether verification refuses the checkpoint, in its own words."""
    try:
        verify(checkpoint)
    except CheckpointError:
        return True
    return False


def flip_bits(folder: Path, most: int | None, seed: int) -> Report:
    """All bits of all files, or `most` drawn ones; then 1,000 truncations and every swap of two files."""
    report, rng = Report("R5 flipped bits, truncations, swaps", facts={"seed": seed}), draw(seed)
    state, checkpoints = small_state(), CheckpointFolder(folder, "run1", {"seed": 42}, keep=None)
    train(state)
    other = checkpoints.save(state, 0)
    train(state)
    checkpoint = checkpoints.save(state, 0)
    files = sorted(checkpoint.iterdir())
    bits = [(file, bit) for file in files for bit in range(8 * file.stat().st_size)]
    report.facts["bytes"] = len(bits) // 8
    contents = {file: file.read_bytes() for file in files}
    for file, bit in bits if most is None else rng.sample(bits, most):
        damaged = bytearray(contents[file])
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        report.check(is_noticed(checkpoint), f"{file.name} bit {bit}")
        file.write_bytes(contents[file])
    for _ in range(1000 if most is None else most // 10):
        file = rng.choice(files)
        file.write_bytes(contents[file][: rng.randrange(len(contents[file]))])
        report.check(is_noticed(checkpoint), f"{file.name} cut to {file.stat().st_size} bytes")
        file.write_bytes(contents[file])
    for one, two in itertools.permutations(files, 2):
        one.write_bytes(contents[two])
        report.check(is_noticed(checkpoint), f"{two.name} as {one.name}")
        one.write_bytes(contents[one])
    for file in files:  # the same file of another update, sound in itself
        changed = (other / file.name).read_bytes()
        file.write_bytes(changed)
        report.check(is_noticed(checkpoint) or changed == contents[file], f"{file.name} of another checkpoint")
        file.write_bytes(contents[file])
    verify(checkpoint)
    return report


def flip_best(folder: Path, most: int, seed: int) -> Report:
    """So many single bytes of the best checkpoint, drawn over its files, and the folder lost: never exported as sound.

    Each is tried where it is looked for (at a resume and at the end) and in between, just before the export.
    """
    report, rng = Report("best: flipped bytes of the best checkpoint", facts={"seed": seed}), draw(seed)
    state, checkpoints = small_state(), CheckpointFolder(folder, "run1", {"seed": 42}, keep=None)
    train(state)
    second = checkpoints.save(state, 0)
    train(state)
    best = checkpoints.save(state, 0)
    lines = [{"step": 1, "eval_loss": 0.7}, {"step": 2, "eval_loss": 0.5}]
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = folder / "whole"
    shutil.copytree(best, whole)
    contents = {path.name: path.read_bytes() for path in sorted(whole.iterdir())}
    other = {name: (second / name).read_bytes() for name in MODEL_FILES}
    places = [(name, at) for name, content in contents.items() for at in range(len(content))]
    for name, at in [*rng.sample(places, min(most, len(places))), (None, 0)]:
        where = f"{name} byte {at}" if name else "the folder is gone"
        if name:
            damaged = bytearray(contents[name])
            damaged[at] ^= rng.randrange(1, 256)
            (best / name).write_bytes(damaged)
        else:
            shutil.rmtree(best)
        report.check(_exported(best, folder) is None, f"{where}: exported")
        found = Best("loss", False, 0.5, 2)
        keep_sound_best(folder, found, until=2)
        report.check((found.step, found.value) == (1, 0.7), f"{where}: the best is {found}")
        report.check(_exported(second, folder) == other, f"{where}: the second best is not exported")
        for path in folder.glob("checkpoint-2*"):
            shutil.rmtree(path)
        shutil.copytree(whole, best)
    report.check(_exported(best, folder) == {name: contents[name] for name in MODEL_FILES}, "whole, but not exported")
    return report


def _exported(checkpoint: Path, folder: Path) -> dict[str, bytes] | None:
    """The model at the top after an export; None if it was refused, and nothing of it lies there."""
    for name in MODEL_FILES:
        (folder / name).unlink(missing_ok=True)
    try:
        export(checkpoint, folder)
    except RunError:
        return {"left behind": b""} if any((folder / name).exists() for name in MODEL_FILES) else None
    return {name: (folder / name).read_bytes() for name in MODEL_FILES}
