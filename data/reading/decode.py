"""Image bytes of any mode and orientation -> upright RGB of one size. The only file that calls Pillow's decoders."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from data import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows dozens more, each an attack surface
# A small file can claim a huge picture. Pillow only warns above this size, and only once, so we check ourselves.
MAX_PIXELS = 89_478_485
MOST_LONG = 100  # times the shortest edge
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Broken metadata does not make an image unusable: its pixels are used as they are.
warnings.filterwarnings("ignore", message="Corrupt EXIF data")
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooLargeError(DataError):
    """The image claims more pixels than may be decoded."""


TOO_LARGE = (TooLargeError, Image.DecompressionBombWarning, Image.DecompressionBombError)


@dataclass(frozen=True)
class Resize:
    """The size in pixels that a model takes, and how its checkpoint was trained to be given it."""

    height: int
    width: int
    interpolation: InterpolationMode
    before_crop: tuple[int, ...] | None = None  # shortest edge, or height and width, of which the middle is cut out

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [3, any, any] -> uint8 [3, height, width], antialiased; without a crop the aspect ratio is not kept."""
        if self.before_crop is None:
            return self._resized(image, [self.height, self.width])
        larger = self._resized(_less_long(image), list(self.before_crop))
        top, left = (larger.shape[-2] - self.height) // 2, (larger.shape[-1] - self.width) // 2
        return larger[..., top : top + self.height, left : left + self.width]

    def _resized(self, image: torch.Tensor, size: list[int]) -> torch.Tensor:
        return tvf.resize(image, size, interpolation=self.interpolation, antialias=True)


def _less_long(image: torch.Tensor) -> torch.Tensor:
    """The middle of a picture that is far longer than wide: 256 times a line of pixels would fill the memory."""
    most = MOST_LONG * min(image.shape[-2:])
    return tvf.center_crop(image, [min(side, most) for side in image.shape[-2:]])


def decode(data: bytes, name: str) -> torch.Tensor:
    """Decode one image fully.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF file.
        name: what to call the image in an error.

    Returns:
        uint8 [3, height, width], RGB, upright, transparency composited on white.

    Raises:
        TooLargeError: the bytes claim more than MAX_PIXELS.
        DataError: the bytes are not such an image, are damaged or cut short.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooLargeError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            image.load()  # verify() passes a JPEG cut in half; only a full decode tells
            pixels = np.array(_rgb(_upright(image)))
    except Exception as error:  # Pillow's decoders raise nearly everything: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its text is only the address of a buffer
            reason = f"not a {', '.join(FORMATS)} file"
        kind = TooLargeError if isinstance(error, TOO_LARGE) else DataError
        raise kind(f"{name}: cannot be decoded: {reason}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; with broken metadata leave it as it is."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        orientation = 1
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; convert("RGB") would clip nearly all of it to white
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise DataError("32-bit float pixels have no stated range; save the image with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")  # convert("RGB") would reveal the colours hidden under transparency
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Integer pixels of the 16-bit range [h, w] -> uint8 [h, w], rounded: 65535 / 255 = 257."""
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("integer pixels outside 0..65535 have no stated range; save with 8 or 16 bits")
    return ((values + 128) // 257).astype(np.uint8)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself."""

    format: str
    mode: str
    width: int  # as stored, before it is turned upright
    height: int
    orientation: int  # of EXIF, 1 to 8; 1 is upright


def read_header(data: bytes) -> Header | None:
    """Format, mode, size and orientation, without decoding; None if there is no such header."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Of a PNG without metadata, getexif() would decode all pixels to look for some behind them.
            has_metadata = image.format != "PNG" or any("exif" in str(key) or "xmp" in str(key) for key in image.info)
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if has_metadata else 1
            known = orientation if orientation in UPRIGHT else 1
            return Header(image.format or "", image.mode, image.width, image.height, known)
    except Exception:  # as in decode
        return None
