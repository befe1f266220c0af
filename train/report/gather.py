"""What a run's folder says of it, checked as far as a page relies on it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.record import RECORD, TEMPERATURE_FILE, is_run, read_log, read_record
from train.errors import ConfigError
from train.recipes.predictions import PREDICTIONS, Prediction, read_images


@dataclass(frozen=True)
class Gathered:
    """One run, finished or not."""

    folder: Path
    record: dict[str, Any]  # run.json
    log: list[dict[str, Any]]  # metrics.jsonl
    finished: bool
    evaluation: dict[str, Any]  # eval_results.json; {} of a run that is not finished, as are the next four
    training: dict[str, Any]  # train_results.json
    test: dict[str, Any]  # test_results.json, where there is one
    best_step: int | None
    temperature: float | None  # that the logits were divided by after all this was measured
    images: list[str]  # names of the validation images
    predictions: list[Prediction]

    @property
    def label_names(self) -> list[str]:
        """By the index of the class."""
        return self.record["label_names"]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name


def gather(folder: Path) -> Gathered:
    """Read a run's folder.

    Raises:
        ConfigError: it holds no run, or a file of it is missing or damaged; names the file.
    """
    if not is_run(str(folder)):
        raise ConfigError(f"{folder}: {'holds no run' if folder.exists() else 'there is no such folder'}")
    record, log = read_record(folder / RECORD), read_log(folder)
    names = record.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{folder / RECORD}: cannot be used: it names no classes")
    if not (folder / PREDICTIONS).is_file():  # what else lies there is of an earlier end
        return Gathered(folder, record, log, False, {}, {}, {}, None, None, [], [])
    evaluation, training = (_read(folder / f"{part}_results.json") for part in ("eval", "train"))
    test = _read(folder / "test_results.json") if (folder / "test_results.json").exists() else {}
    state = _read(folder / "trainer_state.json")
    images, predictions = read_images(folder, names)
    scaled = _read(folder / TEMPERATURE_FILE) if (folder / TEMPERATURE_FILE).exists() else {}
    best, temperature = state.get("best_global_step"), scaled.get("temperature")
    gathered = Gathered(folder, record, log, True, evaluation, training, test, best, temperature, images, predictions)
    checked(folder, lambda: _check(gathered))
    return gathered


def checked(folder: Path, work: Callable[[], Any]) -> Any:
    """What `work` returns; ConfigError if it stumbles over a value that no run writes."""
    try:
        return work()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ConfigError(f"{folder}: cannot be used: {type(error).__name__} {error}") from error


def _check(run: Gathered) -> None:
    """What the run's files say must fit together."""
    size, samples = len(run.label_names), run.evaluation["eval_samples"]
    for part, found in (("eval", run.evaluation), ("test", run.test)):
        confusion = found.get(f"{part}_confusion")
        if found and (len(confusion) != size or any(len(row) != size for row in confusion)):
            raise ValueError(f"{part}_results.json counts other classes than run.json names")
        if found and not all(math.isfinite(found[f"{part}_{name}"]) for name in ("accuracy", "balanced_accuracy")):
            raise ValueError(f"{part}_results.json has no accuracy")
    if len(run.predictions) != samples:
        raise ValueError(f"{PREDICTIONS} has {len(run.predictions)} rows, and {samples} images were judged")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not what a run writes")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be used: {getattr(error, 'strerror', None) or error}") from error
    return content
