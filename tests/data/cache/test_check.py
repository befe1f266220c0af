import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode

from data import DataError
from data.cache import check
from data.cache.check import MOST_LISTED, check_images
from data.cache.prepared import CachePolicy, prepare_images
from data.reading.decode import Resize
from data.reading.splits import Split, Splits


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def split(name: str, images: dict[str, bytes | None]) -> Split:
    rows = [{"bytes": data, "path": path} for path, data in images.items()]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Split(name, datasets.Dataset.from_dict({"image": rows}, features=features), list(range(len(rows))))


GOOD = {f"{i}.png": png(i) for i in range(10)}


def splits(train=GOOD, validation=GOOD) -> Splits:
    return Splits("d", split("train", train), split("validation", validation), list("abcdefghijklmno"))


OTHERS = {f"v{i}.png": png(100 + i) for i in range(10)}


def test_good_images_pass_without_a_word(capfd, tmp_path):
    data = splits(validation=OTHERS)
    assert check_images(data, False, str(tmp_path)) is data and data.notes == []
    assert capfd.readouterr() == ("", "")


def test_bad_images_of_both_splits_are_counted_and_named(tmp_path):
    data = splits(GOOD | {"half.png": png(1)[:300]}, {"words.png": b"words", "fine.png": png(2), "null.png": b""})
    with pytest.raises(DataError) as caught:
        check_images(data, False, str(tmp_path))
    message = str(caught.value)
    assert message.startswith("3 of 14 images cannot be used (--skip_bad_images leaves them out): half.png: ")
    assert "words.png: " in message and "null.png: " in message and "\n" not in message
    assert "fine.png" not in message and "more" not in message.split("words.png")[1]


def test_many_bad_images_are_counted_but_only_the_first_are_listed(tmp_path):
    data = splits({f"bad{i}.png": b"?%d" % i for i in range(MOST_LISTED + 3)} | {"good.png": png(0)}, {"v.png": png(1)})
    with pytest.raises(DataError) as caught:
        check_images(data, False, str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{MOST_LISTED + 3} of {MOST_LISTED + 5} ") and message.endswith("; and 3 more")
    assert sum(f"bad{i}.png" in message for i in range(MOST_LISTED + 3)) == MOST_LISTED


def test_bad_images_are_left_out_on_request_and_noted(tmp_path):
    data = splits({"0.png": png(0), "bad.png": b"?", "2.png": png(2)}, OTHERS)
    kept = check_images(data, True, str(tmp_path))
    assert [kept.train.image_name(i) for i in range(len(kept.train))] == ["0.png", "2.png"]
    assert kept.train.labels == [0, 2] and len(kept.validation) == 10
    assert len(kept.notes) == 1 and kept.notes[0].startswith("left out: bad.png: cannot be decoded")
    assert kept.fingerprint() != data.fingerprint()  # a resume must leave out the same ones
    with pytest.raises(DataError, match="the validation split is empty"):
        check_images(splits(validation={"bad.png": b"?"}), True, str(tmp_path))


def test_only_the_first_run_on_the_same_data_pays_for_the_pass(tmp_path, monkeypatch):
    bad, decoded = splits(GOOD | {"bad.png": b"?"}), []
    judge = check.find_bad_images
    monkeypatch.setattr(
        check, "find_bad_images", lambda work, keep=None: decoded.append(len(work)) or judge(work, keep)
    )
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be used"):
            check_images(bad, False, str(tmp_path))
    assert decoded == [21]
    mended = splits(GOOD | {"bad.png": png(77)})
    check_images(mended, False, str(tmp_path))  # a mended image is checked at again


def test_a_damaged_finding_is_made_anew(tmp_path):
    check_images(splits(), False, str(tmp_path))
    (finding,) = (tmp_path / "datasets" / "plainloop").iterdir()
    finding.write_text("[{")
    check_images(splits(), False, str(tmp_path))
    assert json.loads(finding.read_text())["bad"] == []


def test_a_cache_that_cannot_be_written_does_not_stop_the_check(tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    check_images(splits(), False, str(tmp_path / "cache"))


def test_an_image_restored_to_its_old_size_is_looked_at_again(tmp_path):
    damaged = bytearray(png(99))
    damaged[len(damaged) // 2] ^= 0x10
    with pytest.raises(DataError, match="cannot be used"):
        check_images(splits(GOOD | {"99.png": bytes(damaged)}), False, str(tmp_path))
    check_images(splits(GOOD | {"99.png": png(99)}), False, str(tmp_path))


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
def test_an_image_in_both_splits_or_with_two_labels_is_named_at_every_start(kind, tmp_path):
    bad = {"bad.png": b"?", "bad too.png": b"?"}  # repeated, but left out: no image of the run
    for _ in range(2):  # the second start reads what the first has kept
        data = splits(bad | GOOD | {"again.png": png(1)}, OTHERS | {"leak.png": png(7)})
        data = Splits("d", replace_labels(data.train, 2), replace_labels(data.validation, 2), ["cat", "dog"])
        policy = CachePolicy(kind, folder=str(tmp_path))
        kept, *_ = prepare_images(data, Resize(8, 8, InterpolationMode.BILINEAR), policy, True, print)
        leak, disputed = kept.notes[-2:]
        assert (
            leak
            == (
                "warning: 1 image is in both train and validation, so validation scores are too high (7.png = leak.png)"
            )
            and len(kept.notes) == 4
        )
        assert "1 image has more than one label" in disputed or "2 images have more than one label" in disputed
        assert "1.png: dog = again.png: cat" in disputed


def replace_labels(one: Split, classes: int) -> Split:
    return Split(one.name, one.table, [index % classes for index in range(len(one))])


def test_many_repeats_are_counted_and_few_named(tmp_path):
    data = splits()
    (line,) = check_images(data, False, str(tmp_path)).notes
    assert line.startswith("warning: 10 images are in both train and validation") and line.endswith(", and 7 more)")
    assert line.count(" = ") == 3


@pytest.mark.parametrize(
    "kept", ["[]", '{"bad": []}', '{"bad": [], "repeated": [[0, 99]]}', '{"bad": 1, "repeated": 1}']
)
def test_findings_of_an_earlier_version_or_damaged_ones_are_made_anew(kept, tmp_path):
    check_images(splits(), False, str(tmp_path))
    (finding,) = (tmp_path / "datasets" / "plainloop").iterdir()
    whole = finding.read_text()
    finding.write_text(kept)
    assert len(check_images(splits(), False, str(tmp_path)).notes) == 1 and finding.read_text() == whole
