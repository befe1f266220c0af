"""How time and memory grow: with the number of images, the batch, the image's side, and the model.

    python scripts/cost_growth.py                     # all tables; about ten minutes on two cores
    python scripts/cost_growth.py --tables images --images 1000 10000

The number of images: whole runs of `python -m train.main` on generated JPEGs, each in a process of its own, two epochs'
worth of updates bounded by --updates; the image cache in memory, in a file, and off. The others: `train_step` on one
batch in memory. Memory is what the process holds itself (anonymous pages), and what it maps of files, at their peaks.
"""

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTForImageClassification

from scripts.sizes import SIZES, vit_config
from train.loop import train_step
from train.optim import build_optimizer
from train.precision import Precision, choose_precision
from train.system.device import choose_attention, choose_device
from train.system.memory import keep_freed_memory

KINDS = ("memory", "disk", "none")
SHARD = 5000  # images a parquet file


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=["images", "batch", "model", "streaming"], default=["images"])
    parser.add_argument("--images", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--update", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run_and_watch(asked.run)
        return
    if asked.update:
        size, side, batch = asked.update
        updates(size, int(side), int(batch))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if {"images", "streaming"} & set(asked.tables):
        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory() as folder:
            tables_of_images(asked, Path(folder))
    if "batch" in asked.tables:
        table_of_batches(asked.batches)
    if "model" in asked.tables:
        table_of_models()


def tables_of_images(asked: argparse.Namespace, folder: Path) -> None:
    """A run for each number of images and each place to keep them."""
    kinds = list(KINDS) if "images" in asked.tables else []
    kinds += ["streaming"] if "streaming" in asked.tables else []
    print("| images | kept in | start, s | data, ms an image | compute, ms an image | own memory, MiB | mapped, MiB |")
    print("|---|---|---|---|---|---|---|")
    for count in asked.images:
        data = folder / f"data-{count}"
        generate(data, count)
        for kind in kinds:
            found = measure(data, folder / f"run-{count}-{kind}", kind, asked.updates, folder / f"hub-{count}")
            print(f"| {count:,} | {kind} | {' | '.join(found)} |", flush=True)


def generate(folder: Path, count: int) -> None:
    """JPEGs of 64 x 64 pixels, no two alike, in two classes, as parquet in the Hub's layout."""
    (folder / "data").mkdir(parents=True)
    labels = datasets.ClassLabel(names=["dark", "light"])
    features = datasets.Features({"image": datasets.Image(), "labels": labels})
    for split, first, size in (("train", 0, count), ("validation", count, 200)):
        for shard, start in enumerate(range(first, first + size, SHARD)):
            numbers = range(start, min(start + SHARD, first + size))
            rows = [{"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers]
            table = datasets.Dataset.from_dict(
                {"image": rows, "labels": [number % 2 for number in numbers]}, features=features
            )
            table.to_parquet(folder / "data" / f"{split}-{shard:05}.parquet")


def picture(number: int) -> bytes:
    """A dark or light one with a little noise."""
    noise = np.random.default_rng(number).integers(0, 128, (8, 8, 3), dtype=np.uint8) + 127 * (number % 2)
    file = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).resize((64, 64)).save(file, "JPEG", quality=80)
    return file.getvalue()


def measure(data: Path, out: Path, kind: str, updates: int, cache: Path) -> list[str]:
    """One run in a process of its own; the cells of its row."""
    flags = ["--preset", "trainer", "--model", "builtin:small", "--dataset", str(data), "--max_steps", str(updates)]
    flags += ["--per_device_train_batch_size", "16", "--eval_steps", str(updates), "--save_steps", str(updates)]
    flags += ["--output_dir", str(out), "--cache_dir", str(cache)]
    flags += ["--streaming", "true"] if kind == "streaming" else ["--image_cache", kind, "--cache_memory", "16"]
    started = time.perf_counter()
    found = subprocess.run([sys.executable, __file__, "--run", json.dumps(flags)], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(flags)}\n{found.stderr[-2000:]}")
    whole = time.perf_counter() - started
    own, mapped = json.loads(found.stdout.splitlines()[-1])
    train = json.loads((out / "train_results.json").read_text())
    images = updates * 16
    each = [f"{train[f'{part}_seconds'] / images * 1e3:.2f}" for part in ("data", "compute")]
    spent = sum(train[f"{part}_seconds"] for part in ("data", "compute", "evaluation", "saving"))
    return [f"{whole - spent:.1f}", *each, f"{own:.0f}", f"{mapped:.0f}"]


def run_and_watch(flags: str) -> None:
    """In the process of a run: train, look at the memory twenty times a second, print the peaks."""
    import threading

    from train.main import main as train

    peaks, done = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            for place, name in enumerate(("RssAnon", "RssFile")):
                peaks[place] = max(peaks[place], int(lines[name].split()[0]) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = train(json.loads(flags))
    done.set()
    watcher.join()
    print(json.dumps(peaks))
    sys.exit(code)


def table_of_batches(batches: list[int]) -> None:
    """DeiT-Tiny's size at 224 pixels, batches from small to large; then at 384."""
    print("| model | side | batch | ms an image | own memory, MiB |\n|---|---|---|---|---|")
    for side in (224, 384):
        for batch in batches if side == 224 else batches[:2]:
            print(f"| tiny | {side} | {batch} | {row_of_updates('tiny', side, batch)} |", flush=True)


def table_of_models() -> None:
    """From tiny to base at batch 16."""
    print("| model | side | batch | ms an image | own memory, MiB |\n|---|---|---|---|---|")
    for size in SIZES:
        print(f"| {size} | 224 | 16 | {row_of_updates(size, 224, 16)} |", flush=True)


def row_of_updates(size: str, side: int, batch: int) -> str:
    """Median time an image of a few updates, and the memory of a process that does only this."""
    command = [sys.executable, __file__, "--update", size, str(side), str(batch)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1]


def updates(size: str, side: int, batch_size: int) -> None:
    """Five updates on noise, of which the median of the last four counts; prints two cells."""
    device = choose_device("auto")
    precision = Precision(choose_precision("auto", device)[0], device)
    keep_freed_memory()
    config = vit_config(size, image_size=side, num_labels=3, attn_implementation=choose_attention(precision))
    network = ViTForImageClassification(config).to(device).train()
    optimizer = build_optimizer(network, "adamw", None, 1e-4, 0.0)
    batch = {
        "pixel_values": torch.randn(batch_size, 3, side, side, device=device),
        "labels": torch.zeros(batch_size, dtype=torch.int64, device=device),
        "index": torch.arange(batch_size),
    }
    took = []
    for _ in range(5):
        started = time.perf_counter()
        train_step(network, [batch], batch_size, optimizer, precision, torch.nn.Identity(), 1.0)
        precision.health.check(1)  # waits for the device
        took.append(time.perf_counter() - started)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"{statistics.median(took[1:]) / batch_size * 1e3:.1f} | {int(lines['RssAnon'].split()[0]) / 1024:.0f}")


if __name__ == "__main__":
    main()
