"""What the commands that use a trained model share: their flags, and how the model is loaded."""

import argparse
import os
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data import files
from train.config.cli import recorded
from train.config.flags import Parser, add_flag
from train.config.record import RECORD, check_trained, read_record
from train.config.schema import FLAGS, DataConfig, RunConfig
from train.distributed.env import world_size
from train.errors import ConfigError
from train.system import hub

if TYPE_CHECKING:
    from data.reading.splits import Splits
    from train.inference.predictor import Predictor

DATA_FLAGS = (
    *("dataset", "train_dir", "validation_dir", "test_dir", "dataset_config_name", "image_column_name"),
    *("label_column_name", "train_val_split", "split_seed", "max_eval_samples", "skip_bad_images"),
)
MOST_AT_ONCE = 4096  # images of one batch
RUN_HELP = "Folder of a finished run or of a checkpoint, or the name of a model on the Hub."


def command_parser(name: str, usage: str, description: str) -> Parser:
    """The parser of a command, with --debug.

    Args:
        name: of the command.
        usage: what follows the name.
        description: for --help.
    """
    parser = Parser(
        prog=f"plainloop {name}",
        usage=f"plainloop {name} {usage}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def add_model_flags(parser: Parser) -> None:
    """RUN, and how its model is loaded and computed."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--model_revision", metavar="TEXT", help=FLAGS["model_revision"].metadata["help"])
    parser.add_argument("--cache_dir", metavar="TEXT", help=FLAGS["cache_dir"].metadata["help"])
    parser.add_argument("--device", default="auto", metavar="TEXT", help=FLAGS["device"].metadata["help"])
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "fp64"),
        default="auto",
        help="Default: what training on this device would choose.",
    )


def add_data_flags(parser: Parser, text: str) -> None:
    """Which images a model is judged on, as training names and reads them.

    Args:
        parser: of the command.
        text: what --dataset is for here.
    """
    for item in fields(DataConfig):
        if item.name in DATA_FLAGS:
            add_flag(parser, DataConfig, item, text if item.name == "dataset" else None)
    seed = next(item for item in fields(RunConfig) if item.name == "seed")
    add_flag(parser, RunConfig, seed, "Draws what is held out where --split_seed does not.")
    parser.set_defaults(**dict.fromkeys((*DATA_FLAGS, "seed")))  # what is not given is the run's


def data_of(values: argparse.Namespace) -> tuple[DataConfig, int]:
    """The data flags and the seed: those of the run, with what was typed; of another data set, only what was typed.

    Raises:
        ConfigError: no data set is named, and RUN is no run that names one; or its record is damaged.
    """
    typed = {name: value for name in (*DATA_FLAGS, "seed") if (value := getattr(values, name)) is not None}
    record = record_of(values.run)
    if record is None and values.dataset is None:
        raise ConfigError(f"--dataset: name one; {values.run} does not say on which data it was trained")
    config = recorded(record) if record is not None and _is_from_flags(record) else None
    if config is not None and values.dataset in (None, config.data.dataset):  # with what it held out, and how
        seed = typed.pop("seed", config.run.seed)
        return replace(config.data, **typed, streaming=False), seed
    seed = typed.pop("seed", FLAGS["seed"].default)
    return DataConfig(**typed), seed


def _is_from_flags(record: Path) -> bool:
    """Whether flags started the run, and not a program, which brought data of its own."""
    return bool(read_record(record)["config"].get("dataset"))


def record_of(run: str) -> Path | None:
    """The record of a run, by its folder or that of one of its checkpoints; None where there is none."""
    folder = Path(files.follow(run)).resolve()
    places = (folder, folder.parent) if folder.is_dir() else ()  # of a name on the Hub, there is no folder
    return next((at / RECORD for at in places if (at / RECORD).is_file()), None)


def load_split_of(values: argparse.Namespace, data: DataConfig, seed: int, *names: str) -> "Splits":
    """The first of the splits `names` that the data set has, as `validation`.

    Raises:
        DataError: it cannot be read; of the run's own data, with what to do if they have moved.
    """
    from data import DataError
    from train.setup.evaluation import load_evaluation_split

    try:
        return load_evaluation_split(data, seed, names, values.cache_dir, hub.is_offline(data.dataset))
    except DataError as error:
        if values.dataset is not None:
            raise
        raise DataError(f"{error}; {values.run} was trained on it: if it has moved, name it with --dataset") from error


def load_model_of(values: argparse.Namespace, data_classes: Sequence[str] = ()) -> "Predictor":
    """The model that the flags of `add_model_flags` name. Says what it is and what it is computed on.

    Args:
        values: the flags.
        data_classes: of the data, which the model must have; they become its first ones.

    Raises:
        ConfigError, ModelError: it cannot be used.
    """
    if world_size() > 1:
        raise ConfigError("this command works in one process; leave torchrun out")
    if values.cache_dir:
        hub.move_caches(values.cache_dir)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from train.inference.predictor import load_predictor
    from train.precision import choose_compute
    from train.system.console import say

    check_trained(values.run)
    offline = hub.is_offline(values.run)
    precision = choose_compute(RunConfig(device=values.device, precision=values.precision))
    where = {"revision": values.model_revision, "cache_dir": values.cache_dir, "offline": offline}
    predictor = load_predictor(values.run, precision, data_classes, **where)
    size = predictor.model.preprocessing
    say(f"model: {values.run}, {len(predictor.label_names)} classes, {size.height} x {size.width} pixels")
    return predictor


def check_batch_size(size: int) -> None:
    """Refuse what is no number of images that fits in memory; ConfigError."""
    if not 1 <= size <= MOST_AT_ONCE:
        raise ConfigError(f"--batch_size {size}: must be from 1 to {MOST_AT_ONCE}")


def check_out(out: str | None, flag: str = "--out") -> None:
    """Refuse, before anything slow happens, a file that cannot be written.

    Raises:
        ConfigError: it is a folder, or the folder it is to lie in is missing or may not be written in.
    """
    if out is None:
        return
    path = Path(files.follow(out))
    if path.is_dir():
        raise ConfigError(f"{flag} {out}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{flag} {out}: is no ordinary file")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {out}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{flag} {out}: may not be written")
