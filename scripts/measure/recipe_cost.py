"""What a recipe costs: training images a second of several, beside those of the first, in alternating runs.

    python scripts/measure/recipe_cost.py --dataset ../shared/beans --model ../shared/deit-tiny \
        --recipe "" --recipe "--augment trivial --dataloader_num_workers 2" --recipe "--ema 0.99"

Each is a whole run of a few updates; evaluation, saving and start-up are not counted.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", action="append", required=True, help="flags of plainloop train; may be repeated")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    flags = ["--preset", "beans", "--dataset", asked.dataset, "--model", asked.model, "--max_eval_samples", "16"]
    flags += ["--max_steps", str(asked.updates), "--eval_steps", str(asked.updates)]
    rates: dict[str, list[float]] = {recipe: [] for recipe in asked.recipe}
    for _ in range(asked.rounds):
        for recipe, found in rates.items():
            found.append(images_per_second([*flags, *shlex.split(recipe)]))
    plain = rates[asked.recipe[0]]
    for recipe, found in rates.items():
        pairs = [one / other for one, other in zip(found, plain, strict=True)]
        print(
            f"{statistics.median(found):.2f} images/s, {statistics.median(found) / statistics.median(plain):.3f} of the"
            f" first, pairs {', '.join(f'{pair:.3f}' for pair in pairs)}: {recipe or 'plain'}"
        )


def images_per_second(flags: list[str]) -> float:
    """Of one run; CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "train.main", *flags, "--output_dir", f"{folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "run" / "train_results.json").read_text())["train_samples_per_second"]


if __name__ == "__main__":
    main()
