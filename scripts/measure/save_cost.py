"""What a checkpoint costs: seconds for one save, by part, beside the seconds of one update.

    python scripts/measure/save_cost.py --sizes tiny base [--saves 5]

Models of DeiT-Tiny's and ViT-B/16's size, random weights, AdamW state, batch 16, this machine's default precision.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sizes import SIZES, random_batch, random_state, timed_update

from data import files
from train.checkpoint.folder import CheckpointFolder
from train.checkpoint.manifest import OPTIMIZER, verify


def seconds(work: Callable[[], object], times: int, after: Callable[[], object] = lambda: None) -> float:
    """Median duration of `work`; `after` is not counted."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
        after()
    return statistics.median(took)


def measure(size: str, saves: int) -> None:
    """Print the line of one size."""
    state = random_state(size)
    batch = random_batch(state, 16)
    update = statistics.median([timed_update(state, batch) for _ in range(4)][1:])
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), "run", {}, keep=1)
        saved = checkpoints.save(state, 0)
        save = seconds(lambda: checkpoints.save(state, 0), saves)
        checkpoints.in_background = True
        wait = seconds(lambda: checkpoints.save(state, 0), saves, after=checkpoints.wait)
        size_of = {path.name: path.stat().st_size for path in saved.iterdir()}
        verifying = seconds(lambda: verify(saved), saves)
        share_of_all = size_of[OPTIMIZER] / sum(size_of.values())
        hashing = seconds(lambda: files.sha256(saved / OPTIMIZER), saves) / share_of_all
    print(
        f"{size}: {sum(size_of.values()) / 1e6:.0f} MB; one save {save:.2f} s, of which reading back {verifying:.2f} s"
        f" and hashing {hashing:.2f} s; in the background training waits {wait:.2f} s of it; one update {update:.2f} s;"
        f" a save every 100 updates is {save / (100 * update + save):.1%} of the run if training waits,"
        f" {wait / (100 * update):.2%} if not"
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "base"])
    parser.add_argument("--saves", type=int, default=5)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for size in asked.sizes:
        measure(size, asked.saves)


if __name__ == "__main__":
    main()
