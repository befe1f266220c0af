"""Intervals and tests against closed forms, tables, and loops that do the same one by one."""

import itertools

import numpy as np
import pytest

from train.recipes.report import compare, compared, lines, mean_interval
from train.recipes.runs import Recipe, Run
from train.recipes.statistics import (
    RESAMPLES,
    image_luck,
    interval,
    mcnemar,
    paired_interval,
    score,
    seed_luck,
    sign_flip_p,
    wilson_interval,
)


@pytest.fixture
def generator():
    return np.random.default_rng(5)


def recipe(correct, labels=None):
    """Of whether each run is right about each image [runs, images]."""
    labels = np.array(["x"] * correct.shape[1] if labels is None else labels)
    return Recipe({}, [Run(None, str(n), n, {}, "", "", "", labels, row, 0.5) for n, row in enumerate(correct)])


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(131, 133, 0.9468, 0.9959), (133, 133, 0.9719, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)],
)
def test_wilsons_interval_is_that_of_the_tables(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"), [(1, 9, 0.021484), (0, 5, 0.0625), (4, 4, 1.0), (15, 5, 0.041389), (0, 0, 1.0)]
)
def test_mcnemars_p_value_is_that_of_the_tables(wins, losses, p_value):
    assert mcnemar(wins, losses) == pytest.approx(p_value, abs=1e-6)


def test_random_signs_give_the_p_value_of_all_signs(generator):
    values, groups = np.array([1, 1, 0, 1, -1, 0.5, 1, 0]), [np.arange(2), np.arange(2, 8)]
    weights = np.array([1 / 2] * 2 + [1 / 6] * 6)
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = np.mean(np.abs(signs @ (values * weights)) >= abs(values @ weights) - 1e-12)
    assert sign_flip_p(values, groups, generator) == pytest.approx(exact, abs=0.02)
    assert sign_flip_p(np.zeros(8), groups, generator) == 1


def test_two_images_of_a_rare_class_prove_nothing():
    labels = np.array(["a", "a", *"bbbbbb"])
    first, second = np.array([[0, 0, *[1] * 6]], bool), np.ones((1, 8), bool)
    for metric in ("accuracy", "balanced_accuracy"):
        assert not compared(recipe(first, labels), recipe(second, labels), metric, 0.05).told_apart
    document = compare([recipe(first, labels), recipe(second, labels)], "balanced_accuracy")
    assert any("2 of a, 6 of b are too few images" in note for note in document["notes"])


def test_seeds_that_agree_are_not_more_images():
    first, second = np.array([[0] * 4 + [1] * 20] * 2, bool), np.ones((2, 24), bool)
    assert not compared(recipe(first), recipe(second), "accuracy", 0.05).told_apart


def test_mcnemars_p_value_is_the_share_of_coin_tosses_at_least_as_uneven():
    for tosses in range(1, 11):
        ways = [abs(2 * sum(coins) - tosses) for coins in itertools.product((0, 1), repeat=tosses)]
        for wins in range(tosses + 1):
            as_uneven = sum(uneven >= abs(2 * wins - tosses) for uneven in ways)
            assert mcnemar(wins, tosses - wins) == pytest.approx(as_uneven / 2**tosses)


def test_the_interval_of_one_seed_each_is_that_of_the_paper_and_holds_the_truth():
    # Newcombe (1998), table II: 36 pairs both right, 12 and 2 one of them
    assert paired_interval(2, 12, 36, 50) == pytest.approx((-0.3404, -0.0569), abs=1e-4)
    assert paired_interval(0, 0, 54, 54)[0] < 0 < paired_interval(0, 0, 54, 54)[1]
    generator = np.random.default_rng(1)
    for images, win, loss in ((128, 0.04, 0.0), (24, 0.06, 0.02), (100, 0.03, 0.01), (133, 0.05, 0.05)):
        drawn = generator.multinomial(images, [win, loss, 0.85, 0.15 - win - loss], size=400)
        found = [paired_interval(wins, losses, both, images) for wins, losses, both, _ in drawn.tolist()]
        assert np.mean([low <= win - loss <= high for low, high in found]) >= 0.92


def test_balanced_accuracy_is_the_mean_of_the_classes_recalls():
    correct = np.array([[1, 1, 0, 1], [0, 0, 0, 1]], dtype=bool)
    labels = np.array(["a", "a", "a", "b"])
    classes = [np.flatnonzero(labels == name) for name in ("a", "b")]
    assert score(correct, classes) == pytest.approx([(2 / 3 + 1) / 2, (0 + 1) / 2])
    assert score(correct, [np.arange(4)]) == pytest.approx([3 / 4, 1 / 4])


