"""Finished runs, read from their folders, and sorted into recipes: runs that differ in nothing but the seed."""

import json
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train.config.record import RECORD, is_run, read_record
from train.config.schema import FLAGS, FREE
from train.errors import ConfigError
from train.recipes.predictions import PREDICTIONS, read_predictions

LONGEST_NAME = 60  # of a recipe, in characters: sentences name two, and a table has one in each row
SERIES = "series.json"  # in the folder of a series of runs
# Where the data lies and what was drawn from it: where its content is known, that is compared instead.
OF_THE_DATA = {
    *("dataset", "train_dir", "validation_dir", "test_dir", "dataset_config_name"),
    *("image_column_name", "label_column_name", "train_val_split", "split_seed", "max_eval_samples"),
}


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    run_id: str
    seed: int
    flags: dict[str, Any]  # all that the weights depend on, but the seed
    dataset: str  # as it was named
    data: str  # identity of all images
    judges: str  # identity of the validation images
    labels: np.ndarray  # [images], class names
    correct: np.ndarray  # [images], whether the best model is right
    loss: float


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in the seed, on the same validation images."""

    different: dict[str, Any]  # flags in which the recipes compared differ, as this one has them
    runs: list[Run]
    number: int | None = None  # where the flags would be too long a name

    @property
    def name(self) -> str:
        """`learning_rate=0.0001, weight_decay=0`, or `recipe 2`."""
        return self.in_words if self.number is None else f"recipe {self.number}"

    @property
    def in_words(self) -> str:
        """The flags in which it differs."""
        return ", ".join(f"{flag}={value}" for flag, value in self.different.items()) or "all runs"

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each seed's model is right [runs, images]."""
        return np.stack([run.correct for run in self.runs])


def read_recipes(named: list[str]) -> list[Recipe]:
    """The recipes of these runs, in the order in which they were named.

    Args:
        named: folders of runs, or folders that hold folders of runs.

    Raises:
        ConfigError: one is no finished run, or they cannot be compared.
    """
    runs = [read_run(folder) for name in named for folder in find_runs(name)]
    _check_different(runs, "run_id", "the same run; name each once")
    for run in runs[1:]:
        if run.judges != runs[0].judges or not np.array_equal(run.labels, runs[0].labels):
            raise ConfigError(
                f"{run.folder} and {runs[0].folder}: were judged on different images; name the same data set, and where"
                " the images are held out or a subset, the same --split_seed"
            )
    return _sorted_into_recipes(runs)


def find_runs(name: str) -> list[Path]:
    """The folder itself if it is a run, else the runs in it: of a series as it was asked for, others by name."""
    if is_run(name):
        return [Path(name)]
    found = sorted(record.parent for record in Path(name).glob(f"*/{RECORD}"))
    if not found:
        raise ConfigError(f"{name}: {'holds no run' if Path(name).exists() else 'there is no such folder'}")
    order = list(read_series(Path(name)))
    return sorted(found, key=lambda run: order.index(run.name) if run.name in order else len(order))


def read_series(folder: Path) -> dict[str, Any]:
    """The flags of each run of a series, by the names of their folders, as they were asked for; {} if it is none.

    Raises:
        ConfigError: the record cannot be used.
    """
    try:
        content = json.loads((folder / SERIES).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(flags, dict) for flags in content.values()):
            raise ValueError("it is not what a series writes")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / SERIES}: cannot be used: {error}") from error
    return content


def read_run(folder: Path) -> Run:
    """What a finished run recorded.

    Raises:
        ConfigError: it is not finished, or what it left behind is damaged.
    """
    record = read_record(folder / RECORD)
    if not (folder / PREDICTIONS).is_file():
        again = f"plainloop train --output_dir {shlex.quote(str(folder))} --resume_from_checkpoint auto"
        raise ConfigError(
            f"{folder}: has no {PREDICTIONS}, so it is not finished, or of an earlier version; either way run: {again}"
        )
    labels, predicted = map(np.array, zip(*read_predictions(folder), strict=True))
    try:
        results = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
        loss = float(results["eval_loss"])
        if len(labels) != results["eval_samples"]:
            raise ValueError(f"{PREDICTIONS} has {len(labels)} rows, and {results['eval_samples']} images were judged")
        flags = {name: record["config"].get(name, item.default) for name, item in FLAGS.items()}
        # As it was decided, and not as it was asked for.
        flags |= {"precision": record["precision"], "processes": record["processes"]}
        seed = int(flags["seed"])
        data = flags["dataset"], record["dataset_fingerprint"], record["validation_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: cannot be used: {type(error).__name__} {error}") from error
    kept = {name: value for name, value in flags.items() if name not in FREE | {"seed", "device"}}
    return Run(folder, record["run_id"], seed, kept, *data, labels, labels == predicted, loss)


def _sorted_into_recipes(runs: list[Run]) -> list[Recipe]:
    drawn_by_seed = any(run.flags["max_train_samples"] and run.flags["split_seed"] is None for run in runs)
    if not drawn_by_seed:
        runs = [replace(run, flags=_by_content(run)) for run in runs]
    recipes: list[list[Run]] = []
    for run in runs:  # by equality: 0 of the command line comes back from the record of a resumed run as 0.0
        same = next((found for found in recipes if found[0].flags == run.flags), None)
        recipes.append([run]) if same is None else same.append(run)
    firsts = [found[0].flags for found in recipes]
    names = [name for name in firsts[0] if any(flags[name] != firsts[0][name] for flags in firsts)]
    if "max_train_samples" in names and "data" in names:
        names.remove("data")  # which differs because of it
    for found in recipes:
        _check_different(found, "seed", "the same recipe with the same seed, which is no second opinion; leave one out")
    made = [Recipe({name: _shown(name, found[0]) for name in names}, found) for found in recipes]
    if max(len(recipe.in_words) for recipe in made) <= LONGEST_NAME:
        return made
    return [replace(recipe, number=number) for number, recipe in enumerate(made, 1)]


def _by_content(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.flags.items() if name not in OF_THE_DATA} | {"data": run.data}


def _shown(name: str, run: Run) -> Any:
    return f"{run.dataset} ({str(run.data)[-8:]})" if name == "data" else run.flags[name]


def _check_different(runs: list[Run], name: str, what: str) -> None:
    seen: dict[Any, Run] = {}
    for run in runs:
        if (other := seen.setdefault(getattr(run, name), run)) is not run:
            raise ConfigError(f"{other.folder} and {run.folder}: are {what}")
