"""Names as people see them: the same text may be stored in two forms (`é` as one character, or as e and an accent)."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable


def composed(name: str) -> str:
    """The form that equal names share (NFC)."""
    return unicodedata.normalize("NFC", name)


def in_two_forms(names: Iterable[str]) -> dict[str, str]:
    """Names that are stored in more than one form, each with the composed one, under which they are joined."""
    forms: dict[str, set[str]] = defaultdict(set)
    for name in names:
        forms[composed(name)].add(name)
    return {name: form for form, found in forms.items() if len(found) > 1 for name in found}


def joined_note(joined: dict[str, str]) -> str:
    """What people are told of it."""
    return f"joined: names whose accents are stored in two ways: {', '.join(sorted(set(joined.values())))}"
