import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data import DataError
from data.reading.decode import MAX_PIXELS, decode

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = rng.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = rng.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA[:, :2], ALPHA[:, 2:4] = 0, 255
BITS = GREY > 127
COLOURS = np.array([[250, 0, 0], [0, 240, 10], [20, 30, 230]], dtype=np.uint8)
INDICES = rng.integers(0, 3, (5, 7), dtype=np.uint8)
SIXTEEN = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(pixels: np.ndarray, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.convert(mode) if mode else image


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def with_palette() -> Image.Image:
    image = picture(INDICES, "L")
    image.putpalette(COLOURS.tobytes())
    return image


def with_palette_and_alpha() -> Image.Image:
    image = with_palette().convert("PA")
    image.putalpha(picture(ALPHA))
    assert image.mode == "PA"
    return image


LA, RGBA = np.dstack([GREY, ALPHA]), np.dstack([RGB, ALPHA])
spot, tint = GREY[2, 3], RGB[2, 3]
BIG_ENDIAN = Image.frombytes("I;16B", (256, 256), SIXTEEN.astype(">u2").tobytes())

MODES = {  # the file, and its pixels as real numbers
    "1": (encode(picture(BITS)), grey(BITS * 255)),
    "L": (encode(picture(GREY)), grey(GREY)),
    "L GIF": (encode(picture(GREY), "GIF"), grey(GREY)),
    "L with a transparent grey": (
        encode(picture(GREY), transparency=int(spot)),
        on_white(grey(GREY), 255 * (spot != GREY)),
    ),
    "LA": (encode(picture(LA)), on_white(grey(GREY), ALPHA)),
    "P": (encode(with_palette()), COLOURS[INDICES]),
    "P with a transparent colour": (
        encode(with_palette(), transparency=1),
        on_white(COLOURS[INDICES], 255 * (INDICES != 1)),
    ),
    "P with an alpha a colour": (
        encode(with_palette(), transparency=bytes([0, 100, 255])),
        on_white(COLOURS[INDICES], np.array([0, 100, 255])[INDICES]),
    ),
    "PA": (encode(with_palette_and_alpha(), "TIFF"), on_white(COLOURS[INDICES], ALPHA)),
    "RGB": (encode(picture(RGB)), RGB),
    "RGB BMP": (encode(picture(RGB), "BMP"), RGB),
    "RGB TIFF": (encode(picture(RGB), "TIFF"), RGB),
    "RGB WebP": (encode(picture(RGB), "WEBP", lossless=True), RGB),
    "RGB with a transparent colour": (
        encode(picture(RGB), transparency=tuple(tint.tolist())),
        on_white(RGB, 255 * (tint != RGB).any(2)),
    ),
    "RGBA": (encode(picture(RGBA)), on_white(RGB, ALPHA)),
    "RGBA WebP": (encode(picture(RGBA), "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA)),
    "I;16": (encode(picture(SIXTEEN)), grey(SIXTEEN / 257)),
    "I;16 TIFF": (encode(picture(SIXTEEN), "TIFF"), grey(SIXTEEN / 257)),
    "I;16B TIFF": (encode(BIG_ENDIAN, "TIFF"), grey(SIXTEEN / 257)),
    "I TIFF": (encode(picture(SIXTEEN.astype(np.int32)), "TIFF"), grey(SIXTEEN / 257)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_with_its_own_pixels(mode):
    data, expected = MODES[mode]
    image = decode(data, mode)
    assert image.dtype == torch.uint8 and image.is_contiguous()
    assert image.shape == (3, *expected.shape[:2])
    assert np.abs(image.permute(1, 2, 0).numpy() - expected.astype(np.float64)).max() <= 0.5  # rounded


def test_sixteen_bits_keep_their_gradation():
    levels = decode(encode(picture(SIXTEEN)), "ramp")[0].flatten().to(torch.int64)
    assert levels.unique().numel() == 256 and (levels.diff() >= 0).all()
    assert torch.bincount(levels).max() <= 257  # convert("RGB") would leave 65281 of 65536 pixels white


@pytest.mark.parametrize(("ink", "expected"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])
def test_a_cmyk_jpeg_has_the_colours_of_its_inks(ink, expected):
    image = decode(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100), "cmyk.jpg")
    assert (image.permute(1, 2, 0).to(torch.int64) - torch.tensor(expected)).abs().max() <= 4


def test_colours_hidden_under_full_transparency_do_not_show():
    hidden = np.dstack([RGB, np.zeros_like(GREY)])
    assert (decode(encode(picture(hidden)), "hidden.png") == 255).all()


def test_an_animated_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    image = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "moving.gif")
    assert image.shape == (3, 4, 6) and image[:, 0, 0].tolist() == [255, 0, 0]


# Four different corners, wider than high, so that no two orientations look alike. 8 x 8 blocks: JPEG keeps them.
UPRIGHT = np.kron(
    np.array([[[250, 10, 10], [10, 250, 10], [10, 10, 250]], [[240, 240, 10], [10, 10, 10], [250, 10, 240]]]),
    np.ones((8, 8, 1)),
).astype(np.uint8)
# How a camera stores the upright picture, by what EXIF says of row 0 and column 0: 6 is "row 0 is the right side".
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def oriented(orientation: int | str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_gives_the_same_upright_picture(kind, orientation):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(picture(STORED[orientation].copy()), kind, exif=oriented(orientation), **options)
    image = decode(data, "photo").permute(1, 2, 0).numpy().astype(int)
    assert image.shape == UPRIGHT.shape
    assert np.abs(image - UPRIGHT).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the metadata
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])  # their readers fail in different ways
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00garbage, and no TIFF header",
        b"Exif\x00\x00II*\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\x7f",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\xff\xff\x00\x00\xff\xff",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\x00\x02six\x00\x00\x00\x00\x00",
        oriented(0).tobytes(),
        oriented(9).tobytes(),
    ],
    ids=["garbage", "cut short", "past the end", "value past the end", "orientation is text", "0", "9"],
)
def test_broken_exif_does_not_cost_the_pixels(exif, kind):
    image = picture(UPRIGHT)
    assert torch.equal(decode(encode(image, kind, exif=exif), "x"), decode(encode(image, kind), "x"))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def refusal(data: bytes, name: str = "train/cat/3.jpg") -> str:
    with pytest.raises(DataError) as caught:
        decode(data, name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    return message


NOISE = picture(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_an_image_cut_short_is_refused_by_name(kind, share):
    whole = encode(NOISE, kind)
    assert decode(whole, "whole").shape == (3, 64, 64)
    refusal(whole[: int(len(whole) * share)])


def test_a_damaged_png_is_refused_by_name():
    data = bytearray(encode(NOISE))
    data[len(data) // 2] ^= 0x10
    refusal(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"these are words, not pixels\n" * 9,
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        encode(NOISE, "ICO"),
        encode(NOISE, "PPM"),
        encode(NOISE, "PCX"),
        encode(NOISE, "JPEG2000"),
    ],
    ids=["empty", "zeros", "text", "SVG", "EPS", "ICO", "PPM", "PCX", "JPEG2000"],
)
def test_what_is_no_image_of_the_allowed_formats_is_refused_with_their_list(data):
    assert "not a JPEG, PNG, WEBP, BMP, GIF, TIFF file" in refusal(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(50000, 50000), (10000, MAX_PIXELS // 10000 + 1)])
def test_a_header_that_claims_a_huge_picture_is_refused(width, height):
    assert "pixels" in refusal(png_claiming(width, height))


def test_float_pixels_are_refused_with_a_way_out():
    message = refusal(encode(picture(GREY.astype(np.float32)), "TIFF"))
    assert "float" in message and "8 or 16 bits" in message


@pytest.mark.parametrize("value", [-1, 65536])
def test_integer_pixels_beyond_sixteen_bits_are_refused(value):
    assert "0..65535" in refusal(encode(picture(np.full((4, 4), value, dtype=np.int32)), "TIFF"))
