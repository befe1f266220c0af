"""Near duplicates: pictures that differ by encoding, size, brightness or a mirror, found by the signs of a DCT.

The signs of the 16 x 16 lowest frequencies are 256 bits. Brightness and contrast change no sign, another encoding or
size few, and a mirror those of the odd horizontal frequencies. Two photographs of the beans data differ in 80 bits or
more; a copy, even one brightened until its lights clip, in 17 at most.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

SIDE, FREQUENCIES = 64, 16  # the grey picture in pixels, and how many frequencies of each direction are kept
MOST_BITS = 32  # of 256: up to here two pictures are the same one
MOST_COARSE_BITS = 12  # of the 64 lowest frequencies, which are compared first
FLAT = 2.0  # grey levels of standard deviation below which a picture shows nothing that could be compared
MOST_PAIRS = 1_000_000
_GREY = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
_WAVES = np.cos(np.pi * np.outer(np.arange(FREQUENCIES), 2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)


def picture_bits(image: torch.Tensor) -> np.ndarray | None:
    """uint8 [3, h, w] -> uint64 [4], the lowest frequencies in the first; None for a picture of one colour."""
    small = tvf.resize(image, [SIDE, SIDE], antialias=True)
    grey = (small * _GREY).sum(0).numpy()
    if grey.std() < FLAT:
        return None
    return _packed(_WAVES @ (grey - grey.mean()) @ _WAVES.T > 0)


def _packed(signs: np.ndarray) -> np.ndarray:
    """bool [16, 16] -> uint64 [4]: one word for each quarter of the frequencies."""
    half = FREQUENCIES // 2
    quarters = [signs[:half, :half], signs[:half, half:], signs[half:, :half], signs[half:, half:]]
    return np.packbits(np.stack(quarters).reshape(4, 64), axis=1).view(np.uint64).reshape(4)


MIRROR = _packed(np.tile(np.arange(FREQUENCIES) % 2 == 1, (FREQUENCIES, 1)))  # the signs that a mirror turns
Pair = tuple[int, int, int, bool]  # first, second, bits that differ, mirrored


def near_pairs(bits: np.ndarray, most: int = MOST_PAIRS) -> list[Pair]:
    """All pairs of near duplicates; no more than `most`.

    Args:
        bits: uint64 [pictures, 4].
        most: stop there, for data that is nearly all the same, such as the frames of a film.
    """
    pairs: dict[tuple[int, int], tuple[int, bool]] = {}
    lowest = np.ascontiguousarray(bits[:, 0])
    rows = max(1, 2**18 // max(1, len(bits)))  # a block that stays in the processor's cache
    for first in range(0, len(bits), rows):
        for mirrored in (False, True):
            block = bits[first : first + rows] ^ (MIRROR if mirrored else np.uint64(0))
            coarse = np.bitwise_count(block[:, :1] ^ lowest[None, first:])
            one, other = np.nonzero(coarse <= MOST_COARSE_BITS)
            one, other = one[one < other], other[one < other]
            distance = np.bitwise_count(block[one] ^ bits[first + other]).sum(1, dtype=np.int64)
            for i, j, d in zip(
                *(found[distance <= MOST_BITS].tolist() for found in (one, other, distance)), strict=True
            ):
                pairs.setdefault((first + i, first + j), (d, mirrored))
            if len(pairs) >= most:
                break
        if len(pairs) >= most:
            break
    return [(*pair, *found) for pair, found in list(pairs.items())[:most]]


def connected(pairs: Sequence[Pair]) -> list[list[int]]:
    """Groups of pictures that pairs connect, ascending."""
    parent: dict[int, int] = {}

    def root(item: int) -> int:
        while parent.setdefault(item, item) != item:
            parent[item] = item = parent[parent[item]]
        return item

    for one, other, *_ in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for item in sorted(parent):
        groups.setdefault(root(item), []).append(item)
    return list(groups.values())