def test_images_drawn_by_value_vary_as_images_drawn_one_by_one(generator):
    values = generator.integers(-1, 2, 40) / 2
    halves = [np.arange(10), np.arange(10, 40)]
    for groups in ([np.arange(40)], halves):
        found = image_luck(values, groups, generator)
        plain = [np.mean([generator.choice(values[g], len(g)).mean() for g in groups]) for _ in range(4000)]
        exact = np.sqrt(sum(values[group].var() / len(group) for group in groups)) / len(groups)
        assert found.shape == (RESAMPLES,) and found.std() == pytest.approx(exact, rel=0.03)
        assert np.quantile(found, [0.025, 0.975]) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.02)


def test_the_luck_of_seeds_has_the_quantiles_of_t(generator):
    five = np.array([0.90, 0.91, 0.92, 0.93, 0.94])
    error = five.std(ddof=1) / np.sqrt(5)
    assert interval(seed_luck([five], generator)) == pytest.approx((-2.776 * error, 2.776 * error), rel=0.06)
    both = 2.306 * error * np.sqrt(2)  # 8 degrees of freedom
    assert interval(seed_luck([five, five + 1], generator)) == pytest.approx((-both, both), rel=0.06)
    borrowed = 2.776 * five.std(ddof=1) * np.sqrt(1 + 1 / 5)  # one seed is taken to vary as the five do
    assert interval(seed_luck([np.array([0.5]), five], generator)) == pytest.approx((-borrowed, borrowed), rel=0.06)
    assert not seed_luck([np.array([0.5, 0.5]), np.array([0.7, 0.7])], generator).any()


def simulated(generator, advantage, seeds, luck=0.7, images=200):
    """Two recipes on the same images: some images are harder, some seeds are luckier, and an advantage may be real."""
    hardness = generator.normal(1.5, 2, images)
    for better in (0.0, advantage):
        lucky = generator.normal(0, luck, (seeds, 1))
        yield recipe(hardness + better + lucky + generator.normal(0, 0.5, (seeds, images)) > 0)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_equal_recipes_are_told_apart_in_at_most_one_of_twenty_comparisons(seeds, generator):
    """Of one seed each, if seeds do not matter: McNemar's test knows nothing of them."""
    pairs = [tuple(simulated(generator, 0.0, seeds, luck=0.7 if seeds > 1 else 0.0)) for _ in range(200)]
    assert sum(compared(*pair, "accuracy", 0.05).told_apart for pair in pairs) <= 14  # 10, and chance


def test_a_real_difference_is_found_and_lies_in_its_interval(generator):
    truth = np.diff([found.correct.mean() for found in simulated(generator, 2.5, 200, images=10_000)])[0]
    found = [compared(*simulated(generator, 2.5, 5), "accuracy", 0.05) for _ in range(100)]
    assert sum(low <= truth <= high for low, high in (item.interval for item in found)) >= 90
    assert sum(item.told_apart and item.difference > 0 for item in found) >= 80


def test_more_comparisons_have_wider_intervals_and_say_so(generator):
    first, second = simulated(generator, 0.3, 3)
    third = Recipe({"optim": "sgd"}, second.runs)
    (alone,) = compare([first, second], "accuracy")["comparisons"]
    document = compare([first, second, third], "accuracy")
    for item in document["comparisons"]:
        assert item["confidence"] == 0.975 and item["difference"] == alone["difference"]
        assert item["interval"][0] < alone["interval"][0] < alone["interval"][1] < item["interval"][1]
    assert document["notes"][0].startswith("2 comparisons: each interval is widened to 97.5 %")
    assert len(lines(document)) == 1 + 4 + 2 + 2


def test_a_mean_of_seeds_has_an_interval_no_narrower_than_wilsons():
    flawless = recipe(np.ones((3, 50), dtype=bool))
    assert mean_interval(flawless, np.ones(3), "accuracy") == pytest.approx(wilson_interval(50, 50))
    single = recipe(np.arange(50)[None] < 40)
    assert mean_interval(single, np.array([0.8]), "accuracy") == pytest.approx(wilson_interval(40, 50))


def test_resampling_the_seeds_would_tell_equal_recipes_apart(generator):
    """Why `seed_luck` draws from a distribution: two seeds, drawn with replacement, are one seed half of the time."""
    wrong = 0
    for _ in range(100):
        one, other = (found.correct for found in simulated(generator, 0.0, 2))
        images = generator.integers(0, 200, (300, 200))
        means = [correct[:, images].mean(-1) for correct in (one, other)]  # [seeds, draws]
        seeds = generator.integers(0, 2, (2, 2, 300))  # [recipe, draw of a seed, draw]
        drawn = [np.take_along_axis(mean, picked, 0).mean(0) for mean, picked in zip(means, seeds, strict=True)]
        low, high = interval(drawn[1] - drawn[0])
        wrong += low > 0 or high < 0
    assert wrong > 15
