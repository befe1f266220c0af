"""`plainloop predict`: what a trained model takes images for."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data import files
from train.commands.shared import add_model_flags, check_out, command_parser, load_model_of
from train.errors import ConfigError, RunError
from train.system.console import data_only, say
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from train.inference.predict import Row
    from train.inference.tables import Shape

SUFFIXES = (".csv", ".jsonl", ".parquet")
DESCRIPTION = """One row for each image: path, label, probability of each class. Folders are searched for images. A file
that cannot be used is a row with the reason, and then the exit code is 1. Only rows go to standard output."""


def main(arguments: list[str]) -> int:
    """Predict, and return the exit code: 1 if a file could not be used, 2 if nothing was begun."""
    return ended(arguments, lambda signals: run(arguments, signals))


def run(arguments: Sequence[str], _: Signals) -> None:
    """Check the flags, load the model, and write the rows as they come."""
    values = parse(arguments)
    with data_only() as stdout:
        # Imported only now: these take seconds, and a mistyped flag should not.
        from train.inference.images import Found, check_named
        from train.inference.predict import predict_files
        from train.inference.tables import Shape

        check_named(values.images)
        check_out(values.out)
        predictor = load_model_of(values)
        shape = Shape(predictor.label_names, min(values.top, len(predictor.label_names)) if values.top else None)
        found = Found(values.images)
        counted = Counted(predict_files(predictor, found, values.batch_size))
        if values.out is None:
            write(counted, shape, None, Standard(stdout))
        else:
            with files.replacing(Path(values.out)) as file:
                write(counted, shape, values.out, file)
        if found.left_out_count:
            say(
                f"left out: {found.left_out_count} files that are no images by their names: {', '.join(found.left_out)}"
            )
        if not counted.rows:
            raise ConfigError(f"{', '.join(values.images[:3])}: holds no image")
        if values.out:
            say(f"written: {values.out}, {counted.rows} rows")
        if counted.unusable:
            raise RunError(f"{counted.unusable} of {counted.rows} files could not be used; their rows say why")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; ConfigError for one that is wrong."""
    parser = command_parser("predict", "RUN IMAGE_OR_FOLDER... [--out FILE.csv|.jsonl|.parquet] [--top N]", DESCRIPTION)
    add_model_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="Images, and folders of images.")
    parser.add_argument("--out", metavar="FILE", help="Write here; the ending says what. Default: CSV to the terminal.")
    parser.add_argument("--top", type=int, metavar="N", help="Only the N most probable classes. Default: all.")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="Images at once. Default: 32.")
    values = parser.parse_args(list(arguments))
    for name in ("top", "batch_size"):
        if (value := getattr(values, name)) is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if values.out and Path(values.out).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {values.out}: must end in {', '.join(SUFFIXES)}")
    return values


def write(rows: Iterable["Row"], shape: "Shape", out: str | None, file: BinaryIO) -> None:
    """Write all rows in the form that `out` asks for.

    Raises:
        RunError: they cannot be written.
    """
    from train.inference.tables import WRITERS, suffix_of

    try:
        WRITERS[suffix_of(out)](rows, shape, file)
    except OSError as error:
        raise RunError(f"{out or 'standard output'}: cannot be written: {error.strerror or error}") from error


class Counted:
    """Rows, counted as they pass."""

    def __init__(self, rows: Iterator["Row"]) -> None:
        """Nothing has passed yet."""
        self._source, self.rows, self.unusable = rows, 0, 0

    def __iter__(self) -> Iterator["Row"]:
        """Yield each row."""
        for row in self._source:
            self.rows += 1
            self.unusable += bool(row.error)
            yield row


class Standard:
    """Standard output for bytes of UTF-8; ends the command once nobody reads it any more."""

    def __init__(self, stream: object) -> None:
        """Of the stream that `data_only` gives."""
        self._stream = stream

    def write(self, data: bytes) -> int:
        """Write at once, so that whoever reads sees each row as it is known."""
        self._stream.write(data.decode())
        self._stream.flush()
        if failure := getattr(self._stream, "failure", None):
            raise failure
        return len(data)
