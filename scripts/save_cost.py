"""What a checkpoint costs: seconds for one save, by part, beside the seconds of one update.

    python scripts/save_cost.py --sizes tiny base [--saves 5]

Networks of DeiT-Tiny's and ViT-B/16's size, random weights, AdamW state, batch 16, this machine's default precision.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data import files

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from transformers import ViTForImageClassification

from scripts.sizes import SIZES, vit_config
from train.checkpoint.folder import CheckpointFolder
from train.checkpoint.manifest import verify
from train.loop import train_step
from train.optim import build_optimizer
from train.optimizers.schedules import build_scheduler
from train.precision import Precision, choose_precision
from train.state import Best, TrainState
from train.system.device import choose_attention, choose_device


def build(size: str) -> TrainState:
    """A state of the given size, on the best device here."""
    device = choose_device("auto")
    precision = Precision(choose_precision("auto", device)[0], device)
    config = vit_config(size, num_labels=3, attn_implementation=choose_attention(precision))
    network = ViTForImageClassification(config).to(device)
    optimizer = build_optimizer(network, "adamw", None, 1e-4, 0.0)
    scheduler = build_scheduler(optimizer, "linear", None, 0, 1000)
    return TrainState(network, optimizer, scheduler, precision, Best("loss", False))


def seconds(work: Callable[[], object], times: int) -> float:
    """Median duration."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def update(state: TrainState) -> None:
    """One update on noise."""
    device = state.precision.device
    batch = {"pixel_values": torch.randn(16, 3, 224, 224, device=device), "labels": torch.zeros(16, dtype=torch.long)}
    batch["labels"] = batch["labels"].to(device)
    step = train_step(state.model, [batch], 16, state.optimizer, state.precision, nn.Identity(), 1.0)
    state.count_update(step.loss, step.applied)


def measure(size: str, saves: int) -> None:
    """Print a row."""
    state = build(size)
    update(state)
    one_update = seconds(lambda: update(state), 3)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), "run", {}, {"size": {"height": 224, "width": 224}}, keep=1)
        saved: list[Path] = []
        one_save = seconds(lambda: saved.append(checkpoints.save(state, 0)), saves)
        checkpoints.in_background = True
        waits = []
        for _ in range(saves):
            started = time.perf_counter()
            checkpoints.save(state, 0)
            waits.append(time.perf_counter() - started)
            checkpoints.wait()
        megabytes = sum(path.stat().st_size for path in saved[-1].iterdir()) / 1e6
        one_verify = seconds(lambda: verify(saved[-1]), saves)
        weights = saved[-1] / "optimizer.safetensors"
        one_hash = seconds(lambda: files.sha256(weights), saves) * megabytes / (weights.stat().st_size / 1e6)
    share, wait = one_save / (100 * one_update + one_save), statistics.median(waits)
    print(
        f"{size}: {megabytes:.0f} MB; one save {one_save:.2f} s, of which reading back {one_verify:.2f} s and hashing"
        f" {one_hash:.2f} s; in the background training waits {wait:.2f} s of it; one update {one_update:.2f} s; a save"
        f" every 100 updates is {share:.1%} of the run if training waits, {wait / (100 * one_update):.2%} if not"
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
