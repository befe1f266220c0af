"""Where a model comes from, and what its two JSON files say, checked before anything is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from models import ModelError
from models.classes import read_classes
from models.config import check_parameters, notes_on, read_shape, sides
from models.family import Family, family_of
from models.positions import check_side
from models.preprocessing import PROCESSOR_FILE, Preprocessing, read_preprocessing


@dataclass(frozen=True)
class Source:
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


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's two JSON files say."""

    family: Family
    shape: dict[str, Any]  # of the network: arguments of the family's config
    classes: list[str]  # by index
    processor: dict[str, Any]
    preprocessing: Preprocessing  # the same, understood
    notes: list[str]


def read_checkpoint(source: Source) -> Checkpoint:
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
    return Checkpoint(family, shape, classes, processor, preprocessing, notes_on(config))


def side_to_take(model: str, checkpoint: Checkpoint, asked: int | None) -> int | None:
    """The side in pixels to which network and processor must be brought; None if both have it.

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
    if [asked, asked] != stated:
        check_side(asked, shape)
    return None if made == stated == [asked, asked] else asked


def _refuse_unusable_path(model: str) -> None:
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"--model {model}: the folder holds no config.json; name a checkpoint folder")
    if path.is_file():
        raise ModelError(f"--model {model}: is a file; name the folder that holds config.json")
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/")):
        raise ModelError(f"--model {model}: there is no such folder")


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{prefix}{error}") from error


def _read_processor(source: Source) -> dict[str, Any]:
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
