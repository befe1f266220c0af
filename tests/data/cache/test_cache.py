import json
import os
import pickle
import time
from dataclasses import replace

import pytest
from torchvision.transforms import InterpolationMode

from data import DataError
from data.cache import prepared as cache
from data.cache.check import cache_folder
from data.cache.prepared import CachePolicy, Kept, prepare_images
from data.reading.decode import Resize
from data.reading.splits import Splits
from tests.data.cache.test_check import GOOD, png, split
from tests.reliability.harness import FORK, finish, start
from tests.running import records, run_here, same_tensors, weights

RESIZED = Resize(12, 20, InterpolationMode.BILINEAR)
INDICES = [3, 0, 3, 9]


def splits(train=GOOD, validation=GOOD) -> Splits:
    return Splits("d", split("train", train), split("validation", validation), list("abcdefghijklmno"))


def prepared(kind, folder, data=None, skip_bad=False, **limits):
    said = []
    policy = CachePolicy(kind, folder=str(folder), **limits)
    return *prepare_images(data or splits(), RESIZED, policy, skip_bad, said.append), said


def files(folder, pattern="images-*.bin"):
    return sorted(cache_folder(str(folder)).glob(pattern))


def test_pixels_are_the_same_bit_for_bit_wherever_they_are_kept(tmp_path):
    decoded = prepared("none", tmp_path)[1]
    for kind in ("memory", "disk", "disk"):  # the second time from the file
        _, kept, chosen, *_ = prepared(kind, tmp_path)
        assert chosen == kind
        for name in ("train", "validation"):
            assert isinstance(kept[name], Kept)
            assert kept[name][INDICES].equal(decoded[name][INDICES]) and kept[name][INDICES].shape == (4, 3, 12, 20)
    assert not decoded["train"][[0]].equal(decoded["train"][[1]])


def test_a_file_is_built_once_and_then_only_read(tmp_path, monkeypatch):
    prepared("disk", tmp_path)
    monkeypatch.setattr(cache, "decode_all", lambda *_: pytest.fail("decoded again"))
    prepared("disk", tmp_path)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("change", ["data", "size", "filter", "crop", "library"])
def test_other_data_or_another_transform_has_another_file(change, tmp_path, monkeypatch):
    prepared("disk", tmp_path)
    data, wanted = splits(), RESIZED
    if change == "data":
        data = splits(GOOD | {"0.png": png(77)})
    elif change == "size":
        wanted = replace(RESIZED, height=20, width=12)
    elif change == "crop":
        wanted = replace(RESIZED, before_crop=(24,))
    elif change == "filter":
        wanted = replace(RESIZED, interpolation=InterpolationMode.BICUBIC)
    else:
        monkeypatch.setattr(cache.PIL, "__version__", "99")
    _, kept, *_ = prepare_images(data, wanted, CachePolicy("disk", folder=str(tmp_path)), False, print)
    assert len(files(tmp_path)) == 2
    fresh = prepare_images(data, wanted, CachePolicy("none", folder=str(tmp_path)), False, print)[1]
    assert kept["train"][INDICES].equal(fresh["train"][INDICES])


@pytest.mark.parametrize("damage", ["cut", "no record", "half a record", "other shape"])
def test_a_file_that_is_not_whole_is_made_anew(damage, tmp_path):
    expected = prepared("disk", tmp_path)[1]["train"][INDICES]
    (file,), (record,) = files(tmp_path), files(tmp_path, "images-*.json")
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "no record":
        record.unlink()
    elif damage == "half a record":
        record.write_text(record.read_text()[:20])
    else:
        record.write_text(json.dumps({"shape": [1, 2], "bad": []}))
    assert prepared("disk", tmp_path)[1]["train"][INDICES].equal(expected)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_bad_images_stop_the_run_or_are_left_out(kind, tmp_path):
    data = splits({"0.png": png(0), "bad.png": b"?", "2.png": png(2)}, {"bad.png": b"?", "v.png": png(7)})
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 5 images cannot be used .* bad\.png"):
            prepared(kind, tmp_path, data)
    kept, pixels, *_ = prepared(kind, tmp_path, data, skip_bad=True)
    assert len(kept.train) == 2 and len(kept.validation) == 1 and len(kept.notes) == 2
    good = prepared("none", tmp_path, splits({"0.png": png(0), "2.png": png(2)}, {"v.png": png(7)}))[1]
    assert pixels["train"][[0, 1]].equal(good["train"][[0, 1]])
    assert pixels["validation"][[0]].equal(good["validation"][[0]])


def test_a_mended_image_is_looked_at_again(tmp_path):
    with pytest.raises(DataError, match="cannot be used"):
        prepared("disk", tmp_path, splits(GOOD | {"x.png": b"?"}))
    mended = prepared("disk", tmp_path, splits(GOOD | {"x.png": png(5)}))[1]
    assert mended["train"][[10]].equal(prepared("memory", tmp_path, splits(GOOD | {"x.png": png(5)}))[1]["train"][[10]])


