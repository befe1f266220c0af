import pytest
import torch
from torchvision.transforms import InterpolationMode

from data.augment import Augmentation, augmented, build_mix
from data.cache.prepared import CachePolicy, prepare_images
from data.loading.loader import Images, PlannedSampler, build_loader
from data.plan import Balance, Plan
from data.reading.decode import Resize
from data.sources import load_splits

SIZE = Resize(32, 32, InterpolationMode.BILINEAR)
EVERY = [
    Augmentation("flip"),
    Augmentation("flip_both"),
    Augmentation("trivial"),
    Augmentation("rand", magnitude=15),
    Augmentation("auto"),
    Augmentation(crop=0.3),
    Augmentation(erasing=0.7),
    Augmentation("trivial", crop=0.5, erasing=0.3, fill=(127, 128, 129)),
]


def noise(count=1, side=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("augmentation", EVERY, ids=str)
def test_each_image_is_drawn_for_by_itself_and_the_same_again(augmentation):
    augment, image = augmentation.build(SIZE), noise(1, 48 if augmentation.crop else 32)
    keys = [(epoch, index) for epoch in range(3) for index in range(8)]
    together = augmented(augment, image.expand(24, -1, -1, -1), 7, keys)
    torch.manual_seed(99)  # nothing hangs on the state of the generator
    alone = torch.cat([augmented(augment, image, 7, [key]) for key in keys])
    assert together.equal(alone) and together.shape == (24, 3, 32, 32) and together.dtype == torch.uint8
    assert len({tuple(one.flatten().tolist()) for one in together}) > 1, "every image got the same draw"
    assert not together.equal(augmented(augment, image.expand(24, -1, -1, -1), 8, keys))


def test_half_are_mirrored_and_nothing_else():
    image = noise()
    drawn = augmented(Augmentation("flip").build(SIZE), image.expand(400, -1, -1, -1), 1, [(0, i) for i in range(400)])
    mirrored = sum(one.equal(image[0].flip(-1)) for one in drawn)
    assert 160 < mirrored < 240 and mirrored + sum(one.equal(image[0]) for one in drawn) == 400
    both = augmented(
        Augmentation("flip_both").build(SIZE), image.expand(400, -1, -1, -1), 1, [(0, i) for i in range(400)]
    )
    turned = sum(one.equal(image[0].flip(-1, -2)) for one in both)
    assert 60 < turned < 140


def test_erasing_paints_the_mean_colour():
    fill = (200, 100, 50)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    drawn = augmented(Augmentation(erasing=1.0, fill=fill).build(SIZE), image, 1, [(0, 0)])[0]
    painted = drawn.flatten(1).T[drawn.flatten(1).sum(0) > 0]
    assert 0 < len(painted) < 32 * 32 and painted.unique(dim=0).tolist() == [list(fill)]


def test_cropped_images_are_kept_larger_and_validation_images_are_not(tmp_path):
    crop = Augmentation(crop=0.28)
    assert crop.stored(SIZE) == Resize(40, 40, InterpolationMode.BILINEAR)  # 32 / sqrt((0.28 + 1) / 2)
    splits = load_splits("builtin:leaves", max_train_samples=6, max_eval_samples=4)
    ways = []
    for kind in ("none", "memory", "disk", "disk"):
        policy = CachePolicy(kind, folder=str(tmp_path))
        _, pixels, *_ = prepare_images(splits, SIZE, policy, False, print, train_resize=crop.stored(SIZE))
        assert pixels["train"][[0, 5]].shape == (2, 3, 40, 40) and pixels["validation"][[3]].shape == (1, 3, 32, 32)
        images = Images(pixels["train"], splits.train.labels, 3, crop.build(SIZE))
        plan = Plan(6, 2, 1, 6, 3)
        batches = [list(build_loader(images, PlannedSampler(plan), workers=workers)) for workers in (0, 2)]
        for one, other in zip(*batches, strict=True):
            assert one["pixel_values"].equal(other["pixel_values"]) and one["pixel_values"].shape == (2, 3, 32, 32)
        ways.append(torch.cat([batch["pixel_values"] for batch in batches[0]]))
    assert all(way.equal(ways[0]) for way in ways[1:])


def test_balanced_drawing_is_a_pure_function_and_draws_classes_alike():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    plan, again = (Plan(1000, 10, 1, 300, 5, balance=Balance(labels)) for _ in range(2))
    drawn = [index for update in range(1, 301) for index in plan.indices(update)]
    assert drawn == [index for update in range(1, 301) for index in again.indices(update)]
    counts = torch.bincount(torch.tensor(labels)[drawn], minlength=3)
    assert len(drawn) == 3000 and (counts - 1000).abs().max() < 110  # four standard deviations
    ranks = [Plan(1000, 5, 1, 300, 5, rank=rank, world=2, balance=Balance(labels)) for rank in range(2)]
    assert sorted(plan.indices(7)) == sorted(ranks[0].indices(7) + ranks[1].indices(7))


def test_shares_of_mixed_labels_sum_to_one_and_padding_stays_nothing():
    pixels, labels = noise(8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        torch.manual_seed(3)
        mixed, shares = build_mix(mixup, cutmix, 3)(pixels, labels)
        assert mixed.dtype == torch.float32 and mixed.shape == pixels.shape and not mixed.equal(pixels.float())
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 8) and (shares > 0).sum() > 8
        assert build_mix(mixup, cutmix, 3)(pixels[:1], torch.tensor([-100]))[1].tolist() == [[0, 0, 0]]
    assert build_mix(0, 0, 3)(pixels, labels) == (pixels, labels)


def test_mixup_is_its_formula_and_at_share_one_the_plain_batch(monkeypatch):
    pixels, labels = noise(4), torch.tensor([0, 1, 2, 0])
    for share in (0.3, 1.0):
        monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_, share=share: torch.tensor([share]))
        mixed, shares = build_mix(0.4, 0.0, 3)(pixels, labels)
        other, one_hot = pixels.float().roll(1, 0), torch.eye(3)[labels]
        assert torch.allclose(mixed, share * pixels.float() + (1 - share) * other)
        assert torch.allclose(shares, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    assert mixed.equal(pixels.float()) and shares.equal(one_hot)
