"""R8: forty kinds of odd or broken images, in many sizes, each with its expected verdict and pixels."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from data import DataError
from data.reading.decode import UPRIGHT, decode
from tests.reliability.harness import Report, draw

Made = tuple[bytes, np.ndarray | None, float]  # file, expected RGB [h, w, 3] (None: refused), tolerance in grey levels


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _rgb(rng: random.Random) -> np.ndarray:
    """A smooth picture, which lossy formats keep nearly as it is."""
    height, width = rng.randint(9, 40), rng.randint(9, 40)
    y, x = np.mgrid[0:height, 0:width]
    colours = [(rng.random() * 3 * x + rng.random() * 3 * y + rng.randint(0, 60)) % 256 for _ in range(3)]
    return np.clip(np.stack(colours, -1), 0, 255).astype(np.uint8) // 2 + 40


def _lossless(kind: str) -> Callable[[random.Random], Made]:
    options = {"lossless": True} if kind == "WEBP" else {}
    return lambda rng: (lambda a: (_save(Image.fromarray(a), kind, **options), a, 0))(_rgb(rng))


def _jpeg(**options: object) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        pixels = np.full((rng.randint(8, 40), rng.randint(8, 40), 3), rng.randint(0, 255), dtype=np.uint8)
        return _save(Image.fromarray(pixels), "JPEG", quality=95, **options), pixels, 3

    return make


def _mode(mode: str, kind: str) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        image = Image.fromarray(_rgb(rng)).convert(mode)
        return _save(image, kind), np.asarray(image.convert("RGB")), 0

    return make


def _alpha(mode: str, kind: str) -> Callable[[random.Random], Made]:
    """Hidden colours under transparency: what is seen on white paper."""

    def make(rng: random.Random) -> Made:
        pixels = _rgb(rng)
        alpha = np.random.default_rng(rng.random().__hash__() & 0xFFFF).choice([0, 128, 255], pixels.shape[:2])
        image = Image.fromarray(np.dstack([pixels, alpha.astype(np.uint8)]), "RGBA").convert(mode)
        solid = np.asarray(image.convert("RGBA")).astype(float)
        share = solid[..., 3:] / 255
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        return _save(image, kind, **options), np.round(solid[..., :3] * share + 255 * (1 - share)), 1

    return make


def _sixteen_bits(rng: random.Random) -> Made:
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 65536, (rng.randint(2, 30), rng.randint(2, 30)))
    grey = np.round(values / 257)
    return _save(Image.fromarray(values.astype(np.uint16)), rng.choice(["PNG", "TIFF"])), np.dstack([grey] * 3), 0


def _turned(orientation: int, kind: str) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        upright = _rgb(rng)
        undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
        stored = Image.fromarray(upright)
        if undo in UPRIGHT:
            stored = stored.transpose(UPRIGHT[undo])
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _save(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})), upright, 0

    return make


def _broken(how: str) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        noise = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        good = _save(Image.fromarray(noise), "JPEG" if "jpeg" in how else "PNG")
        content = {
            "jpeg cut": lambda: good[: rng.randint(4, len(good) * 3 // 4)],
            "png cut": lambda: good[: rng.randint(4, len(good) * 3 // 4)],
            "empty": lambda: b"",
            "text": lambda: b"hello, I am a picture " * rng.randint(1, 9),
            "html": lambda: b"<html><body>404 Not Found</body></html>",
            "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            "noise": lambda: rng.randbytes(rng.randint(1, 500)),
            "jpeg head only": lambda: good[:20],
            "png crc": lambda: good[:45] + bytes([good[45] ^ 0xFF]) + good[46:],
            "png bomb": lambda: _png_header(50_000, 50_000),
            "png of no size": lambda: _png_header(0, 10),
            "ppm": lambda: b"P6 2 2 255\n" + bytes(12),
            "ico": lambda: _save(Image.fromarray(noise), "ICO", sizes=[(16, 16)]),
            "zip": lambda: b"PK\x03\x04" + bytes(60),
            "float tiff": lambda: _save(Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF"),
        }[how]()
        return content, None, 0

    return make


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _broken_exif(rng: random.Random) -> Made:
    content, pixels, tolerance = _jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 40)(rng)
    return content, pixels, tolerance


def _animated(rng: random.Random) -> Made:
    first = np.full((12, 12, 3), 200, dtype=np.uint8)
    frames = [Image.fromarray(np.full((12, 12, 3), value, dtype=np.uint8)) for value in (90, 10)]
    return _save(Image.fromarray(first), "GIF", save_all=True, append_images=frames), first, 0


KINDS: dict[str, Callable[[random.Random], Made]] = {
    **{f"{kind} RGB": _lossless(kind) for kind in ("PNG", "BMP", "TIFF", "WEBP")},
    "JPEG": _jpeg(),
    "progressive JPEG": _jpeg(progressive=True),
    "broken EXIF": _broken_exif,
    **{f"{mode} {kind}": _mode(mode, kind) for mode, kind in (("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"))},
    **{f"{mode} {kind}": _mode(mode, kind) for mode, kind in (("CMYK", "TIFF"), ("L", "TIFF"), ("1", "TIFF"))},
    **{f"{mode} {kind}": _alpha(mode, kind) for mode, kind in (("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"))},
    "16 bits": _sixteen_bits,
    **{f"EXIF orientation {number}": _turned(number, "PNG") for number in range(1, 9)},
    "EXIF orientation 6 WEBP": _turned(6, "WEBP"),
    "animated GIF": _animated,
    **{
        how: _broken(how)
        for how in (
            *("jpeg cut", "png cut", "empty", "text", "html", "svg", "noise", "jpeg head only", "png crc"),
            *("png bomb", "png of no size", "ppm", "ico", "zip", "float tiff"),
        )
    },
}


def odd_images(rounds: int, seed: int) -> Report:
    """Each kind in so many variations."""
    report, rng = Report("R8 odd images", facts={"seed": seed, "kinds": len(KINDS)}), draw(seed)
    for round_ in range(rounds):
        for kind, make in KINDS.items():
            content, expected, tolerance = make(rng)
            report.check(*_verdict(content, expected, tolerance, f"round {round_}: {kind}"))
    return report


def _verdict(content: bytes, expected: np.ndarray | None, tolerance: float, what: str) -> tuple[bool, str]:
    try:
        pixels = decode(content, "leaf.img")
    except DataError as error:
        said = str(error)
        named = said.startswith("leaf.img: cannot be decoded: ") and "\n" not in said
        return expected is None and named, f"{what}: {said}"
    except BaseException as error:
        return False, f"{what}: {type(error).__name__}: {error}"
    if expected is None:
        return False, f"{what}: was decoded"
    found = pixels.permute(1, 2, 0).numpy().astype(float)
    right = pixels.dtype == torch.uint8 and found.shape == expected.shape
    return right and np.abs(found - expected).max() <= tolerance, f"{what}: other pixels"
