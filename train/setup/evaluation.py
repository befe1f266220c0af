"""A trained model and one split of a data set -> metrics."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.cache.prepared import CachePolicy, prepare_images
from data.loading.loader import Images, InOrder, batches_on, build_loader
from data.plan import Batch
from data.reading.splits import Splits
from data.sources import load_for_evaluation
from train.config.schema import DataConfig
from train.evaluate import Metrics, evaluate, of_first_classes
from train.inference.calibration import Bin, expected_calibration_error, reliability
from train.inference.predictor import Predictor, resize_for
from train.recipes.statistics import wilson_interval
from train.setup.inputs import dataset_spec
from train.system.console import say


@dataclass(frozen=True)
class EvaluationData:
    """The images of one split, ready for a model."""

    splits: Splits  # the split to evaluate stands in `validation`, under its own name
    batches: Callable[[], Iterator[Batch]]  # every image once, in order

    @property
    def labels(self) -> torch.Tensor:
        """[n], by the data's classes."""
        return torch.tensor(self.splits.validation.labels)


def load_evaluation_split(
    data: DataConfig, seed: int, names: Sequence[str], cache_dir: str | None, offline: bool
) -> Splits:
    """The first of the splits `names` that the data set has, as `validation`; says what was decided."""
    splits = load_for_evaluation(
        dataset_spec(data, cache_dir, offline),
        names,
        validation_fraction=data.train_val_split,
        max_eval_samples=data.max_eval_samples,
        seed=seed if data.split_seed is None else data.split_seed,
    )
    split = splits.validation
    for note in splits.notes:
        say(f"data: {note}")
    say(f"data: {splits.dataset}: {len(split)} {split.name} images: {split.counts(splits.label_names)}")
    return splits


def prepare(
    splits: Splits, predictor: Predictor, batch_size: int, skip_bad: bool, cache_dir: str | None = None
) -> EvaluationData:
    """Decode the images for a model.

    Raises:
        DataError: an image cannot be decoded, and `skip_bad` is off.
    """
    before = len(splits.notes)
    policy, device = CachePolicy(folder=cache_dir), predictor.precision.device
    splits, pixels, _, _ = prepare_images(splits, resize_for(predictor.model), policy, skip_bad, say)
    for note in splits.notes[before:]:
        say(f"data: {note}")
    images = Images(pixels[splits.validation.name], splits.validation.labels)
    return EvaluationData(splits, lambda: batches_on(device, build_loader(images, InOrder(len(images), batch_size))))


def evaluate_model(predictor: Predictor, evaluation: EvaluationData) -> Metrics:
    """Metrics with the prediction of each image. The model's first classes must be those of the data."""
    metrics = evaluate(
        predictor.model, evaluation.batches(), predictor.precision, predictor.label_names, with_predictions=True
    )
    names = evaluation.splits.label_names
    return of_first_classes(metrics, names) if len(names) < len(predictor.label_names) else metrics


def document(metrics: Metrics, evaluation: EvaluationData, predictor: Predictor) -> dict[str, Any]:
    """What evaluation.json holds: every rate is 0..1, losses in nats, `confusion` in images [true][predicted]."""
    correct = sum(row[index] for index, row in enumerate(metrics.confusion))
    names = evaluation.splits.label_names
    bins = reliability_of(metrics)
    per_class = {
        name: {kind: metrics.values[f"{kind}/{name}"] for kind in ("precision", "recall", "f1")}
        | {"images": sum(row), "recall_wilson_95": list(wilson_interval(row[index], sum(row))) if sum(row) else None}
        for index, (name, row) in enumerate(zip(names, metrics.confusion, strict=True))
    }
    return {
        "dataset": evaluation.splits.dataset,
        "split": evaluation.splits.validation.name,
        "images": metrics.samples,
        "fingerprint": evaluation.splits.validation_fingerprint(),
        "precision": predictor.precision.name,
        **{name: value for name, value in metrics.values.items() if "/" not in name},
        "accuracy_wilson_95": list(wilson_interval(correct, metrics.samples)),
        "expected_calibration_error": expected_calibration_error(bins),
        "reliability": [vars(part) for part in bins],
        "classes": per_class,
        "confusion": metrics.confusion,
    }


def reliability_of(metrics: Metrics) -> list[Bin]:
    """The bins of the reliability diagram."""
    found = metrics.predictions
    return reliability([row.probability for row in found], [row.predicted == row.label for row in found])
