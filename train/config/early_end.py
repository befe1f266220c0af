"""When a run ends before its plan does: no better for a while, good enough, or out of time."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.errors import ConfigError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # seconds


@dataclass(frozen=True)
class EarlyEnd:
    """What ends a run early; by default nothing."""

    patience: int | None = None  # evaluations in a row without a new best
    until: tuple[str, float] | None = None  # a metric, and the value that is good enough
    max_seconds: float | None = None  # of updates, evaluations and saves, over all starts

    def reason(self, values: Mapping[str, float], evaluations_since_best: int, time_is_up: bool) -> str:
        """Why the run is over after an evaluation that gave these values; nothing if it goes on."""
        if self.until is not None:
            name, goal = self.until
            if values[name] <= goal if name == "loss" else values[name] >= goal:
                return f"{name} is {values[name]:.6g}, which is good enough (--until)"
        if self.patience is not None and evaluations_since_best >= self.patience:
            times = "evaluation" if self.patience == 1 else "evaluations"
            return f"no new best in {self.patience} {times} (--early_stopping_patience)"
        return "the time is up (--max_time)" if time_is_up else ""


def parse_early_end(patience: int | None, until: str | None, max_time: str | None) -> EarlyEnd:
    """From the values of the flags.

    Raises:
        ConfigError: one that cannot be read.
    """
    return EarlyEnd(patience, _parse_until(until), _parse_time(max_time))


def _parse_until(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    name, _, value = text.rpartition("=")
    name = name.removeprefix("eval_")
    try:
        goal = float(value)
    except ValueError as error:
        raise ConfigError(f"--until {text}: must have the form metric=value, such as eval_accuracy=0.98") from error
    if not (0 <= goal < math.inf if name == "loss" else 0 <= goal <= 1):
        raise ConfigError(f"--until {text}: {name} never reaches {value}; rates lie between 0 and 1")
    return name, goal


def _parse_time(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]):
        raise ConfigError(f"--max_time {text}: must be a number of seconds, or as 90s, 10m, 2h")
    return float(match[1]) * UNITS[match[2]]
