"""A `Classifier` from a checkpoint, with a new head where the classes differ, or from scratch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification
from transformers.image_processing_base import ImageProcessingMixin

from models import ModelError
from models.classes import join, put_first, read_classes
from models.classifier import Classifier
from models.config import check_parameters, notes_on, read_shape, sides
from models.family import HEAD, Family, family_of
from models.positions import check_side, interpolate_positions
from models.preprocessing import PROCESSOR_FILE, Preprocessing, for_side, read_preprocessing

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
    source = _Source(model, revision, cache_dir, offline)
    if model.startswith("builtin:"):
        return _from_scratch(model, image_size, attn_implementation=attention, **labels)
    with source.explained():
        checkpoint = _read_configs(source)
        side = _side_to_take(model, checkpoint, image_size)
        order = join(checkpoint.classes, label_names)
        vit, report = _read_network(source, checkpoint, labels, attn_implementation=attention, dtype=dtype)
    notes = check_keys(model, report, HEAD if order is None else frozenset(), checkpoint.family.left_over)
    notes += _renew_head(vit, report) if order is None else _reorder_head(vit, order)
    processor = checkpoint.processor
    if side is not None:
        before = sides(checkpoint.shape["image_size"])[0]
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
    source = _Source(model, revision, cache_dir, offline)
    if model.startswith("builtin:"):
        raise ModelError(f"--eval_only: {model} is built untrained; name a model that is trained with --model")
    with source.explained():
        classes = _read_configs(source).classes
    return put_first(classes, label_names, model)


@dataclass(frozen=True)
class _Source:
    """Where a model comes from."""

    model: str
    revision: str | None
    cache_dir: str | None
    offline: bool

    def __post_init__(self) -> None:
        """Refuse a revision of what has none, and one that is no name in git but a path."""
        if self.revision is None:
            return
        if self.model.startswith("builtin:") or Path(self.model).exists():
            raise ModelError(f"--model_revision {self.revision}: {self.model} is not on the Hub; leave it out")
        if ".." in self.revision or self.revision.startswith(("/", "-")) or not self.revision:
            raise ModelError(f"--model_revision {self.revision}: is not the name of a branch, tag or commit")

    @property
    def where(self) -> dict[str, Any]:
        """What every loader of transformers takes."""
        asked = {"revision": self.revision} if self.revision else {}
        return asked | {"cache_dir": self.cache_dir, "local_files_only": self.offline}

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever the library raises (OSError, ValueError, SafetensorError, ...) becomes one line."""
        try:
            yield
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        revision = f"--model_revision {self.revision}: " if self.revision else ""
        if self.offline and not Path(self.model).exists():
            what = "no such folder, and the Hub cannot be reached and its cache does not hold it"
            if revision:
                what = "the Hub cannot be reached, and its cache does not hold this revision"
            way_out = "name a local checkpoint folder, or train the built-in model with --preset leaves"
            return f"--model {self.model}: {revision}{what}; {way_out}"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return f"--model {self.model}: {revision}cannot be loaded: {reason}"


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

    family: Family
    shape: dict[str, Any]  # of the network: arguments of the family's config
    classes: list[str]  # by index
    processor: dict[str, Any]
    preprocessing: Preprocessing  # the same, understood
    notes: list[str]


def _read_configs(source: _Source) -> _Checkpoint:
    """Read and check config.json and preprocessor_config.json, before anything is allocated."""
    model = source.model
    _refuse_unusable_path(model)
    try:
        config, _ = PreTrainedConfig.get_config_dict(model, **source.where)
    except (TypeError, AttributeError):  # of JSON that is no object
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"--model {model}: config.json holds no JSON object")
    with _prefixed(f"--model {model}: "):
        family = family_of(config.get("model_type"))
    stored = [file.stat().st_size for file in Path(model).glob("*.safetensors")]
    with _prefixed(f"--model {model}: config.json: "):
        shape, classes = read_shape(config, family.config()), read_classes(config)
        check_parameters(shape, sum(stored) if stored else None)
    if shape["num_channels"] != 3:
        raise ModelError(f"--model {model}: wants {shape['num_channels']} channels; images here have 3 (RGB)")
    processor = _read_processor(source)
    if not processor.keys() & {"image_processor_type", "feature_extractor_type"}:
        processor["image_processor_type"] = family.processor
    with _prefixed(f"--model {model}: "):
        preprocessing = read_preprocessing(processor)
    return _Checkpoint(family, shape, classes, processor, preprocessing, notes_on(config))


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{prefix}{error}") from error


def _read_processor(source: _Source) -> dict[str, Any]:
    """The content of preprocessor_config.json, without the name of code to run."""
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source.model, **source.where)
        if not isinstance(processor, dict):
            raise TypeError("it is not a JSON object")
    except (OSError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--model {source.model}: holds no readable {PROCESSOR_FILE}, without which size, mean and std are unknown"
        ) from error
    return {name: value for name, value in processor.items() if name != "auto_map"}


def _read_network(
    source: _Source, checkpoint: _Checkpoint, labels: dict[str, Any], **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The network with its weights, and transformers' report on which of them it found."""
    family = checkpoint.family
    return family.network.from_pretrained(
        source.model,
        config=family.config(**checkpoint.shape, **labels),  # nothing else of its config.json, such as problem_type
        use_safetensors=True,  # never a pickle, which may run code
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,  # with a dtype: the default keeps what the file has, which may be float16
        **source.where,
    )


def _side_to_take(model: str, checkpoint: _Checkpoint, asked: int | None) -> int | None:
    """The side in pixels to which position embeddings must be interpolated; None if they fit.

    DINOv2 is stored for 518 pixels, and its processor makes 224: its network would interpolate in every forward pass.
    """
    shape, made = checkpoint.shape, [checkpoint.preprocessing.height, checkpoint.preprocessing.width]
    stated = sides(shape["image_size"])
    square = all(len({*pair}) == 1 for pair in (made, stated, sides(shape["patch_size"])))
    if made != stated and not (checkpoint.family.any_size and square):
        raise ModelError(
            f"--model {model}: {PROCESSOR_FILE} makes {made[0]} x {made[1]} pixels, config.json says"
            f" image_size {shape['image_size']}"
        )
    if asked is None:
        return None if made == stated else made[0]
    if [asked, asked] == stated:
        return None
    check_side(asked, shape)
    return asked


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
