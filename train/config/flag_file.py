"""Flags in a YAML or JSON file. Every value is the text that stands there.

YAML's own types are not used: it would make False of `off`, a date of `2026-01-01`, and of an alias a copy without end.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.addresses import refusal
from train.errors import ConfigError


def file_flags(path: str) -> dict[str, str]:
    """A file of lines `name: value`. `null` is "not given", as in the record of a run.

    Raises:
        ConfigError: the file cannot be read, is no such list, names a flag twice, or has an alias (`*name`) or a tag
            (`!!name`).
    """
    refuse_secrets([path])
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError for a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path!r}: cannot be read: {reason}; flags begin with --") from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(f"{path}: holds an alias (*name); write the value where it belongs")
        if tags := [event.tag for event in yaml.parse(text) if getattr(event, "tag", None)]:
            raise ConfigError(f"{path}: is not YAML of plain values: it holds a tag ({tags[0]})")
        node = yaml.compose(text)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: must hold lines of the form `learning_rate: 3e-5`")
        pairs = [(str(key.value).replace("-", "_"), value) for key, value in node.value]
        values = {name: _text(value) for name, value in pairs}
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {_reason(error)}") from None  # whose text repeats the line
    refuse_secrets([f"{name}={value}" for name, value in values.items()])
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: names {', '.join(twice)} twice; keep one line")
    return {name: value for name, value in values.items() if value is not None}


def refuse_secrets(tokens: Iterable[str]) -> None:
    """Before anything is printed or recorded.

    Raises:
        ConfigError: one holds an address with a user, a password or a signature.
    """
    for token in tokens:
        if reason := refusal(token):
            raise ConfigError(reason)


def _reason(error: Exception) -> str:
    """What YAML says of a file and where, without the line itself, which may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or type(error).__name__}{where}"


def as_tokens(flags: Mapping[str, Any]) -> list[str]:
    """`{"seed": 3, "fsdp": True}` -> `["--seed=3", "--fsdp=True"]`; what is None is left out."""
    return [f"--{name}={_json(value)}" for name, value in flags.items() if value is not None]


def _json(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _text(node: yaml.Node) -> str | None:
    """A scalar as it is written; a list or mapping as JSON, as in `lr_scheduler_kwargs: {num_cycles: 2}`."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in ("", "~", "null", "Null", "NULL") else node.value
    return json.dumps(yaml.safe_load(yaml.serialize(node)))
