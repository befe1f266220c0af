"""--class_weights and --logit_adjustment: how much rare classes count in the loss."""

import json
import math
from collections import Counter
from collections.abc import Sequence

from train.errors import ConfigError

MOST = 1e6  # times the mean: a larger weight is a mistake, and a smaller one trains nothing


def class_weights(asked: str, label_names: list[str], labels: Sequence[int] | None) -> list[float]:
    """The weight of each class in the loss, scaled so that the mean over the training images is 1.

    So the loss stays as large as without weights, and learning rates keep their meaning.

    Args:
        asked: `balanced` (one over the number of images), or `name=weight,name=weight`; unnamed classes have 1.
        label_names: by the index of the class.
        labels: the class of each training image; of a stream None, and then the mean over the classes is 1.

    Raises:
        ConfigError: a class that there is not, a weight that is no positive number, or a class without images.
    """
    if labels is None:
        labels = range(len(label_names))
    counts = Counter(labels)
    if asked == "balanced":
        if never := [name for index, name in enumerate(label_names) if not counts[index]]:
            raise ConfigError(f"--class_weights balanced: there is no training image of {', '.join(never)}")
        weights = [1 / counts[index] for index in range(len(label_names))]
    else:
        named = _parse_weights(asked, label_names)
        weights = [named.get(name, 1.0) for name in label_names]
    mean = sum(weights[label] for label in labels) / len(labels)
    scaled = [weight / mean for weight in weights]
    if not all(1 / MOST < weight < MOST for weight in scaled):
        raise ConfigError(f"--class_weights {asked}: one class would weigh a million times as much as another")
    return scaled


def log_shares(label_names: list[str], labels: Sequence[int]) -> list[float]:
    """The natural logarithm of each class's share of the training images.

    Raises:
        ConfigError: a class without images.
    """
    counts = Counter(labels)
    if never := [name for index, name in enumerate(label_names) if not counts[index]]:
        raise ConfigError(f"--logit_adjustment: there is no training image of {', '.join(never)}")
    return [math.log(counts[index] / len(labels)) for index in range(len(label_names))]


def _parse_weights(text: str, label_names: list[str]) -> dict[str, float]:
    """`cat=2, dog=0.5`, or a JSON object for names that hold a comma."""
    form = f"--class_weights {text}: must be balanced, class=2,class=0.5, or a JSON object"
    try:
        pairs = json.loads(text, object_pairs_hook=list) if text.startswith("{") else _pairs(text)
        named = [(str(name).strip(), float(value)) for name, value in pairs]
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(form) from error
    for name, weight in named:
        if not 0 < weight < math.inf:
            raise ConfigError(form)
        if name not in label_names:
            raise ConfigError(f"--class_weights {text}: there is no class {name}; there are {', '.join(label_names)}")
    if len(dict(named)) < len(named):
        raise ConfigError(f"--class_weights {text}: names a class twice")
    return dict(named)


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = [part.rpartition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in parts):
        raise ValueError(text)
    return [(name, value) for name, _, value in parts]
