"""The comparison of recipes, as a document and as lines for people."""

from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np

from train.recipes import statistics
from train.recipes.runs import Recipe
from train.recipes.statistics import Interval

METRICS = ("accuracy", "balanced_accuracy")
SEED = 0  # of the draws: the same runs give the same figures
ERROR = 0.05
FLATTERS = (
    "every figure flatters: the same images chose the best model of each run; judge the recipe that you take once more,"
    " on images that chose nothing"
)
FEW_OF_A_CLASS = 10
ONE_SEED = "one seed: the luck of the images is counted, that of the seed is not; train with --seeds for that"


@dataclass(frozen=True)
class Comparison:
    """How much better the second of two recipes is than the first, 0..1."""

    difference: float
    interval: Interval
    told_apart: bool  # whether chance does not explain the difference: neither the interval nor the test holds it equal
    p_value: float  # of McNemar's exact test for the accuracy of one seed each, else of signs drawn at random
    wins: int | None = None  # of one seed each: images that only the second has right
    losses: int | None = None


def compare(recipes: list[Recipe], metric: str | None = None) -> dict[str, Any]:
    """Every recipe's figures, and each recipe against the first.

    Args:
        recipes: on the same images.
        metric: one of METRICS; None for balanced accuracy if it chose the best model of every run, else accuracy.
    """
    metric = metric or chosen_by(recipes)
    error = ERROR / max(1, len(recipes) - 1)  # Bonferroni
    pairs = [(recipe, compared(recipes[0], recipe, metric, error)) for recipe in recipes[1:]]
    return {
        "metric": metric,
        "images": len(recipes[0].runs[0].labels),
        "recipes": [figures(recipe, metric) for recipe in recipes],
        "comparisons": [
            vars(found)
            | {"first": recipes[0].name, "second": recipe.name}
            | {"confidence": 1 - error, "text": sentence(recipes[0], recipe, metric, found)}
            for recipe, found in pairs
        ],
        "notes": notes(recipes, error, metric),
    }


def chosen_by(recipes: list[Recipe]) -> str:
    """The metric to compare by, where none is named."""
    chose = {str(run.flags["metric_for_best_model"]).removeprefix("eval_") for recipe in recipes for run in recipe.runs}
    return "balanced_accuracy" if chose == {"balanced_accuracy"} else "accuracy"


def notes(recipes: list[Recipe], error: float, metric: str) -> list[str]:
    """What to bear in mind."""
    found = [FLATTERS]
    names, counts = np.unique(recipes[0].runs[0].labels, return_counts=True)
    few = [f"{count} of {name}" for name, count in zip(names, counts, strict=True) if count < FEW_OF_A_CLASS]
    if few and metric == "balanced_accuracy":
        found.insert(0, f"{', '.join(few)} are too few images for an interval: it is narrower than the truth")
    if any(len(recipe.runs) == 1 for recipe in recipes):
        found.insert(0, ONE_SEED)
    if (comparisons := len(recipes) - 1) > 1:
        found.insert(
            0,
            f"{comparisons} comparisons: each interval is widened to {100 * (1 - error):.4g} % (Bonferroni), so that"
            " among equal recipes one table in twenty finds a difference, and not one line in twenty",
        )
    return found


def figures(recipe: Recipe, metric: str) -> dict[str, Any]:
    """What one recipe's seeds reached, with the interval of their mean."""
    scores = {name: statistics.score(recipe.correct, groups(recipe, name)) for name in METRICS}
    found: dict[str, Any] = {
        "name": recipe.name,
        "in_words": recipe.in_words,
        "flags": recipe.different,
        "runs": [str(run.folder) for run in recipe.runs],
        "seeds": [run.seed for run in recipe.runs],
    }
    for name in METRICS:
        found |= {name: scores[name].mean(), f"{name}_of_runs": scores[name].tolist()}
    return found | {
        "loss": float(np.mean([run.loss for run in recipe.runs])),
        "interval_95": mean_interval(recipe, scores[metric], metric),
    }


