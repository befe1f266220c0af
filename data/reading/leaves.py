"""A replacement for beans that needs no download: leaves drawn here, with the columns and class names of beans.

Every picture is a function of (seed, split, index). What tells the classes apart is the *shape* of the spots, as on
real leaves: angular lesions bounded by veins, or many small round pustules, or none. Colour tells little: light,
leaf, soil and shade vary far more than the few per cent of the picture that spots cover.
"""

import io
import math

import datasets
import numpy as np
from PIL import Image, ImageDraw

from data.seeds import derive_seed

LABEL_NAMES = ("angular_leaf_spot", "bean_rust", "healthy")
SIZES = {"train": 2700, "validation": 300}
SIDE = 96  # pixels
Colour = tuple[int, int, int]
Point = tuple[float, float]


def table(split: str, seed: int, most: int | None = None) -> datasets.Dataset:
    """The columns of beans: `image_file_path`, `image` (PNG bytes and path), `labels`.

    Classes alternate, so that the first `most` images are as balanced as all of them.
    """
    size = SIZES[split] if most is None else min(most, SIZES[split])
    names = [LABEL_NAMES[index % 3] for index in range(size)]
    paths = [f"{split}/{name}/{name}_{split}.{index}.png" for index, name in enumerate(names)]
    return datasets.Dataset.from_dict(
        {
            "image_file_path": paths,
            "image": [{"bytes": png(seed, split, index), "path": path} for index, path in enumerate(paths)],
            "labels": [index % 3 for index in range(size)],
        },
        features=datasets.Features(
            {
                "image_file_path": datasets.Value("string"),
                "image": datasets.Image(),
                "labels": datasets.ClassLabel(names=list(LABEL_NAMES)),
            }
        ),
    )


def png(seed: int, split: str, index: int) -> bytes:
    """One leaf of class `LABEL_NAMES[index % 3]`, SIDE x SIDE RGB, as a PNG file."""
    file = io.BytesIO()
    draw_leaf(LABEL_NAMES[index % 3], np.random.default_rng(derive_seed(seed, "leaf", split, index))).save(
        file, "PNG", compress_level=0
    )
    return file.getvalue()


def draw_leaf(label: str, rng: np.random.Generator) -> Image.Image:
    """Soil, a leaf with veins, the spots of its class, and uneven light over all of it."""
    picture = _mottled(_colour(rng, (70, 130), (60, 110), (40, 90)), rng)
    outline, axis = _outline(rng)
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    leaf = _mottled(_colour(rng, (60, 120), (110, 175), (40, 90)), rng)
    _draw_veins(leaf, axis, rng)
    spots = {"angular_leaf_spot": _draw_lesions, "bean_rust": _draw_pustules, "healthy": lambda *_: None}
    spots[label](leaf, mask, rng)
    picture.paste(leaf, mask=mask)
    return _lit(picture, rng)


def _colour(rng: np.random.Generator, *ranges: tuple[int, int]) -> Colour:
    red, green, blue = (int(rng.integers(low, high)) for low, high in ranges)
    return red, green, blue


def _mottled(colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A surface of one colour with soft light and dark patches."""
    patches = rng.normal(0, 9, (6, 6, 1)) + rng.normal(0, 3, (6, 6, 3))
    coarse = Image.fromarray(np.clip(np.array(colour) + patches, 0, 255).astype(np.uint8))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _outline(rng: np.random.Generator) -> tuple[list[Point], tuple[Point, Point]]:
    """A leaf blade somewhere near the middle, at any angle, and its midrib from stem to tip."""
    length, width = rng.uniform(0.40, 0.49) * SIDE, rng.uniform(0.28, 0.38) * SIDE
    angle = rng.uniform(0, 2 * math.pi)
    middle = SIDE / 2 + rng.uniform(-0.05, 0.05, 2) * SIDE
    along, across = (
        np.array([math.cos(angle), math.sin(angle)]),
        np.array([-math.sin(angle), math.cos(angle)]),
    )

    def point(t: float) -> Point:
        taper = 1 - 0.35 * math.cos(t)  # pointed tip, round base
        x, y = middle + length * math.cos(t) * along + width * math.sin(t) * taper * across
        return float(x), float(y)

    outline = [point(t) for t in np.linspace(0, 2 * math.pi, 40, endpoint=False)]
    return outline, (point(math.pi), point(0.0))


def _draw_veins(leaf: Image.Image, axis: tuple[Point, Point], rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(leaf)
    (x0, y0), (x1, y1) = axis
    colour = _colour(rng, (110, 160), (150, 200), (80, 120))
    draw.line([(x0, y0), (x1, y1)], fill=colour, width=2)
    dx, dy = x1 - x0, y1 - y0
    for part in np.linspace(0.15, 0.8, 6):
        x, y = x0 + part * dx, y0 + part * dy
        for side in (-1, 1):
            draw.line([(x, y), (x + 0.3 * (dx - side * dy), y + 0.3 * (dy + side * dx))], fill=colour)


def _draw_lesions(leaf: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """Angular leaf spot: a few grey-brown patches of three to five straight sides."""
    draw = ImageDraw.Draw(leaf)
    for x, y in _inside(mask, int(rng.integers(8, 16)), rng):
        corners = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 6))))
        radii = rng.uniform(4, 8, len(corners))
        shape = [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(radii, corners, strict=True)]
        draw.polygon(shape, fill=_colour(rng, (70, 110), (50, 80), (30, 55)))


def _draw_pustules(leaf: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """Bean rust: many small round red-brown pustules, each in a pale halo."""
    draw = ImageDraw.Draw(leaf)
    for x, y in _inside(mask, int(rng.integers(40, 80)), rng):
        radius = rng.uniform(1.0, 2.0)
        draw.circle((x, y), radius + 1.0, fill=_colour(rng, (160, 210), (160, 200), (70, 110)))
        draw.circle((x, y), radius, fill=_colour(rng, (110, 160), (40, 75), (20, 50)))


def _inside(mask: Image.Image, count: int, rng: np.random.Generator) -> list[Point]:
    rows, columns = np.nonzero(np.asarray(mask))
    chosen = rng.integers(0, len(rows), count)
    return [(float(columns[i]), float(rows[i])) for i in chosen]


def _lit(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, tint, a gradient of light, sensor noise."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    slope = rng.uniform(-0.25, 0.25, 2)
    light = rng.uniform(0.75, 1.2) * (1 + slope[0] * x + slope[1] * y)
    pixels = np.asarray(picture) * light[..., None] * rng.uniform(0.93, 1.07, 3)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8))
