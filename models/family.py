"""The Vision Transformers that can be trained, by the `model_type` of their config.json, as transformers has them."""

from dataclasses import dataclass

from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from models import ModelError
from models.config import shown

HEAD = frozenset({"classifier.weight", "classifier.bias"})  # of every one of them


@dataclass(frozen=True)
class Family:
    """One architecture."""

    config: type[PreTrainedConfig]
    network: type[PreTrainedModel]  # with a head that classifies images
    processor: str  # that transformers takes if preprocessor_config.json names none
    left_over: frozenset[str] = frozenset()  # parts of a pretraining checkpoint that classification does not use
    any_size: bool = False  # it interpolates its position embeddings to whatever size its processor gives


FAMILIES = {
    "vit": Family(ViTConfig, ViTForImageClassification, "ViTImageProcessor", frozenset({"pooler"})),
    "deit": Family(
        DeiTConfig,
        DeiTForImageClassification,
        "DeiTImageProcessor",
        # Of a distilled checkpoint the two heads are dropped: the new one reads the class token alone.
        frozenset({"pooler", "cls_classifier", "distillation_classifier"}),
    ),
    "dinov2": Family(Dinov2Config, Dinov2ForImageClassification, "BitImageProcessor", any_size=True),
    "dinov2_with_registers": Family(
        Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification, "BitImageProcessor", any_size=True
    ),
}


def family_of(model_type: object) -> Family:
    """The family of a config.json's `model_type`; ModelError names those that there are."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        name = "nameless" if model_type is None else shown(model_type).strip("'")
        raise ModelError(f"is a {name} model; what can be trained is {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