def mean_interval(recipe: Recipe, scores: np.ndarray, metric: str) -> Interval:
    """95 % interval of a recipe's mean. Of an accuracy never narrower than Wilson's, which is sound near 1, too."""
    images = len(recipe.runs[0].labels)
    wilson = statistics.wilson_interval(float(scores.mean()) * images, images)
    if len(scores) == 1 and metric == "accuracy":
        return wilson
    generator = np.random.default_rng(SEED)
    luck = statistics.image_luck(recipe.correct.mean(0), groups(recipe, metric), generator)
    if len(scores) > 1:
        luck = luck + statistics.seed_luck([scores], generator)
    low, high = statistics.interval(luck, ERROR)
    if metric == "accuracy":
        low, high = min(low, wilson[0]), max(high, wilson[1])
    return max(0.0, low), min(1.0, high)


def compared(first: Recipe, second: Recipe, metric: str, error: float) -> Comparison:
    """The second recipe against the first on the same images: at most the share `error` of equal ones is told apart."""
    both, judged = (first.correct, second.correct), groups(first, metric)
    scores = [statistics.score(correct, judged) for correct in both]
    difference = float(scores[1].mean() - scores[0].mean())
    single = len(first.runs) == len(second.runs) == 1
    if single and metric == "accuracy":
        wins, losses = int((both[1] & ~both[0]).sum()), int((both[0] & ~both[1]).sum())
        agreed, images = int((both[0] & both[1]).sum()), both[0].size
        found = statistics.paired_interval(wins, losses, agreed, images, error)
        p_value = statistics.mcnemar(wins, losses)
        return Comparison(difference, found, p_value < error and _without_zero(found), p_value, wins, losses)
    generator, by_image = np.random.default_rng(SEED), both[1].mean(0) - both[0].mean(0)
    luck = statistics.image_luck(by_image, judged, generator)
    if not single:
        luck = luck + statistics.seed_luck(scores, generator)
    found = statistics.interval(luck, error)
    p_value = statistics.sign_flip_p(by_image, judged, generator)
    return Comparison(difference, found, p_value < error and _without_zero(found), p_value)


def _without_zero(interval: Interval) -> bool:
    low, high = interval
    return low > 0 or high < 0


def groups(recipe: Recipe, metric: str) -> list[np.ndarray]:
    """The images over which the metric takes a mean of means; see `statistics.score`."""
    labels = recipe.runs[0].labels
    if metric == "accuracy":
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == name) for name in np.unique(labels)]


def sentence(first: Recipe, second: Recipe, metric: str, found: Comparison) -> str:
    """The comparison in words; differences in points, hundredths of the metric."""
    points, low, high = (100 * value for value in (found.difference, *found.interval))
    counts = sorted({len(first.runs), len(second.runs)})
    seeds = " and ".join(map(str, counts)) + (" seed each" if counts == [1] else " seeds")
    if found.told_apart:
        verdict = f"is {'better' if points > 0 else 'worse'} than {first.name} by {abs(points):.1f} points"
        low, high = sorted([abs(low), abs(high)])
        text = f"{second.name} {verdict} of {metric} ({low:.1f} to {high:.1f}), {seeds}"
    else:
        text = f"{second.name} and {first.name} are not told apart: difference {points:.1f} points of {metric}"
        text += f" ({low:.1f} to {high:.1f}), {seeds}"
    if found.wins is not None:
        text += f"; alone right on {found.wins} and {found.losses} images, McNemar's p = {found.p_value:.2g}"
    return text


def lines(document: dict[str, Any]) -> list[str]:
    """The table, a sentence for each comparison, and what to bear in mind. Rates are in percent."""
    metric = document["metric"]
    rows = [("recipe", "seeds", f"{metric} (range)", "95 % interval", *(n for n in METRICS if n != metric), "loss")]
    rows += [tuple(_row(found, metric)) for found in document["recipes"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(*cells: str) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    head = f"judged on the same {document['images']} validation images; rates in percent"
    found = document["recipes"]
    long = [f"{each['name']}: {each['in_words']}" for each in found if each["name"] != each["in_words"]]
    sentences = [each["text"] for each in document["comparisons"]]
    return [head, *long, *starmap(line, rows), *sentences, *document["notes"]]


def _row(found: dict[str, Any], metric: str) -> list[str]:
    low, high = (100 * value for value in found["interval_95"])
    scores = found[f"{metric}_of_runs"]
    spread = f" ({100 * min(scores):.1f} to {100 * max(scores):.1f})" if len(scores) > 1 else ""
    others = (f"{100 * found[name]:.1f}" for name in METRICS if name != metric)
    mean = f"{100 * found[metric]:.1f}{spread}"
    return [found["name"], str(len(scores)), mean, f"{low:.1f} to {high:.1f}", *others, f"{found['loss']:.4f}"]
