"""A model's files: written by its own `save_pretrained` where it has one, and read back to the bit."""

import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import ModelError
from models.classifier import Classifier
from models.loading import check_keys, load_model

WEIGHTS_FILE = "model.safetensors"


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
    """The weights that `save_model` wrote, by the model's own names.

    Raises:
        ModelError: of a `Classifier` or a model of transformers: a weight is missing or left over.
    """
    if isinstance(model, Classifier):
        names = list(model.vit.config.id2label.values())
        saved = load_model(str(folder), names, dtype=model.vit.dtype)
        if saved.new_head:
            raise ModelError(f"{folder}: was saved for other classes than {', '.join(names)}")
        return saved.model.state_dict()
    if _saves_weights(model):  # transformers renames weights as it saves and as it loads
        dtype = next(model.parameters()).dtype
        saved, report = type(model).from_pretrained(folder, dtype=dtype, output_loading_info=True)
        check_keys(str(folder), report)
        return saved.state_dict()
    return load_file(folder / WEIGHTS_FILE)


def _saves_weights(model: nn.Module) -> bool:
    save = getattr(model, "save_pretrained", None)
    return save is not None and "state_dict" in inspect.signature(save).parameters
