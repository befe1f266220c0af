"""What `plainloop predict` costs: images a second beside its two parts alone, and memory over many files.

    python scripts/measure/predict.py my-run path/to/images --files 10000

The parts are what no program can do without: decoding and resizing on all cores, and the model on batches that are
there already, on all cores. Together they allow 1 / (1 / decoding + 1 / model) images a second.
"""

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, without installing

from data.threads import in_threads
from train.config.schema import RunConfig
from train.inference.images import ImageFiles, read_image
from train.inference.predict import predict_files
from train.inference.predictor import Predictor, load_predictor
from train.precision import choose_compute

BATCH = 32


def main() -> None:
    """Alternate the three, print images a second and the ratio; then run over all files and print the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--files", type=int, default=10_000, help="files of the long run: the images, again and again")
    parser.add_argument("--some", type=int, default=512, help="files of each of the alternating runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    values = parser.parse_args()
    predictor = load_predictor(values.run, choose_compute(RunConfig(precision=values.precision)))
    images = list(ImageFiles(values.images))
    paths = list(itertools.islice(itertools.cycle(images), values.some))
    kinds: dict[str, Callable[[], object]] = {
        "decoding": lambda: consume(in_threads(lambda path: decoded(predictor, path), paths, "")),
        "model": lambda: model_alone(predictor, len(paths)),
        "predict": lambda: consume(predict_files(predictor, paths, BATCH)),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(values.rounds):
        for name, work in kinds.items():
            started = time.perf_counter()
            work()
            rates[name].append(len(paths) / (time.perf_counter() - started))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    possible = 1 / (1 / medians["decoding"] + 1 / medians["model"])
    print({name: round(rate, 1) for name, rate in medians.items()}, "images/s")
    print(f"predict {medians['predict'] / possible:.2f} of what both parts allow together ({possible:.1f} images/s)")
    over_many(predictor, itertools.islice(itertools.cycle(images), values.files))


def decoded(predictor: Predictor, path: str) -> torch.Tensor:
    """One image as the model takes it."""
    return predictor.pixels(read_image(path), path)


def model_alone(predictor: Predictor, images: int) -> None:
    """The model on the same batch again and again."""
    size = predictor.model.preprocessing
    batch = torch.randint(0, 256, (BATCH, 3, size.height, size.width), dtype=torch.uint8)
    for _ in range(images // BATCH):
        predictor.probabilities(batch)


def over_many(predictor: Predictor, paths: Iterable[str]) -> None:
    """Predict every path; the peak of the process's memory after each thousand."""
    started, peaks = time.perf_counter(), []
    for count, _ in enumerate(predict_files(predictor, paths, BATCH), 1):
        if count % 1000 == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    seconds = time.perf_counter() - started
    print(f"{count} files in {seconds:.0f} s, {count / seconds:.1f} images/s")
    print(f"peak memory after each thousand, MiB: {peaks}")


def consume(items: Iterable[object]) -> None:
    """Take every item, and keep none."""
    for _ in items:
        pass


if __name__ == "__main__":
    main()
