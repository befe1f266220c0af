"""R5: every single-bit flip of a checkpoint, truncations, and files swapped between checkpoints."""

import itertools
from pathlib import Path

from tests.reliability.harness import Report, draw
from tests.reliability.small import small_state, train
from train.checkpoint.folder import CheckpointFolder
from train.checkpoint.manifest import CheckpointError, verify


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
