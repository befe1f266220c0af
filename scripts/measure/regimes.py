"""Recipes on much, little and unequal data: each with several seeds, compared image by image.

    python scripts/measure/regimes.py --dataset ../shared/beans --model ../shared/deit-tiny --output_dir regimes \
        --recipe "--preset beans" --recipe "--preset best"

trains every recipe in every regime, prints `plainloop compare` of each regime and, for small regimes, the accuracy on
training images that no run has seen. Type it again to continue, or with another recipe to add one.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

from data.reading.splits import Split
from data.sources import load_splits

REGIMES: dict[str, list[int] | None] = {"all": None, "tenth": [34, 35, 34], "rare": [100, 40, 10]}  # images by class
HELD = 150  # training images of each class that no small regime uses
ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"BM": ".bmp", b"GI": ".gif", b"RI": ".webp"}


def main() -> None:
    """Train, compare, and judge on what was held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dataset", "model", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--recipe", action="append", required=True, help="flags of plainloop train; may be repeated")
    parser.add_argument("--seeds", default="42,43,44,45,46")
    parser.add_argument("--regimes", default=",".join(REGIMES))
    asked = parser.parse_args()
    folder = Path(asked.output_dir)
    held = folder / "data" / "held"
    write_regimes(asked.dataset, folder / "data")
    for regime in asked.regimes.split(","):
        runs = [
            train(recipe, folder / "data" / regime, asked.model, asked.seeds, folder / regime)
            for recipe in asked.recipe
        ]
        print(f"\n== {regime}", flush=True)
        for metric in ("accuracy", "balanced_accuracy"):
            plainloop("compare", *map(str, runs), "--metric", metric)
        if REGIMES[regime] is not None:
            for recipe, series in zip(asked.recipe, runs, strict=True):
                print(f"{recipe}: {on_held_images(series, held)}", flush=True)


def write_regimes(dataset: str, folder: Path) -> None:
    """One image folder for each regime, with the whole validation split; the same images whenever it is called."""
    if folder.exists():
        return
    splits = load_splits(dataset)
    by_class = [
        [i for i, label in enumerate(splits.train.labels) if label == c] for c in range(len(splits.label_names))
    ]
    for rows in by_class:
        random.Random(0).shuffle(rows)
    making = folder.with_name(".data")
    for regime, counts in REGIMES.items():
        for c, rows in enumerate(by_class):
            write(
                splits.train, rows[: counts[c]] if counts else rows, making / regime / "train" / splits.label_names[c]
            )
        for c, name in enumerate(splits.label_names):
            rows = [i for i, label in enumerate(splits.validation.labels) if label == c]
            write(splits.validation, rows, making / regime / "validation" / name)
    for c, rows in enumerate(by_class):
        write(splits.train, rows[-HELD:], making / "held" / "validation" / splits.label_names[c])
    making.rename(folder)


def write(split: Split, rows: list[int], folder: Path) -> None:
    """Those images of a split, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        data = split.read(row)
        (folder / f"{row}{ENDINGS[data[:2]]}").write_bytes(data)


def train(recipe: str, data: Path, model: str, seeds: str, folder: Path) -> Path:
    """A run for each seed; returns the folder of the series."""
    out = folder / "".join(char if char.isalnum() or char in "._" else "-" for char in recipe).strip("-")
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = ("--per_device_eval_batch_size", "32", "--save_total_limit", "1")
    with (folder / f"{out.name}.log").open("a") as log:
        command = ("train", "--dataset", str(data), "--model", model, *flags, *shlex.split(recipe))
        plainloop(*command, "--seeds", seeds, "--output_dir", str(out), log=log)
    return out


def on_held_images(series: Path, held: Path) -> str:
    """Mean over the seeds of accuracy, balanced accuracy and the recall of each class on images that chose nothing."""
    found = []
    for run in sorted(series.glob("seed-*")):
        done = plainloop("train", "--model", str(run), "--dataset", str(held), "--eval_only", log=subprocess.PIPE)
        found.append(json.loads(done.stdout[done.stdout.index("{") :]))
    names = [name for name in found[0] if name in ("eval_accuracy", "eval_balanced_accuracy") or "recall/" in name]
    means = [f"{name.removeprefix('eval_')} {sum(f[name] for f in found) / len(found):.4f}" for name in names]
    return f"{found[0]['eval_samples']} held-out images, {len(found)} seeds: {', '.join(means)}"


def plainloop(*arguments: str, log: object = None) -> subprocess.CompletedProcess:
    """A command of the program; CalledProcessError if it fails."""
    program = "import sys; from train.commands.plainloop import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=log, text=True)


if __name__ == "__main__":
    main()
