"""Small pictures for a page."""

import base64
import io

from PIL import Image

from data.reading.decode import decode

SIDE = 128  # pixels of the longer edge, at most


def thumbnail(data: bytes, quality: int = 80) -> str:
    """An encoded image as a small JPEG, base64; DataError if it cannot be decoded."""
    image = Image.fromarray(decode(data, "thumbnail").permute(1, 2, 0).numpy())
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode("ascii")
