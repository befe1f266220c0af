"""A frozen backbone gives an image the same features in every epoch: computed once, the head learns on them."""

import sys
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from tqdm import tqdm

from data.cache.prepared import Kept
from data.loading.loader import Images
from data.pipeline import DataPipeline, LoadingOptions, dataset_pipeline
from data.plan import Batch
from models.classifier import Classifier
from train.precision import Precision
from train.setup.inputs import Inputs
from train.system.console import say


def on_features(inputs: Inputs, eval_batch_size: int) -> tuple[DataPipeline, torch.Tensor]:
    """Switch the model to features, and compute those of every image.

    Returns:
        The pipeline of features in the place of images, in the same order, and the features of the training images.
    """
    model, data, device = inputs.loaded.model, inputs.data, inputs.precision.device
    started = time.perf_counter()
    count = len(inputs.splits.train) + len(inputs.splits.validation)
    hidden = not sys.stderr.isatty()
    with tqdm(total=count, desc="computing features", leave=False, disable=hidden) as bar:
        # In the batches of an evaluation, so that the best model gives the same bits when it is evaluated on images.
        features = {
            "train": compute_features(model, data.train_images(), inputs.precision, bar),
            "validation": compute_features(model, data.validation_batches(), inputs.precision, bar),
        }
    say(f"features: of {count} images computed once in {time.perf_counter() - started:.1f} s; the head trains on them")
    model.on_features = True
    kept = [
        Images(Kept(features[split.name].to(device), torch.arange(len(split), device=device)), split.labels)
        for split in (inputs.splits.train, inputs.splits.validation)
    ]
    options = LoadingOptions(eval_batch_size)
    made = dataset_pipeline(*kept, data.plan, device, data.label_names, options, say)
    batches = {"train_batches": made.train_batches, "validation_batches": made.validation_batches}
    return replace(data, notes=[*data.notes, "features kept in memory"], **batches), features["train"]


@torch.no_grad()
def compute_features(model: Classifier, batches: Iterable[Batch], precision: Precision, bar: tqdm) -> torch.Tensor:
    """What enters the head: float [images, features] on the CPU, in the order of the batches."""
    model.eval()
    rows = []
    for batch in batches:
        with precision.autocast():
            found = model.features(batch["pixel_values"])
        rows.append(found.to("cpu", precision.dtype))
        bar.update(len(found))
    return torch.cat(rows)
