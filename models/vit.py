"""`ViTForImageClassification`: from a checkpoint, with a new head where the classes differ, or from scratch.

SWAP HERE: `Classifier` is what the loop trains. Anything that maps uint8 images to logits can take its place.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.image_processing_base import ImageProcessingMixin

from models import ModelError
from models.classes import join, put_first, read_classes
from models.config import check_parameters, notes_on, read_shape, sides
from models.preprocessing import Normalize, Preprocessing, read_preprocessing

WEIGHTS_FILE = "model.safetensors"
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


class Classifier(nn.Module):
    """uint8 images [n, 3, height, width] -> logits [n, classes]: the checkpoint's normalisation and its ViT.

    Training, evaluation and prediction all call this one module, so that none can normalise differently.
    """

    def __init__(self, vit: ViTForImageClassification, processor: dict[str, Any]) -> None:
        """`processor` is the content of the checkpoint's preprocessor_config.json; ModelError if it is not usable."""
        super().__init__()
        self.processor = processor
        self.normalize = Normalize(read_preprocessing(processor)).to(vit.device)
        self.vit = vit

    @property
    def preprocessing(self) -> Preprocessing:
        """The size and the normalisation that the checkpoint was trained with."""
        return read_preprocessing(self.processor)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        lists = (module for module in self.vit.modules() if isinstance(module, nn.ModuleList))
        return next(layers for layers in lists if len(layers) == self.vit.config.num_hidden_layers)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Classify a batch."""
        pixels = self.normalize(pixel_values).to(self.vit.dtype)
        return self.vit(pixels).logits

    def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write `model.safetensors`, `config.json` and `preprocessor_config.json`, which `from_pretrained` loads.

        Args:
            folder: exists already.
            state_dict: of this module, taken earlier; by default the present one.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        self.vit.save_pretrained(folder, state_dict={name.removeprefix("vit."): w for name, w in weights.items()})
        document = json.dumps(self.processor, indent=2, sort_keys=True) + "\n"
        (folder / PROCESSOR_FILE).write_text(document, encoding="utf-8")

    def read_weights(self, folder: Path) -> dict[str, torch.Tensor]:
        """The state_dict that `save_pretrained` wrote; ModelError if a weight is missing or left over."""
        names = list(self.vit.config.id2label.values())
        saved = load_model(str(folder), names, dtype=self.vit.dtype)
        if saved.new_head:
            raise ModelError(f"{folder}: was saved for other classes than {', '.join(names)}")
        return saved.model.state_dict()


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
    cache_dir: str | None = None,
    offline: bool = False,
) -> LoadedModel:
    """Load or build a ViT that classifies into `label_names`.

    A checkpoint of the same classes, by name, keeps its head, with the classes in the order of `label_names`. A new
    head is drawn from torch's global generator (normal, std 0.02, bias 0), so seed that first.

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
    _quieten_transformers()
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    if model.startswith("builtin:"):
        return _from_scratch(model, attn_implementation=attention, **labels)
    where = {"cache_dir": cache_dir, "local_files_only": offline}
    with _explained(model, offline):
        checkpoint = _read_configs(model, where)
        order = join(checkpoint.classes, label_names)
        vit, report = ViTForImageClassification.from_pretrained(
            model,
            config=ViTConfig(**checkpoint.shape, **labels),  # nothing else of its config.json, such as problem_type
            dtype=dtype,  # the default keeps what the file has, which may be float16
            attn_implementation=attention,
            use_safetensors=True,  # never a pickle, which may run code
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    notes = _check_keys(model, report, head_may_differ=order is None)
    notes += _renew_head(vit, report) if order is None else _reorder_head(vit, order)
    return LoadedModel(Classifier(vit, checkpoint.processor), order is None, notes + checkpoint.notes)


def names_to_evaluate(
    model: str, label_names: list[str], *, cache_dir: str | None = None, offline: bool = False
) -> list[str]:
    """Every class of a trained model, `label_names` first: loaded with these names it keeps its head.

    Args:
        model: as for `load_model`.
        label_names: the classes of the data, which may be fewer.
        cache_dir: the Hub cache to download to.
        offline: use what that cache holds, and do not ask the network.

    Raises:
        ModelError: the model does not have a class of the data, or two of that name; names it.
    """
    if model.startswith("builtin:"):
        raise ModelError(f"--eval_only: {model} is built untrained; name a model that is trained with --model")
    with _explained(model, offline):
        classes = _read_configs(model, {"cache_dir": cache_dir, "local_files_only": offline}).classes
    return put_first(classes, label_names, model)


def _quieten_transformers() -> None:
    """No warnings, of which this file says the important ones itself, and no bars but those of downloads."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # switches off those of downloads as well
    if sys.stderr.isatty():
        enable_progress_bars()


def save_model(model: nn.Module, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a model into `folder`: by its own `save_pretrained` if it takes weights, else as safetensors.

    Args:
        model: a `Classifier`, a model of transformers, or any other module.
        folder: exists already.
        weights: its `state_dict()`, perhaps taken earlier.
    """
    if _saves_weights(model):
        model.save_pretrained(folder, state_dict=weights)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)


