"""The classes of a checkpoint, which are compared and joined by name, never by index."""

import unicodedata
from collections import Counter, defaultdict
from typing import Any

from models import ModelError
from models.config import shown


def read_classes(config: dict[str, Any]) -> list[str]:
    """The class names by index, which a config.json stores as {"0": "cat"}; none if it has no id2label.

    Raises:
        ModelError: the indices are not 0, 1, 2, ..., or a name is no text.
    """
    stored = config.get("id2label")
    if stored is None:
        return []
    if not isinstance(stored, dict):
        raise ModelError(f"id2label is {shown(stored)}, expected an index and a name for each class")
    if odd := stored.keys() - {str(index) for index in range(len(stored))}:
        raise ModelError(f"id2label has the index {shown(min(odd))}; of {len(stored)} classes they are 0, 1, 2, ...")
    names = [stored[str(index)] for index in range(len(stored))]
    for name in names:
        if type(name) not in (str, int):  # numbers as classes are compared as text
            raise ModelError(f"id2label has the name {shown(name)}, expected text")
    return list(map(str, names))


def join(old: list[str], new: list[str]) -> list[int] | None:
    """The index in `old` of each name in `new`; None if the names differ, or equal ones cannot be told apart."""
    if old == new:
        return list(range(len(new)))
    left = defaultdict(list)
    for index in reversed(range(len(old))):
        left[_composed(old[index])].append(index)
    repeated = {name for name, indices in left.items() if len(indices) > 1}
    order: list[int] = []
    for name in new:
        indices = left[_composed(name)]
        if not indices or (_composed(name) in repeated and old[indices[-1]] != name):
            return None
        order.append(indices.pop())
    return order if len(order) == len(old) else None


def put_first(classes: list[str], wanted: list[str], model: str) -> list[str]:
    """`wanted`, then the other classes of `model`; `join` tells how that is another order of `classes`.

    Raises:
        ModelError: one of `wanted` is not among them, or is there twice; names it.
    """
    has, asked = Counter(map(_composed, classes)), Counter(map(_composed, wanted))
    if strange := [name for name in wanted if not has[_composed(name)]]:
        raise ModelError(
            f"the data has classes that --model {model} was not trained on: {_some(strange)};"
            f" its own are {_some(classes) or 'not named'}"
        )
    double = {name: None for name in wanted if has[_composed(name)] + asked[_composed(name)] > 2}
    if double:
        raise ModelError(f"--model {model} or the data has two classes of one name: {_some([*double])}")
    return [*wanted, *(name for name in classes if not asked[_composed(name)])]


def _composed(name: str) -> str:
    """File systems differ in how they spell an accent."""
    return unicodedata.normalize("NFC", name)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
