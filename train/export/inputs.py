"""What an export needs to know of a run: its validation images, and which model it is."""

import json
from pathlib import Path
from typing import Any

from data import DataError, files
from data.cache.check import check_images
from data.reading.repeats import WARNING
from data.reading.splits import Splits
from train.config.record import RECORD, read_record
from train.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.errors import ConfigError
from train.setup.inputs import is_offline, load_data
from train.system.console import say


def record_of(run: str) -> dict[str, Any] | None:
    """The record of a run, by its folder or that of one of its checkpoints; None where there is none.

    Raises:
        ConfigError: there is one that cannot be used.
    """
    folder = Path(files.follow(run)).resolve()
    places = (folder, folder.parent) if folder.is_dir() else ()  # of a name on the Hub, there is no folder
    return next((read_record(at / RECORD) for at in places if (at / RECORD).is_file()), None)


def data_config(run: str, record: dict[str, Any] | None, typed: dict[str, Any], cache_dir: str | None) -> Config:
    """How the run read its data, or as the flags say instead.

    Args:
        run: as it was named.
        record: of the run, if it has one.
        typed: flags of the data, and `seed`, that were given.
        cache_dir: as for training.

    Raises:
        ConfigError: neither says which data, or a value is of the wrong kind.
    """
    recorded = {} if record is None else record["config"]
    data = {name: value for name, value in recorded.items() if name in DataConfig.__dataclass_fields__}
    data |= {name: value for name, value in typed.items() if name != "seed"} | {"streaming": False}
    if not data.get("dataset"):
        raise ConfigError(f"--dataset: name one; {run} does not say on which data it was trained")
    seed = typed.get("seed", recorded.get("seed", RunConfig.seed))
    try:
        settings = RunConfig(seed=seed, cache_dir=cache_dir, eval_only=True)
        return Config(settings, DataConfig(**data), ModelConfig(), AugmentConfig(), RecipeConfig())
    except TypeError as error:
        raise ConfigError(f"{run}: {RECORD} cannot be used: {error}") from error


def load_judging_data(run: str, config: Config, named: bool) -> Splits:
    """The validation split, of which every image can be decoded.

    Args:
        run: as it was named.
        config: of `data_config`.
        named: whether --dataset was given.

    Raises:
        DataError: it cannot be read, or has images that cannot, and --skip_bad_images is off.
    """
    try:
        splits = load_data(config, is_offline(config))
    except DataError as error:
        if named:
            raise
        raise DataError(f"{error}; on it {run} was trained: if it has moved, name it with --dataset") from error
    splits = check_images(splits, config.data.skip_bad_images, config.run.cache_dir)
    for note in splits.notes:
        say(note if note.startswith(WARNING) else f"data: {note}")
    say(f"judged by: {splits.dataset}, {len(splits.validation)} validation images")
    return splits


def model_name(run: str, record: dict[str, Any] | None, revision: str | None) -> str:
    """Which model this is, for the file's metadata: `run b04faa6e6651, update 260`, or its name. No path."""
    folder = Path(files.follow(run)).resolve()
    if record is None:
        return folder.name if folder.exists() else run + (f" at {revision}" if revision else "")
    update = folder.name.removeprefix("checkpoint-")
    if (folder / RECORD).is_file():
        update = _best_update(folder)
    return f"run {record['run_id']}" + (f", update {update}" if update.isdecimal() else "")


def _best_update(folder: Path) -> str:
    try:
        return str(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