def read_weights(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that `save_model` wrote, by the model's own names."""
    if hasattr(model, "read_weights"):
        return model.read_weights(folder)
    if _saves_weights(model):  # transformers renames weights as it saves and as it loads
        dtype = next(model.parameters()).dtype
        saved, report = type(model).from_pretrained(folder, dtype=dtype, output_loading_info=True)
        _check_keys(str(folder), report, head_may_differ=False)
        return saved.state_dict()
    return load_file(folder / WEIGHTS_FILE)


def _saves_weights(model: nn.Module) -> bool:
    save = getattr(model, "save_pretrained", None)
    return save is not None and "state_dict" in inspect.signature(save).parameters


def _from_scratch(model: str, **options: Any) -> LoadedModel:
    if model not in BUILT_IN:
        raise ModelError(f"--model {model}: the built-in models are {', '.join(BUILT_IN)}")
    config = ViTConfig(**BUILT_IN[model], **options)
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


def _refuse_unusable_path(model: str) -> None:
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"--model {model}: the folder holds no config.json; name a checkpoint folder")
    if path.is_file():
        raise ModelError(f"--model {model}: is a file; name the folder that holds config.json")
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")):
        raise ModelError(f"--model {model}: there is no such folder")


@dataclass(frozen=True)
class _Checkpoint:
    """What a checkpoint's two JSON files say."""

    shape: dict[str, Any]  # of the network: arguments of ViTConfig
    classes: list[str]  # by index
    processor: dict[str, Any]
    notes: list[str]


def _read_configs(model: str, where: dict[str, Any]) -> _Checkpoint:
    """Read and check config.json and preprocessor_config.json, before anything is allocated."""
    _refuse_unusable_path(model)
    try:
        config, _ = ViTConfig.get_config_dict(model, **where)
    except (TypeError, AttributeError):  # of JSON that is no object
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"--model {model}: config.json holds no JSON object")
    if config.get("model_type") != "vit":
        raise ModelError(f"--model {model}: is a {config.get('model_type', 'nameless')} model; a vit is needed")
    stored = [file.stat().st_size for file in Path(model).glob("*.safetensors")]
    with _prefixed(f"--model {model}: config.json: "):
        shape, classes = read_shape(config), read_classes(config)
        check_parameters(shape, sum(stored) if stored else None)
    processor = _read_processor(model, where)
    _check_size(model, shape, processor)
    with _prefixed(f"--model {model}: "):
        read_preprocessing(processor)
    return _Checkpoint(shape, classes, processor, notes_on(config))


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{prefix}{error}") from error


def _read_processor(model: str, where: dict[str, Any]) -> dict[str, Any]:
    """The content of preprocessor_config.json, without the name of code to run."""
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(model, **where)
        if not isinstance(processor, dict):
            raise TypeError("it is not a JSON object")
    except (OSError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--model {model}: holds no readable {PROCESSOR_FILE}, without which size, mean and std are unknown"
        ) from error
    return {name: value for name, value in processor.items() if name != "auto_map"}


def _check_keys(model: str, report: dict[str, Any], head_may_differ: bool) -> list[str]:
    """Refuse weights that are missing or left over: the library would draw or drop them with a mere warning."""
    missing = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if wrong := sorted(missing - (HEAD if head_may_differ else set())):
        raise ModelError(f"--model {model}: weights missing or of another shape: {', '.join(wrong[:3])}")
    # A pooler belongs to the head of pretraining (in21k has one); classification does not use it.
    pooler = {key for key in report["unexpected_keys"] if key.removeprefix("vit.").startswith("pooler.")}
    if wrong := sorted(set(report["unexpected_keys"]) - pooler):
        raise ModelError(f"--model {model}: weights that this architecture does not have: {', '.join(wrong[:3])}")
    return ["the checkpoint's pooler is not used"] if pooler else []


def _renew_head(vit: ViTForImageClassification, report: dict[str, Any]) -> list[str]:
    head = vit.classifier
    drawn = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    if not drawn & HEAD:  # as many classes, but other ones: the library has kept the old head
        nn.init.normal_(head.weight, std=vit.config.initializer_range)
        nn.init.zeros_(head.bias)
    return [f"new head for {head.out_features} classes"]


@torch.no_grad()
def _reorder_head(vit: ViTForImageClassification, order: list[int]) -> list[str]:
    if order == sorted(order):
        return []
    for parameter in vit.classifier.parameters():
        parameter.copy_(parameter[order])
    return ["the head's classes reordered by name"]


def _check_size(model: str, shape: dict[str, Any], processor: dict[str, Any]) -> None:
    size, wanted = processor.get("size"), shape["image_size"]
    stated = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    if stated != sides(wanted):
        raise ModelError(f"--model {model}: {PROCESSOR_FILE} says size {size}, config.json image_size {wanted}")
    if shape["num_channels"] != 3:
        raise ModelError(f"--model {model}: wants {shape['num_channels']} channels; images here have 3 (RGB)")


@contextmanager
def _explained(model: str, offline: bool) -> Iterator[None]:
    """Whatever the library raises (OSError, ValueError, SafetensorError, ...) becomes one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_explain(model, offline, error)) from error


def _explain(model: str, offline: bool, error: Exception) -> str:
    if offline and not Path(model).exists():
        return (
            f"--model {model}: no such folder, and the Hub cannot be reached and its cache does not hold it;"
            " name a local checkpoint folder, or train the built-in model with --preset leaves"
        )
    return f"--model {model}: cannot be loaded: {' '.join(str(error).split())[:300] or type(error).__name__}"
