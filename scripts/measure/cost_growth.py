"""How time and memory grow: with the number of images, the batch, the image's side, and the model.

    python scripts/measure/cost_growth.py                     # the table of images; about ten minutes on two cores
    python scripts/measure/cost_growth.py --tables images batch --images 1000 10000

The number of images: whole runs on generated JPEGs, each in a process of its own, with the image cache in memory, in a
file, and off. The others: `train_step` on one batch in memory. Memory is what the process itself holds (anonymous
pages), and what it maps of files, at their peaks.
"""

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from sizes import SIZES, random_batch, random_state, timed_update

from train.main import main as train

KINDS = ("memory", "disk", "none")
SHARD = 5000  # images per parquet file
PARTS = ("data", "compute", "evaluation", "saving")


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
    if asked.update:
        size, side, batch = asked.update
        updates(size, int(side), int(batch))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if {"images", "streaming"} & set(asked.tables):
        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory() as folder:
            tables_of_images(asked, Path(folder))
    rows = [("tiny", 224, batch) for batch in asked.batches] + [("tiny", 384, batch) for batch in asked.batches[:2]]
    rows = rows if "batch" in asked.tables else []
    rows += [(size, 224, 16) for size in SIZES] if "model" in asked.tables else []
    table_of_updates(rows)


def tables_of_images(asked: argparse.Namespace, folder: Path) -> None:
    """A run for each number of images and each place to keep them."""
    kinds = list(KINDS) if "images" in asked.tables else []
    kinds += ["streaming"] if "streaming" in asked.tables else []
    print("| images | kept in | start, s | data, ms per image | compute, ms per image | own MiB | mapped MiB |")
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
            columns = {"image": rows, "labels": [number % 2 for number in numbers]}
            table = datasets.Dataset.from_dict(columns, features=features)
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
    results = json.loads((out / "train_results.json").read_text())
    spent = [results[f"{part}_seconds"] for part in PARTS]
    own, mapped = json.loads(found.stdout.splitlines()[-1])
    each = [f"{seconds / (updates * 16) * 1e3:.2f}" for seconds in spent[:2]]
    return [f"{whole - sum(spent):.1f}", *each, f"{own:.0f}", f"{mapped:.0f}"]


def memory() -> list[float]:
    """MiB that this process holds itself, and that it maps of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")]


def run_and_watch(flags: str) -> None:
    """In the process of a run: train, look at the memory twenty times a second, print the peaks, exit."""
    peaks, done = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peaks[:] = map(max, zip(peaks, memory(), strict=True))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = train(json.loads(flags))
    done.set()
    watcher.join()
    print(json.dumps(peaks))
    sys.exit(code)


def table_of_updates(rows: list[tuple[str, int, int]]) -> None:
    """The time and memory of a few updates for each (size, side, batch), in a process of its own."""
    if rows:
        print("| model | side | batch | ms per image | own memory, MiB |\n|---|---|---|---|---|")
    for row in rows:
        command = [sys.executable, __file__, "--update", *map(str, row)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"| {' | '.join(map(str, row))} | {found.stdout.splitlines()[-1]} |", flush=True)


def updates(size: str, side: int, batch_size: int) -> None:
    """Five updates on noise, of which the median of the last four counts; prints two cells."""
    state = random_state(size, side)
    batch = random_batch(state, batch_size)
    took = [timed_update(state, batch) for _ in range(5)][1:]
    print(f"{statistics.median(took) / batch_size * 1e3:.1f} | {memory()[0]:.0f}")


if __name__ == "__main__":
    main()
