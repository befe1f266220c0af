import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data import DataError
from data.cache.prepared import Decoded
from data.loading.loader import Images, InOrder, PlannedSampler, batches_on, build_loader
from data.plan import Plan
from data.reading.splits import Split
from data.seeds import derive_seed

RANDOM = v2.Compose([v2.RandomResizedCrop(8, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3)])
FIXED = v2.Resize([8, 8])


def resized(images: Split) -> Images:
    return Images(Decoded(images, FIXED), images.labels)


def augmented(images: Split, transform=RANDOM, seed: int = 3) -> Images:
    return Images(Decoded(images, lambda image: image), images.labels, seed, transform)


def drawn(images: Images, epoch: int, index: int) -> torch.Tensor:
    return images.__getitems__([(epoch, index)])["pixel_values"]


def split(count: int, broken: int | None = None) -> Split:
    """Images of noise, 9 x 13 pixels, one of which may be no image."""
    rows = []
    for index in range(count):
        file = io.BytesIO()
        noise = np.random.default_rng(index).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        rows.append({"bytes": b"?" if index == broken else file.getvalue(), "path": f"train/{index}.png"})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Split("train", datasets.Dataset.from_dict({"image": rows}, features=features), [i % 3 for i in range(count)])


def indices(micro_batches: list[list[tuple[int, int]]]) -> list[int]:
    return [index for batch in micro_batches for _, index in batch]


# -- the plan ----------------------------------------------------------------------------------------------

GEOMETRIES = list(itertools.product([1, 2, 3, 7, 10, 16, 29], [1, 2, 3, 5, 16], [1, 2, 3, 4]))


def test_beans_in_batches_of_sixteen_is_the_trainers_geometry():
    plan = Plan(samples=1034, batch_size=16, accumulation=1, total_updates=260, seed=42)
    sizes = [[len(batch) for batch in plan.micro_batches(update)] for update in range(1, 261)]
    assert plan.batches_per_epoch == plan.updates_per_epoch == 65
    assert sizes == ([[16]] * 64 + [[10]]) * 4
    assert [plan.epoch(update) for update in (0, 13, 65, 260)] == [0, 0.2, 1, 4]


@pytest.mark.parametrize("seed", [0, 42, 2**31])
def test_the_order_of_an_epoch_is_the_trainers_permutation(seed):
    plan = Plan(samples=103, batch_size=8, accumulation=3, total_updates=15, seed=seed)
    for epoch in range(3):
        updates = range(epoch * plan.updates_per_epoch + 1, (epoch + 1) * plan.updates_per_epoch + 1)
        order = torch.randperm(103, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        assert [index for update in updates for index in indices(plan.micro_batches(update))] == order


def test_every_epoch_covers_each_image_once_and_no_window_crosses_it():
    for samples, batch_size, accumulation in GEOMETRIES:
        plan = Plan(samples, batch_size, accumulation, total_updates=999, seed=1)
        for epoch in range(3):
            seen = []
            for position in range(plan.updates_per_epoch):
                update = epoch * plan.updates_per_epoch + position + 1
                window = plan.micro_batches(update)
                assert 1 <= len(window) == plan.micro_batch_count(update) <= accumulation
                assert all(1 <= len(batch) <= batch_size for batch in window)
                assert {e for batch in window for e, _ in batch} == {epoch}
                seen += indices(window)
            assert sorted(seen) == list(range(samples)), (samples, batch_size, accumulation)


def test_with_drop_last_every_batch_is_full_and_no_image_is_seen_twice_an_epoch():
    for samples, batch_size, accumulation in GEOMETRIES:
        plan = Plan(samples, batch_size, accumulation, total_updates=999, seed=1, drop_last=True)
        windows = [plan.micro_batches(update) for update in range(1, plan.updates_per_epoch + 1)]
        sizes = [len(batch) for window in windows for batch in window]
        if samples < batch_size:  # rather one short batch than nothing to train on
            assert sizes == [samples]
        else:
            assert sizes == [batch_size] * (samples // batch_size)
        seen = [index for window in windows for index in indices(window)]
        assert len(set(seen)) == len(seen)


def test_epochs_done_grow_with_the_updates_and_are_whole_at_each_end():
    for samples, batch_size, accumulation in GEOMETRIES:
        plan = Plan(samples, batch_size, accumulation, total_updates=999, seed=1)
        done = [plan.epoch(update) for update in range(3 * plan.updates_per_epoch + 1)]
        assert done == sorted(set(done)) and done[:: plan.updates_per_epoch] == [0, 1, 2, 3]
    plan = Plan(samples=9, batch_size=2, accumulation=2, total_updates=3, seed=1)  # windows of 2, 2 and 1 batches
    assert [plan.epoch(update) for update in range(5)] == [0, 0.4, 0.8, 1, 1.4]


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 64, 103, 1034])
def test_one_batch_of_sixteen_has_the_images_of_four_batches_of_four(samples):
    whole, parts = Plan(samples, 16, 1, 999, seed=5), Plan(samples, 4, 4, 999, seed=5)
    assert whole.updates_per_epoch == parts.updates_per_epoch
    for update in range(1, 2 * whole.updates_per_epoch + 1):
        assert indices(whole.micro_batches(update)) == indices(parts.micro_batches(update))


