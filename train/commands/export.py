"""`plainloop export`: a model as one file that takes decoded images of any size, checked before it is kept."""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data import files
from train.commands.shared import (
    RUN_HELP,
    add_data_flags,
    check_out,
    command_parser,
    data_of,
    load_model_of,
    load_split_of,
    record_of,
)
from train.config.flags import add_flag
from train.config.record import RECORD, check_trained
from train.config.schema import DataConfig, ModelConfig, RunConfig
from train.errors import ConfigError, RunError
from train.export.tolerances import OF_A_PROBABILITY, OF_ACCURACY
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from data.reading.splits import Splits

DESCRIPTION = """The file takes an upright RGB image, uint8 [height, width, 3] of any size, and returns the probability
of each class: it resizes, crops and normalises as training did. The names of the classes are in its metadata. It is
judged by the validation images of the run before it is kept; a file that is refused is deleted, and leaves an earlier
one as it was. All is computed on the CPU, in float32."""
NAMES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "torch_export": "model.pt2"}
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_ON = "Data set whose validation images check the file. Default: the run's own, read as the run read it."


def main(arguments: list[str]) -> int:
    """Export, and return the exit code: 1 if the file was refused, 2 for what cannot be used."""
    return ended(arguments, lambda signals: run(arguments, signals))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; ConfigError for one that is wrong or missing. Of the data, only those that were given."""
    usage = "RUN [--format onnx|torch_export|int8] [--out FILE] [--dataset X] [--flag value ...]"
    parser = command_parser("export", usage, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--format",
        choices=tuple(NAMES),
        default="onnx",
        help="onnx: for onnxruntime. int8: the same with 8-bit weights, smaller and faster, and less exact."
        " torch_export: a program for torch.export.load. Default: onnx.",
    )
    parser.add_argument("--out", metavar="FILE", help=f"Default: {', '.join(NAMES.values())} in the run's folder.")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help=f"Of onnx and torch_export: the largest difference of a probability. Default: {OF_A_PROBABILITY}. Of int8:"
        f" the largest loss of accuracy. Default: {OF_ACCURACY} ({100 * OF_ACCURACY:g} percentage points).",
    )
    for section, name in ((ModelConfig, "model_revision"), (RunConfig, "cache_dir")):
        add_flag(parser, section, next(item for item in fields(section) if item.name == name))
    add_data_flags(parser, CHECKED_ON)
    parser.set_defaults(device="cpu", precision="fp32")  # the model is computed as the file will be
    values = parser.parse_args(list(arguments))
    if values.tolerance is None:
        values.tolerance = OF_ACCURACY if values.format == "int8" else OF_A_PROBABILITY
    if not 0 <= values.tolerance <= 1:
        raise ConfigError(f"--tolerance {values.tolerance}: must lie between 0 and 1")
    return values


def run(arguments: Sequence[str], _: Signals) -> None:
    """Make the file, judge it, and keep it if it passes."""
    values = parse(arguments)
    check_libraries(values.format)
    check_trained(values.run)
    target = target_of(values)
    data, seed = data_of(values)
    predictor = load_model_of(values)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from train.export.check import views
    from train.export.formats import description
    from train.export.make import MAKERS
    from train.export.model_name import model_name
    from train.system.console import say

    splits, names = load_validation(values, data, seed), predictor.label_names
    record = record_of(values.run)
    about = description(names, model_name(values.run, record, values.model_revision))
    made = files.beside(target)
    try:
        images = partial(views, splits, names)
        MAKERS[values.format](predictor, made, about, images, values.tolerance)
        size = made.stat().st_size
        files.flush(made)
        files.rename(made, target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        made.unlink(missing_ok=True)
    say(f"written: {target}, {size / 1e6:.1f} MB, with the names of the classes in its metadata")


def load_validation(values: argparse.Namespace, data: DataConfig, seed: int) -> "Splits":
    """The validation split, of which every image can be decoded; with --skip_bad_images, those that can."""
    from data.cache.check import check_images
    from train.system.console import say

    splits = load_split_of(values, data, seed, "validation")
    known = len(splits.notes)
    splits = check_images(splits, data.skip_bad_images, values.cache_dir)
    for note in splits.notes[known:]:
        say(f"data: {note}")
    say(f"checked on: {splits.dataset}, {len(splits.validation)} validation images")
    return splits


def check_libraries(format_: str) -> None:
    """Refuse what needs libraries that are not there; nothing is imported."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing and format_ != "torch_export":
        raise ConfigError(f'plainloop export needs {", ".join(missing)}: pip install -e ".[export]"')


def target_of(values: argparse.Namespace) -> Path:
    """The file to write; ConfigError where it has no name, or cannot be written."""
    folder = Path(files.follow(values.run))
    if values.out is None and not (folder / RECORD).is_file():
        raise ConfigError(f"--out: name the file to write; {values.run} is not the folder of a run, where it would go")
    target = Path(values.out) if values.out is not None else folder / NAMES[values.format]
    check_out(str(target))
    return target
