"""Another image size than a checkpoint's: its position embeddings are interpolated once, as it is loaded."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from models import ModelError
from models.config import SIDES, sides


def check_side(side: int, shape: dict[str, Any]) -> None:
    """Refuse a --image_size that cannot be made of the network of this shape (of `models.config.read_shape`)."""
    patch, most = shape["patch_size"], SIDES["image_size"]
    height, width = sides(shape["image_size"])
    if side > most:
        raise ModelError(f"--image_size {side}: can be at most {most} pixels")
    if height != width or not isinstance(patch, int):
        of = " x ".join(map(str, sides(patch)))
        raise ModelError(
            f"--image_size {side}: the model takes {height} x {width} pixels in patches of {of}; only square ones can"
            " be brought to another size"
        )
    if side % patch:
        near = [multiple for multiple in (side // patch * patch, (side // patch + 1) * patch) if 0 < multiple <= most]
        raise ModelError(
            f"--image_size {side}: must be a multiple of the patch size {patch}, such as {' or '.join(map(str, near))}"
        )


@torch.no_grad()
def interpolate_positions(vit: PreTrainedModel, side: int) -> None:
    """Make `vit`, which takes square images, one of images of side x side pixels, by its family's own formula."""
    embeddings = vit.base_model.embeddings
    patches, positions = embeddings.patch_embeddings, embeddings.position_embeddings
    tokens = positions.shape[1] - patches.num_patches  # that stand for no patch
    count = (side // sides(vit.config.patch_size)[0]) ** 2
    blank = positions.new_empty(1, tokens + count, positions.shape[2])  # of which only the shape is looked at
    embeddings.position_embeddings = nn.Parameter(embeddings.interpolate_pos_encoding(blank, side, side).contiguous())
    patches.num_patches, vit.config.image_size = count, side
    for part in (patches, embeddings):
        if hasattr(part, "image_size"):  # ViT and DeiT compare it with what they are given
            part.image_size = (side, side)
