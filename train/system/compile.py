"""torch.compile: whether it pays, and for which batches."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from train.errors import ConfigError

WORTH_COMPILING = 40_000  # images


def choose_compile(asked: str, device: torch.device, precision: str, images: int) -> tuple[bool, str]:
    """Whether to compile the model, and why. A function of the run alone, so that a resume decides the same.

    Args:
        asked: auto, on or off.
        device: to compute on.
        precision: fp32, bf16, fp16 or fp64.
        images: that this process trains on in the whole run, epochs counted.

    Raises:
        ConfigError: it was asked for, and there is no C++ compiler here.
    """
    has_compiler = device.type != "cpu" or any(
        shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++") if name
    )
    if asked == "on" and not has_compiler:
        raise ConfigError("--torch_compile on: needs a C++ compiler, but no g++ was found here")
    if asked != "auto":
        return asked == "on", "as asked"
    if device.type != "cpu" or precision != "bf16":
        return False, f"no gain was measured on {device.type} in {precision}"
    if not has_compiler:
        return False, "there is no C++ compiler here"
    enough = images >= WORTH_COMPILING
    return enough, f"{images} images are {'enough' if enough else 'too few'} to pay for a minute of compiling"


def compile_model(model: nn.Module, batch_size: int, device: torch.device, accumulation: int = 1) -> None:
    """Compile `model` in place for training batches of one size; its weights and their names stay as they are.

    A short last batch, and evaluation, run uncompiled: each new shape would take another minute to compile. On CUDA
    the kernels of an update are recorded as one graph, which at small batches costs less than launching them; not with
    accumulation, because the next replay would overwrite the gradients that are being added up.
    """
    eager: Any = model.forward
    mode = "reduce-overhead" if device.type == "cuda" and accumulation == 1 else "default"
    compiled = torch.compile(eager, dynamic=False, mode=mode)

    def forward(pixel_values: torch.Tensor, **options: Any) -> Any:
        full = model.training and len(pixel_values) == batch_size
        return (compiled if full else eager)(pixel_values, **options)

    model.forward = forward
