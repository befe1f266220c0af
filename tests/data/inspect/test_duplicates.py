import io
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data.inspect.duplicates import connected, near_pairs, picture_bits
from data.reading.decode import decode
from data.reading.tables import DatasetSpec
from data.sources import load_splits

KINDS = ["jpeg", "resized", "mirrored", "brightened"]


def picture(seed: int) -> Image.Image:
    """Smooth random colours, as photographs are."""
    small = np.random.default_rng(seed).integers(30, 200, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((240, 200), Image.Resampling.BICUBIC)


def changed(image: Image.Image, kind: str, number: int) -> bytes:
    share, quality = number / 19, 90
    if kind == "jpeg":
        quality = round(50 + 40 * share)
    elif kind == "resized":
        image = image.resize([round(side * (0.6 + 0.9 * share)) for side in image.size])
    elif kind == "mirrored":
        image = ImageOps.mirror(image)
    else:
        image = ImageEnhance.Brightness(image).enhance(1.2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def bits_of(image: Image.Image) -> np.ndarray:
    return picture_bits(torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_copy_is_found_and_nothing_else(kind):
    pictures = [picture(seed) for seed in range(60)]
    copies = [picture_bits(decode(changed(pictures[i], kind, i), "copy")) for i in range(20)]
    pairs = near_pairs(np.stack([bits_of(image) for image in pictures] + copies))
    assert sorted(pair[:2] for pair in pairs) == [(i, 60 + i) for i in range(20)]
    assert {mirrored for *_, mirrored in pairs} == {kind == "mirrored"}


def test_a_picture_of_one_colour_is_like_no_other():
    assert bits_of(Image.new("RGB", (50, 40), "white")) is None
    assert bits_of(Image.new("L", (1, 1), 7).convert("RGB")) is None


def test_pairs_of_many_pictures_are_all_found_in_time():
    bits = np.random.default_rng(0).integers(0, 2**64, (20_000, 4), dtype=np.uint64)
    for copy in range(100):
        bits[10_000 + copy] = bits[copy] ^ np.uint64(1 << (copy % 64))
    started = time.perf_counter()
    pairs = near_pairs(bits)
    assert sorted(pairs) == [(copy, 10_000 + copy, 4, False) for copy in range(100)]
    assert time.perf_counter() - started < 20


def test_data_that_is_all_the_same_ends():
    assert len(near_pairs(np.ones((3000, 4), dtype=np.uint64), most=1000)) == 1000
    assert near_pairs(np.empty((0, 4), dtype=np.uint64)) == []


def test_pairs_become_groups():
    assert connected([(5, 6, 0, False), (0, 2, 1, False), (2, 6, 1, True), (3, 4, 0, False)]) == [[0, 2, 5, 6], [3, 4]]


@pytest.mark.slow
def test_beans_has_no_near_duplicates_and_planted_ones_are_found(beans, tmp_path):
    splits = load_splits(DatasetSpec(str(beans), cache_dir=str(tmp_path)))
    images = [split.read(i) for split in (splits.train, splits.validation) for i in range(len(split))]
    bits = [picture_bits(decode(data, "bean")) for data in images]
    assert near_pairs(np.stack(bits)) == []
    for kind in KINDS:
        chosen = range(0, 1160, 58)
        originals = [Image.open(io.BytesIO(images[i])).convert("RGB") for i in chosen]
        copies = [picture_bits(decode(changed(o, kind, n), "copy")) for n, o in enumerate(originals)]
        found = {pair[:2] for pair in near_pairs(np.stack(bits + copies))}
        planted = {(i, len(bits) + n) for n, i in enumerate(chosen)}
        print(kind, len(found & planted), "of 20, others:", len(found - planted))
        assert found <= planted and len(found) >= 19, kind
