"""`momentum=0.9,nesterov=true` -> keyword arguments, checked against what a class takes."""

import ast
import contextlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from train.errors import ConfigError

WORDS = {"true": True, "false": False, "none": None, "null": None}


@contextlib.contextmanager
def refusals_of(flag: str) -> Iterator[None]:
    """Turn whatever a named class raises on what it was given into one line that begins with `flag`.

    Raises:
        ConfigError: the class raised.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the class may be of any package
        reason = " ".join(str(error).split()) or "no reason given"
        raise ConfigError(f"{flag}: {type(error).__name__}: {reason}") from error


def parse_arguments(flag: str, text: str | None) -> dict[str, Any]:
    """Read `a=1,b=(0.9,0.95),c=true`, or a JSON object, into a dictionary.

    Raises:
        ConfigError: the text is neither.
    """
    text = (text or "").strip()
    if text.startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--{flag} {text[:80]}: is not JSON: {error}") from error
    arguments = {}
    for part in filter(None, re.split(r",(?=\s*\w+\s*=)", text)):  # commas inside (0.9,0.95) do not separate
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise ConfigError(f"--{flag} {text}: must have the form name=value,name=value")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two if it is nested too deeply
        return text


def check_arguments(
    flag: str,
    owner: str,
    arguments: dict[str, Any],
    takes: Mapping[str, inspect.Parameter],
    elsewhere: set[str],
) -> None:
    """Refuse arguments that `owner` does not take, that have a flag of their own (`elsewhere`), or of another form.

    Raises:
        ConfigError: names the argument and lists those that can be given.
    """
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    for name in arguments:
        if name in elsewhere or (name not in takes and not open_ended):
            accepted = ", ".join(sorted(takes.keys() - elsewhere - {"self", "args", "kwargs"})) or "nothing"
            reason = "is set by a flag of its own" if name in elsewhere else f"is not taken by {owner}"
            raise ConfigError(f"--{flag}: {name} {reason}; {owner} takes {accepted}")
        if name in takes and (form := _wrong_form(arguments[name], takes[name].default)):
            raise ConfigError(f"--{flag} {name}={arguments[name]}: must be {form}, such as {takes[name].default}")


def _wrong_form(value: Any, default: Any) -> str | None:
    """What a value should be, judged by the form of the default; None if it is of that form."""
    if isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(default)
        fits = fits and all(_is_number(item) or item in default for item in value)
        return None if fits else f"{len(default)} numbers in parentheses"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, float):
        return None if _is_number(value) else "a number"
    return None


def like(fresh: Any, saved: Any) -> bool:
    """Whether a value read from a file can stand where a fresh object has `fresh`: the same kind, and as long."""
    if isinstance(fresh, bool):
        return isinstance(saved, bool) or saved is None
    if isinstance(fresh, int | float):
        return _is_number(saved) and (math.isfinite(saved) or not math.isfinite(fresh))
    if isinstance(fresh, list | tuple):
        return isinstance(saved, list | tuple) and len(saved) == len(fresh) and all(map(like, fresh, saved))
    if fresh is None:  # not decided yet
        return saved is None or isinstance(saved, int | float)
    return isinstance(saved, type(fresh))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
