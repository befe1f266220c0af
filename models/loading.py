"""A `Classifier` from a checkpoint, with a new head where the classes differ, or from scratch."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from models import ModelError
from models.classes import join, put_first
from models.classifier import Classifier
from models.config import sides
from models.family import HEAD
from models.positions import check_side, interpolate_positions
from models.preprocessing import for_side
from models.source import Checkpoint, Source, read_checkpoint, side_to_take

# From scratch, for data that needs no pretraining: sizes in pixels and in numbers of features.
BUILT_IN: dict[str, dict[str, int]] = {
    "builtin:small": {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "builtin:tiny": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
}


@dataclass(frozen=True)
class LoadedModel:
    """A model and what was decided while loading it."""

    model: Classifier
    new_head: bool = False
    notes: list[str] = field(default_factory=list)  # for people to read


def load_model(
    model: str,
    label_names: list[str],
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> LoadedModel:
    """Load or build a Vision Transformer that classifies into `label_names`.

    A checkpoint of the same classes, by name, keeps its head, with the classes in the order of `label_names`. A new
    head is drawn from torch's global generator (normal, std 0.02, bias 0), so seed that first.

    Args:
        model: `builtin:small`, `builtin:tiny`, a checkpoint folder, or the name of a model on the Hub.
        label_names: the classes in the order of their indices.
        attention: which of transformers' implementations: `sdpa` or `eager`; same function, other last bits.
        dtype: of the parameters, whatever the file has.
        image_size: side in pixels of the images that it shall take; by default that of the checkpoint.
        revision: branch, tag or commit of a model on the Hub.
        cache_dir: the Hub cache to download to.
        offline: use what that cache holds, and do not ask the network.

    Raises:
        ModelError: in one line, what is wrong with the name, the files or the weights.
    """
    _quieten_transformers()
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    source = Source(model, revision, cache_dir, offline)
    if model.startswith("builtin:"):
        return _from_scratch(model, image_size, attn_implementation=attention, **labels)
    with source.explained():
        checkpoint = read_checkpoint(source)
        side = side_to_take(model, checkpoint, image_size)
        order = join(checkpoint.classes, label_names)
        vit, report = _read_network(source, checkpoint, labels, attn_implementation=attention, dtype=dtype)
    notes = check_keys(model, report, HEAD if order is None else frozenset(), checkpoint.family.left_over)
    notes += _renew_head(vit, report) if order is None else _reorder_head(vit, order)
    processor = checkpoint.processor
    if side is not None:
        before = sides(checkpoint.shape["image_size"])[0]
        if before != side:
            notes.append(f"position embeddings interpolated from {before} to {side} pixels")
            interpolate_positions(vit, side)
        processor = for_side(processor, side)
    return LoadedModel(Classifier(vit, processor), order is None, notes + checkpoint.notes)


def names_to_evaluate(
    model: str,
    label_names: list[str],
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> list[str]:
    """Every class of a trained model, `label_names` first: loaded with these names it keeps its head.

    Args:
        model: as for `load_model`, like all that follow but one.
        label_names: the classes of the data, which may be fewer.
        revision: branch, tag or commit of a model on the Hub.
        cache_dir: the Hub cache to download to.
        offline: use what that cache holds, and do not ask the network.

    Raises:
        ModelError: the model does not have a class of the data, or two of that name; names it.
    """
    source = Source(model, revision, cache_dir, offline)
    if model.startswith("builtin:"):
        raise ModelError(f"--eval_only: {model} is built untrained; name a model that is trained with --model")
    with source.explained():
        classes = read_checkpoint(source).classes
    return put_first(classes, label_names, model)


def _quieten_transformers() -> None:
    """No warnings, of which this file says the important ones itself, and no bars but those of downloads."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # switches off those of downloads as well
    if sys.stderr.isatty():
        enable_progress_bars()


def _from_scratch(model: str, image_size: int | None, **options: Any) -> LoadedModel:
    if model not in BUILT_IN:
        raise ModelError(f"--model {model}: the built-in models are {', '.join(BUILT_IN)}")
    shape = BUILT_IN[model]
    if image_size is not None:
        check_side(image_size, shape)
        shape = shape | {"image_size": image_size}
    config = ViTConfig(**shape, **options)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return LoadedModel(Classifier(ViTForImageClassification(config), processor), True, ["from scratch"])


def _read_network(
    source: Source, checkpoint: Checkpoint, labels: dict[str, Any], **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The network with its weights, and transformers' report on which of them it found."""
    family = checkpoint.family
    vit, report = family.network.from_pretrained(
        source.model,
        config=family.config(**checkpoint.shape, **labels),  # nothing else of its config.json, such as problem_type
        use_safetensors=True,  # never a pickle, which may run code
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,  # with a dtype: the default keeps what the file has, which may be float16
        **source.where,
    )
    for parameter in vit.parameters():
        # Out of the file, where tensors begin at any byte: by that, BLAS rounds the logits of a single image.
        parameter.data = parameter.data.clone()
    return vit, report


def check_keys(
    model: str, report: dict[str, Any], may_lack: frozenset[str] = frozenset(), left_over: frozenset[str] = frozenset()
) -> list[str]:
    """Refuse weights that are missing or left over: the library would draw or drop them with a mere warning.

    Args:
        model: what to call it.
        report: of transformers, from loading.
        may_lack: names of weights that may be missing.
        left_over: parts that may be there without need.

    Returns:
        Notes for people to read.
    """
    missing = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if wrong := sorted(missing - may_lack):
        raise ModelError(f"--model {model}: weights missing or of another shape: {', '.join(wrong[:3])}")
    unused = {key: left_over.intersection(key.split(".")[:2]) for key in report["unexpected_keys"]}
    if wrong := sorted(key for key, parts in unused.items() if not parts):
        raise ModelError(f"--model {model}: weights that this architecture does not have: {', '.join(wrong[:3])}")
    return [f"the checkpoint's {part} is not used" for part in sorted(set().union(*unused.values()))]


def _renew_head(vit: PreTrainedModel, report: dict[str, Any]) -> list[str]:
    head = vit.classifier
    drawn = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if not drawn & HEAD:  # as many classes, but other ones: the library has kept the old head
        nn.init.normal_(head.weight, std=vit.config.initializer_range)
        nn.init.zeros_(head.bias)
    return [f"new head for {head.out_features} classes"]


@torch.no_grad()
def _reorder_head(vit: PreTrainedModel, order: list[int]) -> list[str]:
    if order == sorted(order):
        return []
    for parameter in vit.classifier.parameters():
        parameter.copy_(parameter[order])
    return ["the head's classes reordered by name"]
