"""The identity of the data is all of its bytes, and a second start reads none of them."""

import io
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.reading import content
from data.reading.splits import CONTENT
from data.reading.tables import DatasetSpec
from data.sources import load_splits
from tests.data.test_sources import DECLARED, IMAGE, class_folders, images, table_folder, write
from tests.running import ROOT

COUNT_OPENS = """
import sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from data.reading.tables import DatasetSpec
from data.sources import load_splits
print(load_splits(DatasetSpec(sys.argv[1], cache_dir=sys.argv[2])).fingerprint())
print(sum(name.startswith(sys.argv[1]) and name.endswith((".png", ".jpg", ".parquet")) for name in opened))
"""


def load(folder, cache):
    return load_splits(DatasetSpec(str(folder), cache_dir=str(cache)))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF"])
def test_any_changed_byte_is_another_fingerprint(kind, tmp_path):
    data, ending = encoded(kind), {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    folder = write(tmp_path / "d", class_folders("train/", "val/") | {f"train/a/x.{ending}": data})
    seen = {load(folder, tmp_path / "cache").fingerprint()}
    positions = sorted({0, len(data) // 2, len(data) - 1, *range(0, len(data), max(1, len(data) // 20))})
    file = folder / f"train/a/x.{ending}"
    before = file.stat()
    for position in positions:
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time of content stay
        seen.add(load(folder, tmp_path / "cache").fingerprint())
    assert len(seen) == len(positions) + 1 and all(name.startswith(CONTENT) for name in seen)


def start(folder, cache):
    """(fingerprint, image files opened) of a process that loads a data set."""
    command = [sys.executable, "-c", COUNT_OPENS, str(folder), str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    name, opened = done.stdout.split()
    return name, int(opened)


@pytest.mark.reliability
def test_a_second_start_reads_no_image_again(tmp_path):
    count = 292
    folder = write(tmp_path / "d", class_folders("train/", "val/", count=count))
    time.sleep(content.SETTLED / 1e9 + 0.1)
    first, second = (start(folder, tmp_path / "cache") for _ in range(2))
    assert first == (second[0], 4 * count) and second[1] == 0
    (folder / "val/a/0.png").write_bytes(b"another")
    changed = start(folder, tmp_path / "cache")
    assert changed[0] != first[0] and changed[1] == 1


def test_what_has_just_changed_is_not_kept(tmp_path, monkeypatch):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    monkeypatch.setattr(content, "SETTLED", 3600 * 10**9)
    load(folder, tmp_path / "cache")
    monkeypatch.setattr(content, "_of_file", lambda path: b"read again".ljust(16))
    assert load(folder, tmp_path / "cache").train.digest(0) == b"read again".ljust(16)


def test_a_file_that_changes_after_it_was_hashed_is_named(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    splits = load(folder, tmp_path / "cache")
    (folder / "train/b/1.png").write_bytes((folder / "train/b/2.png").read_bytes())
    with pytest.raises(DataError, match=r"train/b/1\.png: has changed while"):
        [splits.train.read(index) for index in range(len(splits.train))]
    assert splits.train.select([0, 2]).digests == splits.train.digest(0) + splits.train.digest(2)


@pytest.mark.slow
def test_two_columns_of_one_table_are_two_data_sets(tmp_path):
    left, right = images(4), images(9)[5:]
    columns = {"left": (IMAGE, left), "right": (IMAGE, right), "label": DECLARED}
    folder = table_folder(tmp_path / "d", columns)
    time.sleep(content.SETTLED / 1e9 + 0.1)
    for _ in range(2):
        read = {}
        for column, rows in (("left", left), ("right", right)):
            splits = load_splits(DatasetSpec(str(folder), image_column=column, cache_dir=str(tmp_path / "cache")))
            assert [splits.train.read(index) for index in range(4)] == [row["bytes"] for row in rows]
            read[column] = splits.fingerprint()
        assert read["left"] != read["right"]
        time.sleep(content.SETTLED / 1e9 + 0.1)


@pytest.mark.parametrize("damage", [b"not a database at all", b"SQLite format 3\0" + bytes(4080)])
def test_a_damaged_cache_is_made_anew(damage, tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    right = load(folder, tmp_path / "cache").fingerprint()
    (kept,) = (tmp_path / "cache").rglob("content.sqlite")
    kept.write_bytes(damage)
    assert load(folder, tmp_path / "cache").fingerprint() == right


def test_a_cache_that_cannot_be_written_is_said_and_not_needed(tmp_path):
    folder = write(tmp_path / "d", class_folders("train/", "val/"))
    (tmp_path / "cache/datasets").mkdir(parents=True)
    (tmp_path / "cache/datasets/plainloop").write_text("a file where the folder would be")
    splits = load(folder, tmp_path / "cache")
    assert splits.fingerprint() == load(folder, tmp_path / "other").fingerprint()
    assert any("digests of the images cannot be kept" in note for note in splits.notes)


def test_a_shard_is_known_by_its_size_and_ends(tmp_path):
    file = tmp_path / "x.parquet"
    for data in (bytes(10), bytes(11), bytes(9) + b"x", b"x" + bytes(9)):
        file.write_bytes(data)
        assert content.shard_identity(str(file)) == content.shard_identity(str(file))
    file.write_bytes(bytes(10))
    one = content.shard_identity(str(file))
    file.write_bytes(bytes(9) + b"x")
    assert one != content.shard_identity(str(file)) and one[1]
