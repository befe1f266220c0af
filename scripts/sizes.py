"""Vision Transformers of the usual sizes, with random weights: what the measurements train."""

from typing import Any

from transformers import ViTConfig

# Width, layers, heads, width inside the MLP: DeiT-Tiny's, DeiT-Small's and ViT-B/16's.
SIZES = {"tiny": (192, 12, 3, 768), "small": (384, 12, 6, 1536), "base": (768, 12, 12, 3072)}


def vit_config(size: str, **options: Any) -> ViTConfig:
    """The configuration of a size of SIZES; `options` are further ones of ViTConfig's."""
    width, layers, heads, inner = SIZES[size]
    return ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner, **options
    )
