"""Small pictures for data sets that are made in tests."""

import io

import numpy as np
from PIL import Image


def png(number: int) -> bytes:
    """An 8 x 8 picture that no other number has."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
