"""SWAP HERE: `Classifier` is what the loop trains. Anything that maps uint8 images to logits can take its place."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from models import ModelError
from models.preprocessing import PROCESSOR_FILE, Normalize, Preprocessing, read_preprocessing


class Classifier(nn.Module):
    """uint8 images [n, 3, height, width] -> logits [n, classes]: the checkpoint's normalisation and its ViT.

    Training, evaluation and prediction all call this one module, so that none can normalise differently.
    """

    def __init__(self, vit: PreTrainedModel, processor: dict[str, Any]) -> None:
        """All that classification uses is trained, until `freeze` is called.

        Args:
            vit: a network of `models.family`, with its head.
            processor: the content of the checkpoint's preprocessor_config.json; ModelError if it is not usable.
        """
        super().__init__()
        self.processor = processor
        self.normalize = Normalize(read_preprocessing(processor)).to(vit.device)
        self.vit = vit
        self.frozen: list[nn.Module] = []
        self.on_features = False  # whether `forward` takes what `features` returns, instead of images
        mask_token = getattr(vit.base_model.embeddings, "mask_token", None)
        if mask_token is not None:  # of pretraining: it would never get the gradient that DDP waits for
            mask_token.requires_grad_(False)

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
        if self.on_features:
            return self.vit.classifier(pixel_values)
        pixels = self.normalize(pixel_values).to(self.vit.dtype)
        return self.vit(pixels).logits

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the head gets for a batch of images: [n, features]."""
        found: list[torch.Tensor] = []
        hook = self.vit.classifier.register_forward_pre_hook(lambda _, inputs: found.extend(inputs))
        try:
            self(pixel_values)
        finally:
            hook.remove()
        return found[0]

    def train(self, mode: bool = True) -> Self:
        """As for any module, but what is frozen stays in evaluation mode: nothing is dropped there."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def freeze(self, what: str) -> str:
        """Keep parts of the network as they are, from now on.

        Args:
            what: `backbone`: all but the head. A number N: the embeddings and the first N blocks.

        Returns:
            What that is, for people to read.

        Raises:
            ModelError: there are fewer blocks.
        """
        backbone, blocks = self.vit.base_model, self.blocks
        if what == "backbone":
            self.frozen, name = [backbone], "backbone"
        elif int(what) <= len(blocks):
            self.frozen = [backbone.embeddings, *blocks[: int(what)]]
            name = f"embeddings and {what} of {len(blocks)} blocks"
        else:
            raise ModelError(f"--freeze {what}: the model has {len(blocks)} blocks; backbone freezes all but the head")
        for part in self.frozen:
            part.requires_grad_(False)
        self.train(self.training)
        return f"frozen: {name}"

    def recompute_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass, with the same dropout."""
        # Older versions of transformers have it under the second name.
        enable = getattr(self.vit, "activation_checkpointing_enable", None) or self.vit.gradient_checkpointing_enable
        enable({"use_reentrant": False})

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