def test_what_fits_nowhere_is_decoded_each_time_and_said(tmp_path):
    one_mib = 1 / 1024
    assert prepared("auto", tmp_path)[2] == "memory"
    assert prepared("auto", tmp_path, memory_gib=0, disk_gib=one_mib)[2] == "disk"
    _, _, kind, reason, _ = prepared("auto", tmp_path, memory_gib=0, disk_gib=0)
    assert kind == "none" and "--cache_size 0" in reason and "decodes them again" in reason
    with pytest.raises(DataError, match=r"--image_cache memory: 0\.0 MiB .* --cache_memory 0"):
        prepared("memory", tmp_path, memory_gib=0)
    with pytest.raises(DataError, match=r"--image_cache disk: .* --cache_size 0"):
        prepared("disk", tmp_path, disk_gib=0)
    with pytest.raises(DataError, match=r"GiB free in"):
        CachePolicy("disk", disk_gib=1e9, folder=str(tmp_path)).choose(10**17)


def test_the_files_of_all_runs_together_stay_within_their_limit(tmp_path):
    size = 20 * 3 * 12 * 20
    for number in range(4):
        prepared("disk", tmp_path, splits(GOOD | {"0.png": png(100 + number)}), disk_gib=2.5 * size / 2**30)
        time.sleep(0.02)
        assert len(files(tmp_path)) == min(number + 1, 2)
    assert len(files(tmp_path, "images-*.json")) == 2


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "datasets").write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError, match="--image_cache none does without"):
        prepared("disk", tmp_path)


def _build_and_report(folder, answers):
    _, pixels, *_, said = prepared("disk", folder, splits({f"{i}.png": png(i) for i in range(300)}))
    answers.put((int(pixels["train"][list(range(300))].sum()), said))


@pytest.mark.slow
def test_two_processes_build_one_file_and_both_read_it(tmp_path):
    answers = FORK.Queue()
    both = [FORK.Process(target=_build_and_report, args=(tmp_path, answers)) for _ in range(2)]
    for process in both:
        process.start()
    (one, _), (other, _) = answers.get(timeout=60), answers.get(timeout=60)
    for process in both:
        process.join(60)
    assert one == other and len(files(tmp_path)) == 1 and not files(tmp_path, "*.tmp")


@pytest.mark.reliability
def test_a_builder_that_is_killed_leaves_nothing_that_looks_finished(tmp_path):
    data, answers = {f"{i}.png": png(i) for i in range(300)}, FORK.Queue()
    expected = prepared("memory", tmp_path, splits(data))[1]["train"][INDICES]
    for delay in (0.0, 0.01, 0.03, 0.06):
        # Not forked from this process, with which it would share tqdm's lock, and hold it for ever if killed in there.
        process = FORK.Process(target=_build_and_report, args=(tmp_path, answers))
        process.start()
        while not files(tmp_path, "*.tmp") and process.is_alive():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert prepared("disk", tmp_path, splits(data))[1]["train"][INDICES].equal(expected)
        for file in files(tmp_path, "images-*"):
            file.unlink()


FAST = ("--image_cache", "auto", "--dataloader_num_workers", "auto", "--async_save", "true", "--tune_malloc", "true")


def speed_of(flags, log):
    """The line that a run says it in; the last run's, if there were several."""
    code = finish(start(flags, log=log))
    assert code == 0, log.read_text()
    return [line for line in log.read_text().splitlines() if line.startswith("speed: ")][-1]


@pytest.mark.slow
def test_a_run_with_every_fast_path_ends_in_the_bits_of_one_without(tmp_path):
    debug = ("--preset", "debug", "--cache_dir", tmp_path / "hub", "--output_dir")
    assert run_here(*debug, tmp_path / "plain") == 0
    for kind in ("memory", "disk"):
        out = tmp_path / kind
        speed = speed_of((*debug, out, *FAST, "--image_cache", kind), tmp_path / "log")
        assert f"image cache {kind}" in speed and "0 workers" in speed
        assert "checkpoints written in the background" in speed and "malloc keeps freed memory" in speed
        assert same_tensors(weights(out), weights(tmp_path / "plain")) and records(out) == records(tmp_path / "plain")
        assert "0 workers (a batch is a copy from the cache)" in json.loads((out / "run.json").read_text())["speed"]
    assert "torch_compile: 'off'" in (out / "config.yaml").read_text()


@pytest.mark.slow
def test_debug_switches_every_fast_path_off(tmp_path):
    speed = speed_of(("--preset", "debug", "--output_dir", tmp_path / "x"), tmp_path / "log")
    for off in ("image cache none", "0 workers", "torch.compile off", "while training waits", "malloc returns"):
        assert off in speed


def test_a_worker_that_is_not_forked_maps_the_file_by_itself(tmp_path):
    kept = prepared("disk", tmp_path)[1]["validation"]
    sent = pickle.dumps(kept)
    assert len(sent) < 2000 + kept.rows.nbytes
    assert pickle.loads(sent)[INDICES].equal(kept[INDICES])


def test_kept_pixels_are_a_copy(tmp_path):
    kept = prepared("memory", tmp_path)[1]["train"]
    kept[[0]].zero_()
    assert kept[[0]].sum() > 0
