"""`ViTForImageClassification`: from a checkpoint, with a new head where the classes differ, or from scratch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.image_processing_base import ImageProcessingMixin

from models import ModelError

PROCESSOR_FILE = "preprocessor_config.json"
HEAD = {"classifier.weight", "classifier.bias"}

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
    """A network, and what its checkpoint says of the pixels it wants."""

    network: ViTForImageClassification
    processor: dict[str, Any]  # the content of preprocessor_config.json
    new_head: bool = False
    notes: list[str] = field(default_factory=list)  # what was decided on the way, for people to read


def load_model(
    model: str,
    label_names: list[str],
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    cache_dir: str | None = None,
    offline: bool = False,
) -> LoadedModel:
    """Load or build a ViT that classifies into `label_names`.

    The head is drawn from torch's global generator (normal, std 0.02, bias 0), so seed that first.

    Args:
        model: `builtin:small`, `builtin:tiny`, a checkpoint folder, or the name of a model on the Hub.
        label_names: the classes in the order of their indices.
        attention: which of transformers' implementations: `sdpa` or `eager`; same function, other last bits.
        dtype: of the parameters, whatever the file has.
        cache_dir: the Hub cache to download to.
        offline: use what that cache holds, and do not ask the network.

    Raises:
        ModelError: in one line, what is wrong with the name, the files or the weights.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    id2label = dict(enumerate(label_names))
    label2id = {name: index for index, name in id2label.items()}
    if model.startswith("builtin:"):
        return _from_scratch(model, id2label, label2id, attention)
    _refuse_unusable_path(model)
    where = {"cache_dir": cache_dir, "local_files_only": offline}
    try:
        old, _ = ViTConfig.get_config_dict(model, **where)
        if old.get("model_type") != "vit":
            raise ModelError(f"--model {model}: is a {old.get('model_type', 'nameless')} model; a vit is needed")
        processor = _read_processor(model, where)
        network, report = ViTForImageClassification.from_pretrained(
            model,
            id2label=id2label,
            label2id=label2id,
            dtype=dtype,  # the default keeps what the file has, which may be float16
            attn_implementation=attention,
            use_safetensors=True,  # never a pickle, which may run code
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises OSError, ValueError, SafetensorError, ...
        raise ModelError(_explain(model, offline, error)) from error
    same_classes = _labels(old) == label_names
    notes = _check_keys(model, report, head_may_differ=not same_classes)
    notes += _renew_head(network, report, same_classes)
    _check_size(model, network.config, processor)
    return LoadedModel(network, processor, not same_classes, notes)


def save_model(
    network: ViTForImageClassification,
    processor: dict[str, Any],
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `model.safetensors`, `config.json` and `preprocessor_config.json`, loadable by `from_pretrained`.

    `weights` are the network's by default, or a copy taken earlier of its `state_dict()`.
    """
    network.save_pretrained(folder, state_dict=weights)
    (folder / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(network: ViTForImageClassification, folder: Path) -> dict[str, torch.Tensor]:
    """What `save_model` wrote in `folder`, by the network's own names; ModelError if any is missing or left over."""
    saved = load_model(str(folder), list(network.config.id2label.values()), dtype=network.dtype)
    if saved.new_head:
        raise ModelError(f"{folder}: was saved for other classes than {', '.join(network.config.id2label.values())}")
    return saved.network.state_dict()


def _from_scratch(model: str, id2label: dict[int, str], label2id: dict[str, int], attention: str) -> LoadedModel:
    if model not in BUILT_IN:
        raise ModelError(f"--model {model}: the built-in models are {', '.join(BUILT_IN)}")
    config = ViTConfig(**BUILT_IN[model], id2label=id2label, label2id=label2id, attn_implementation=attention)
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
    return LoadedModel(ViTForImageClassification(config), processor, True, ["from scratch"])


def _refuse_unusable_path(model: str) -> None:
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"--model {model}: the folder holds no config.json; name a checkpoint folder")
    if path.is_file():
        raise ModelError(f"--model {model}: is a file; name the folder that holds config.json")
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")):
        raise ModelError(f"--model {model}: there is no such folder")


def _read_processor(model: str, where: dict[str, Any]) -> dict[str, Any]:
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(model, **where)
        if not isinstance(processor, dict):
            raise TypeError("it is no JSON object")
    except (OSError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--model {model}: holds no readable {PROCESSOR_FILE}, without which size, mean and std are unknown"
        ) from error
    return processor


def _labels(config: dict[str, Any]) -> list[str]:
    """The class names of a config.json, by index; what it stores as {"0": "cat"}."""
    return [name for _, name in sorted((int(index), name) for index, name in (config.get("id2label") or {}).items())]


def _check_keys(model: str, report: dict[str, Any], head_may_differ: bool) -> list[str]:
    """Refuse weights that are missing or left over: the library would draw or drop them with a mere warning."""
    missing = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if wrong := sorted(missing - (HEAD if head_may_differ else set())):
        raise ModelError(f"--model {model}: weights missing or of another shape: {_first(wrong)}")
    # A pooler belongs to the head of pretraining (in21k has one); classification does not use it.
    pooler = {key for key in report["unexpected_keys"] if key.removeprefix("vit.").startswith("pooler.")}
    if wrong := sorted(set(report["unexpected_keys"]) - pooler):
        raise ModelError(f"--model {model}: weights that this architecture does not have: {_first(wrong)}")
    return ["the checkpoint's pooler is not used"] if pooler else []


def _first(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _renew_head(network: ViTForImageClassification, report: dict[str, Any], same_classes: bool) -> list[str]:
    if same_classes:
        return []
    head = network.classifier
    drawn = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if not drawn & HEAD:  # as many classes, but other ones: the library has kept the old head
        nn.init.normal_(head.weight, std=network.config.initializer_range)
        nn.init.zeros_(head.bias)
    return [f"new head for {head.out_features} classes"]


def _check_size(model: str, config: ViTConfig, processor: dict[str, Any]) -> None:
    size, wanted = processor.get("size"), config.image_size
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    expected = list(wanted) if isinstance(wanted, list | tuple) else [wanted, wanted]
    if sides != expected:
        raise ModelError(f"--model {model}: {PROCESSOR_FILE} says size {size}, config.json image_size {wanted}")
    if config.num_channels != 3:
        raise ModelError(f"--model {model}: wants {config.num_channels} channels; images here have 3 (RGB)")


def _explain(model: str, offline: bool, error: Exception) -> str:
    if offline and not Path(model).exists():
        return (
            f"--model {model}: no such folder, and the Hub cannot be reached and its cache does not hold it;"
            " name a local checkpoint folder, or train the built-in model with --preset leaves"
        )
    return f"--model {model}: cannot be loaded: {' '.join(str(error).split())[:300] or type(error).__name__}"
