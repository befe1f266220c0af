"""A frozen backbone gives an image the same features in every epoch: computed once, the head learns on them."""

import hashlib
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import PIL
import torch
import torchvision
import transformers
from tqdm import tqdm

from data.cache.features import Features, kept_features
from data.cache.prepared import CachePolicy, Kept
from data.loading.loader import Images
from data.pipeline import DataPipeline, LoadingOptions, dataset_pipeline
from data.plan import Batch
from models.classifier import Classifier
from train.precision import Precision
from train.setup.inputs import Inputs
from train.system.console import say


def on_features(inputs: Inputs, eval_batch_size: int, policy: CachePolicy) -> tuple[DataPipeline, torch.Tensor]:
    """Switch the model to features, and compute those of every image, or take them from an earlier run.

    Returns:
        The pipeline of features in the place of images, in the same order, and the features of the training images.
    """
    data, device, both = inputs.data, inputs.precision.device, (inputs.splits.train, inputs.splits.validation)
    started, counts = time.perf_counter(), {split.name: len(split) for split in both}
    features, computed = kept_features(
        _depends_on(inputs, eval_batch_size), counts, policy, lambda: compute_all(inputs, sum(counts.values())), say
    )
    seconds = time.perf_counter() - started
    how = f"computed once in {seconds:.1f} s" if computed else "as an earlier run computed them"
    say(f"features: {sum(counts.values())} images, {how}; the head trains on them")
    inputs.loaded.model.on_features = True
    kept = [
        Images(Kept(features[split.name].to(device), torch.arange(len(split), device=device)), split.labels)
        for split in both
    ]
    options = LoadingOptions(eval_batch_size)
    made = dataset_pipeline(*kept, data.plan, device, data.label_names, options, say)
    batches = {"train_batches": made.train_batches, "validation_batches": made.validation_batches}
    return replace(data, notes=[*data.notes, "features kept in memory"], **batches), features["train"]


def _depends_on(inputs: Inputs, eval_batch_size: int) -> tuple[Any, ...]:
    """Everything that the bits of the features depend on."""
    model, precision = inputs.loaded.model, inputs.precision
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in model.vit.base_model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = model.vit.config.to_json_string()
    machine = (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), model.vit.config._attn_implementation)
    versions = (torch.__version__, torchvision.__version__, transformers.__version__, PIL.__version__)
    return (
        *(inputs.splits.fingerprint(), weights.hexdigest(), config, model.preprocessing, precision.name),
        *(str(precision.device), eval_batch_size, machine, versions),
    )


def compute_all(inputs: Inputs, count: int) -> Features:
    """Of both splits, by name. In the batches of an evaluation, so that the best model evaluates to the same bits."""
    model, data = inputs.loaded.model, inputs.data
    with tqdm(total=count, desc="computing features", leave=False, disable=not sys.stderr.isatty()) as bar:
        return {
            "train": compute_features(model, data.train_images(), inputs.precision, bar),
            "validation": compute_features(model, data.validation_batches(), inputs.precision, bar),
        }


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
