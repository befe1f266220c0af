import io

import datasets
import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.check import MOST_LISTED, check_images
from data.sources import Split


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def split(name: str, images: dict[str, bytes | None]) -> Split:
    rows = [{"bytes": data, "path": path} for path, data in images.items()]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Split(name, datasets.Dataset.from_dict({"image": rows}, features=features), [0] * len(rows))


def test_good_images_pass_without_a_word(capfd):
    check_images([split("train", {f"{i}.png": png(i) for i in range(20)}), split("validation", {"v.png": png(99)})])
    assert capfd.readouterr() == ("", "")


def test_bad_images_of_both_splits_are_counted_and_named(tmp_path):
    lost = str(tmp_path / "lost.png")
    train = {f"{i}.png": png(i) for i in range(10)} | {"half.png": png(1)[:300]}
    validation = {"words.png": b"words", "fine.png": png(2), lost: None}
    with pytest.raises(DataError) as caught:
        check_images([split("train", train), split("validation", validation)])
    message = str(caught.value)
    assert message.startswith("3 of 14 images are not usable: half.png: ")
    assert "words.png: " in message and f"{lost}: cannot be read" in message and "\n" not in message
    assert "fine.png" not in message and "more" not in message.split("words.png")[1]


def test_many_bad_images_are_counted_but_only_the_first_are_listed():
    with pytest.raises(DataError) as caught:
        check_images([split("train", {f"bad{i}.png": b"?" for i in range(MOST_LISTED + 3)} | {"good.png": png(0)})])
    message = str(caught.value)
    assert message.startswith(f"{MOST_LISTED + 3} of {MOST_LISTED + 4} ") and message.endswith("; and 3 more")
    assert sum(f"bad{i}.png" in message for i in range(MOST_LISTED + 3)) == MOST_LISTED
