"""One pass over the validation images -> Metrics, from sums and counts, never a mean of batch means."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from data.plan import IGNORED, Batch
from train.config.metrics import PER_CLASS, SUMMARIES
from train.distributed.collectives import all_gather, all_reduce_sum
from train.precision import Precision
from train.recipes.predictions import Prediction


@dataclass(frozen=True)
class Metrics:
    """What one evaluation found. The loss is cross-entropy in nats per image; all others are 0..1."""

    values: dict[str, float]  # loss, accuracy, f1_macro, ..., f1/CLASS
    confusion: list[list[int]]  # [true class][predicted class], images; see also `of_first_classes`
    samples: int
    seconds: float
    predictions: list[Prediction] | None = None  # of all processes, by index; None if they were not asked for

    def logged(self) -> dict[str, float]:
        """With the names and the timings that the Trainer logs."""
        timings = {"runtime": self.seconds, "samples_per_second": self.samples / self.seconds}
        return {f"eval_{name}": value for name, value in (self.values | timings).items()}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    label_names: list[str],
    with_predictions: bool = False,
) -> Metrics:
    """Evaluate `model` on every image of `batches` once, under the same autocast as training. All processes call it.

    How the images are batched changes at most the last bits of the loss. The label -100 marks an image to ignore.

    Args:
        model: uint8 images [n, 3, h, w] -> logits [n, classes]; returned to the mode (train or eval) it was in.
        batches: on the model's device.
        precision: its autocast and its device.
        label_names: by the index of the class.
        with_predictions: also return what each image was taken for.
    """
    started, was_training = time.perf_counter(), model.training
    counts = _count_metrics(len(label_names)).to(precision.device)
    loss_sum = torch.zeros((), dtype=_widest(precision.device), device=precision.device)
    # An empty tensor first: of a small split, a process may get no batch.
    predictions = [torch.empty(0, dtype=torch.int64, device=precision.device)]
    labels = [torch.empty(0, dtype=torch.int64, device=precision.device)]
    taken_for: list[tuple[torch.Tensor, ...]] = []
    model.eval()
    for batch in batches:
        with precision.autocast():
            logits = model(batch["pixel_values"])
        losses = F.cross_entropy(_at_least_float32(logits), batch["labels"], reduction="none")
        loss_sum += losses.to(loss_sum.dtype).sum()
        predictions.append(logits.argmax(-1))
        labels.append(batch["labels"])
        if with_predictions:
            taken_for.append(_taken_for(logits, predictions[-1], losses, batch))
    model.train(was_training)
    counts.update(torch.cat(predictions), torch.cat(labels))  # once, because on CUDA each call waits for the device
    found = counts.compute()  # torchmetrics adds up the counts of all processes
    loss_sum, samples = all_reduce_sum(loss_sum), int(found["confusion"].sum())
    found["balanced_accuracy"] = balanced_accuracy(found["confusion"])
    values = {"loss": loss_sum.item() / samples}
    values |= {name: found[name].item() for name in SUMMARIES}
    for name in PER_CLASS:
        values |= {f"{name}/{label}": value for label, value in zip(label_names, found[name].tolist(), strict=True)}
    listed = _gathered(taken_for) if with_predictions else None
    return Metrics(values, found["confusion"].tolist(), samples, time.perf_counter() - started, listed)


def _taken_for(
    logits: torch.Tensor, predicted: torch.Tensor, losses: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, ...]:
    """The columns of `Prediction` for a batch; they stay on the device."""
    classes = torch.stack([predicted, batch["labels"].clamp(min=0)], dim=1)
    probabilities = _at_least_float32(logits).softmax(-1).gather(1, classes)
    return batch["index"], batch["labels"], predicted, *probabilities.unbind(1), losses


def _gathered(batches: list[tuple[torch.Tensor, ...]]) -> list[Prediction]:
    """One list of all processes, without the images that count for nothing."""
    columns = [torch.cat(column).tolist() for column in zip(*batches, strict=True)]
    rows = map(Prediction, *columns) if columns else ()  # of a short stream, a process may get nothing
    return sorted(all_gather([row for row in rows if row.label != IGNORED]))


def balanced_accuracy(confusion: torch.Tensor) -> torch.Tensor:
    """Mean recall of the classes that have images, from counts [true class][predicted class] (as scikit-learn's)."""
    counts = confusion.cpu().double()
    images = counts.sum(1)
    return (counts.diagonal()[images > 0] / images[images > 0]).mean()


def of_first_classes(metrics: Metrics, label_names: list[str]) -> Metrics:
    """The metrics of data that has only the model's first classes, where they are averages over classes.

    Args:
        metrics: over all classes of the model.
        label_names: of the classes that the data has.

    Returns:
        Macro averages over the classes that have images; rates of `label_names` alone; `confusion` with a last
        column for images that were taken for any other class.
    """
    count = len(label_names)
    rows = [[*row[:count], sum(row[count:])] for row in metrics.confusion[:count]]
    present = [name for name, row in zip(label_names, rows, strict=True) if any(row)]
    rates = {f"{kind}/{name}": metrics.values[f"{kind}/{name}"] for kind in PER_CLASS for name in label_names}
    macro = {f"{kind}_macro": sum(rates[f"{kind}/{name}"] for name in present) / len(present) for kind in PER_CLASS}
    macro["balanced_accuracy"] = macro["recall_macro"]
    summaries = {name: metrics.values[name] for name in ("loss", *SUMMARIES)} | macro
    return replace(metrics, values=summaries | rates, confusion=rows)


def _count_metrics(classes: int) -> MetricCollection:
    """All from the same integer counts of hits and misses by class (which a collection counts only once)."""
    options = {"num_classes": classes, "ignore_index": IGNORED, "validate_args": False}
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(average="micro", **options),
            "f1_macro": MulticlassF1Score(average="macro", **options),
            "precision_macro": MulticlassPrecision(average="macro", **options),
            "recall_macro": MulticlassRecall(average="macro", **options),
            "f1": MulticlassF1Score(average="none", **options),
            "precision": MulticlassPrecision(average="none", **options),
            "recall": MulticlassRecall(average="none", **options),
            "confusion": MulticlassConfusionMatrix(**options),
        }
    )


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _widest(device: torch.device) -> torch.dtype:
    """Sums of a hundred thousand losses lose digits in float32; mps has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64