def test_a_sampler_that_starts_later_yields_the_rest():
    plan = Plan(samples=23, batch_size=3, accumulation=3, total_updates=11, seed=2)
    everything = list(PlannedSampler(plan))
    assert len(everything) == sum(plan.micro_batch_count(update) for update in range(1, 12))
    for start in range(12):
        done = sum(plan.micro_batch_count(update) for update in range(1, start + 1))
        for skip in range(4):  # micro-batches more: across the end of an update, and of the plan
            assert list(PlannedSampler(plan, start, skip)) == everything[done + skip :]


def test_evaluation_sees_each_image_once_in_order():
    for samples, batch_size in itertools.product(range(1, 21), range(1, 9)):
        batches = list(InOrder(samples, batch_size))
        assert len(batches) == len(InOrder(samples, batch_size))
        assert indices(batches) == list(range(samples))
        assert all(len(batch) == batch_size for batch in batches[:-1]) and 1 <= len(batches[-1]) <= batch_size
        for skip in range(len(batches) + 1):
            rest = InOrder(samples, batch_size, skip)
            assert list(rest) == batches[skip:] and len(rest) == len(batches) - skip


# -- the batches -------------------------------------------------------------------------------------------

PLAN = Plan(samples=22, batch_size=4, accumulation=2, total_updates=9, seed=3)


def load(images: Images, start: int = 0, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    return list(build_loader(images, PlannedSampler(PLAN, start), workers=workers, timeout=60))


def assert_equal(batches: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


def test_a_batch_holds_uint8_pixels_int64_labels_and_the_images_places():
    images = split(22)
    for batch, keys in zip(load(resized(images)), PlannedSampler(PLAN), strict=True):
        assert batch["pixel_values"].dtype == torch.uint8 and batch["labels"].dtype == torch.int64
        assert batch["pixel_values"].shape == (len(keys), 3, 8, 8)
        assert batch["index"].tolist() == [index for _, index in keys]
        assert batch["labels"].tolist() == [images.labels[index] for _, index in keys]


@pytest.mark.parametrize("make", [resized, augmented])
def test_a_batch_without_images_holds_one_that_is_ignored(make):
    images = make(split(1))
    (some,), (none,) = (list(build_loader(images, InOrder(1, 2, rank=rank, world=2))) for rank in (0, 1))
    assert some["index"].tolist() == some["labels"].tolist() == [0]
    assert none["index"].tolist() == [-1] and none["labels"].tolist() == [-100]
    assert some.keys() == none.keys() and len(none["pixel_values"]) == 1
    assert all(none[name].dtype == some[name].dtype for name in some)


def test_random_pixels_are_the_same_for_any_number_of_workers_and_after_a_resume():
    images = augmented(split(22))
    expected = load(images)
    for workers in (1, 2):
        torch.manual_seed(workers)  # nothing may hang on the state that the run happens to be in
        assert_equal(load(images, workers=workers), expected)
    done = sum(PLAN.micro_batch_count(update) for update in range(1, 6))
    assert_equal(load(images, start=5), expected[done:])
    assert_equal(load(images, start=5, workers=2), expected[done:])


def test_random_pixels_differ_by_seed_epoch_and_index():
    images, others = (augmented(split(22), seed=seed) for seed in (3, 4))
    assert torch.equal(drawn(images, 0, 5), drawn(images, 0, 5))
    assert not torch.equal(drawn(images, 0, 5), drawn(images, 1, 5))
    assert not torch.equal(drawn(images, 0, 5), drawn(others, 0, 5))

    def draw(image: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8)

    noise = augmented(split(22), draw)
    assert len({tuple(drawn(noise, 0, index).flatten().tolist()) for index in range(22)}) == 22


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_wherever_it_is_decoded(workers):
    with pytest.raises(DataError, match=r"train/7\.png: cannot be decoded"):
        load(resized(split(22, broken=7)), workers=workers)


@pytest.mark.parametrize("make", [resized, augmented])
def test_loading_in_workers_leaves_the_generator_that_dropout_uses_alone(make):
    before = torch.get_rng_state()
    load(make(split(22)), workers=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_starting_a_loader_draws_nothing_from_the_generator_that_dropout_uses():
    loader = build_loader(resized(split(4)), InOrder(4, 2))
    before = torch.get_rng_state()
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_on_a_device_are_the_loaders_batches():
    loader = build_loader(resized(split(10)), InOrder(10, 4))
    assert_equal(list(batches_on(torch.device("cpu"), loader)), list(loader))
    assert {t.device.type for batch in batches_on(torch.device("meta"), loader) for t in batch.values()} == {"meta"}


def test_a_key_hangs_on_every_part_and_on_nothing_else():
    # For good: a run resumes in another process, by other versions.
    assert derive_seed(42, "augment", 0, 1) == 0x8EEDC4D6
    paths = [(seed, name, number) for seed in range(20) for name in ("augment", "update") for number in range(50)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert all(0 <= derive_seed(*path) < 2**32 for path in paths)
