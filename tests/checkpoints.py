"""Small checkpoints of every family, as transformers writes them, with random weights."""

from pathlib import Path

import torch
from torch import nn
from transformers import BitImageProcessor, DeiTImageProcessor, ViTImageProcessor

from models.family import FAMILIES

NAMES = ["rose", "tulip", "daisy"]
PROCESSORS = {
    "vit": lambda side: ViTImageProcessor(size={"height": side, "width": side}),
    "deit": lambda side: DeiTImageProcessor(
        size={"height": side + 8, "width": side + 8}, crop_size={"height": side, "width": side}
    ),
    "dinov2": lambda side: BitImageProcessor(
        size={"shortest_edge": side + 8}, crop_size={"height": side, "width": side}
    ),
}


def processor_of(family: str, side: int = 32):
    """As the family's checkpoints on the Hub have it, in small."""
    return PROCESSORS[family.removesuffix("_with_registers")](side)


def small_config(family: str, names: list[str] = NAMES, **values):
    """Two blocks of width 32 for images of 32 x 32 pixels, 16 patches."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    inner = {"mlp_ratio": 2} if family.startswith("dinov2") else {"intermediate_size": 64}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return FAMILIES[family].config(**(size | inner | labels | values))


def random_network(network: nn.Module) -> nn.Module:
    """The same network with weights that differ everywhere; DeiT's position embeddings begin as zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def small_checkpoint(family: str, folder: Path, names: list[str] = NAMES, side: int = 32, **values) -> Path:
    """A folder with a network of `small_config(**values)` and a processor for images of `side` pixels."""
    network = random_network(FAMILIES[family].network(small_config(family, names, **values)))
    network.save_pretrained(folder)
    processor_of(family, side).save_pretrained(folder)
    return folder
