"""Flags as they were given, in a file or on the command line, and everything that is wrong with them."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from train.config.flags import SWITCH_WORDS

FILE, TYPED = 0, 1  # where a flag stands; what is typed wins


class Given(NamedTuple):
    """The value of one flag."""

    value: str | None  # None: the flag stands alone
    spelled: str  # as it was given: fp16, where --precision is meant
    source: int  # FILE or TYPED

    @property
    def word(self) -> str:
        """The value in small letters; every spelling of yes and no, and no value at all, as true or false."""
        word = "true" if self.value is None else self.value.lower()
        return str(SWITCH_WORDS[word]).lower() if word in SWITCH_WORDS else word

    @property
    def number(self) -> float | None:
        """The value, if it is a finite number."""
        try:
            return float(self.value) if math.isfinite(float(self.value)) else None
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """As a message shows it."""
        return f"--{self.spelled}" if self.value is None else f"--{self.spelled} {self.value}"


@dataclass
class Flags:
    """What was given, by the name of the flag."""

    path: str | None = None  # of the file
    given: dict[str, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a run prints and records
    script: str | None = None  # the flag by which the line is one of run_image_classification.py
    _idle: dict[str, list[str]] = field(default_factory=dict)  # reason -> flags without effect
    _refused: dict[str, list[str]] = field(default_factory=dict)  # what to do -> flags

    def put(self, name: str, given: Given) -> None:
        """Set a flag. Of the file and the command line the latter wins; two spellings in one place must agree."""
        before = self.given.get(name)
        if before and before.source > given.source:
            return
        if before and before.source == given.source and before.spelled != given.spelled and not _same(before, given):
            both = f"--{before.spelled} and --{given.spelled}"
            self.refuse(both, f"ask for {before.value} and {given.value}; leave one out", given.source)
        self.given[name] = given

    def take(self, name: str) -> Given | None:
        """A flag that the parser does not know, which is gone afterwards."""
        return self.given.pop(name, None)

    def idle(self, flag: str, why: str) -> None:
        """Note that a flag has no effect here."""
        self._idle.setdefault(why, []).append(flag)

    def refuse(self, flag: str, text: str, source: int = TYPED) -> None:
        """Note that a flag cannot be taken, and what to do."""
        flags = self._refused.setdefault(text, [])
        label = f"{self.path}: {flag}" if source == FILE else flag
        if label not in flags:
            flags.append(label)

    def problems(self) -> list[str]:
        """All that was refused, each with its flags before it."""
        return [f"{', '.join(flags)}: {text}" for text, flags in self._refused.items()]

    def all_notes(self) -> list[str]:
        """The lines for a run, the flags without effect together in one."""
        idle = [f"{', '.join(flags)} ({why})" for why, flags in self._idle.items()]
        return [*self.notes, *([f"flags without effect here: {'; '.join(idle)}"] if idle else [])]

    def tokens(self) -> list[str]:
        """As the parser takes them."""
        return [token(name, given) for name, given in self.given.items()]


def token(name: str, given: Given) -> str:
    """One flag as the parser takes it."""
    return f"--{name}" if given.value is None else f"--{name}={given.value}"


def split(tokens: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """`x --a 1 --b --c=2 3` -> (None, ["x"]), ("a", ["1"]), ("b", []), ("c", ["2", "3"]). `-x` is no value, -1 is."""
    name, values = None, []
    for text in tokens:
        if text.startswith("--"):
            yield name, values
            name, equals, value = text[2:].partition("=")
            values = [value] if equals else []
        elif re.match(r"-[^\d.]", text):
            yield name, values
            name, values = None, [text]
        else:
            values.append(text)
    yield name, values


def _same(one: Given, other: Given) -> bool:
    return one.word == other.word or (one.number is not None and one.number == other.number)
