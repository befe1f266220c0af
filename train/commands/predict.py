"""`plainloop predict`: what a trained model takes images for."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from data import files
from train.commands.shared import add_model_flags, check_batch_size, check_out, command_parser, load_model_of
from train.errors import ConfigError, RunError
from train.system.console import data_only, say
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from train.inference.images import ImageFiles
    from train.inference.predict import Row
    from train.inference.tables import Columns

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
        from train.inference.images import ImageFiles, check_named
        from train.inference.predict import predict_files
        from train.inference.tables import Columns

        check_named(values.images)
        check_out(values.out)
        predictor = load_model_of(values)
        columns = Columns(predictor.label_names, min(values.top, len(predictor.label_names)) if values.top else None)
        found = ImageFiles(values.images)
        counted = Counted(predict_files(predictor, found, values.batch_size))
        if not counted.any():
            raise ConfigError(f"{', '.join(values.images[:3])}: holds no image{left_out(found)}")
        write(counted, columns, values.out, stdout)
        if values.out:
            say(f"written: {values.out}, {counted.rows} rows{left_out(found)}")
        elif found.left_out_count:
            say(left_out(found).removeprefix("; "))
    if counted.unusable:
        raise RunError(f"{counted.unusable} of {counted.rows} files could not be used; their rows say why")


def left_out(found: "ImageFiles") -> str:
    """What was not read in the folders."""
    count, first = found.left_out_count, ", ".join(found.left_out)
    return f"; left out, as no images by their names: {count} ({first}{', ...' if count > 3 else ''})" if count else ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; ConfigError for one that is wrong."""
    parser = command_parser("predict", "RUN IMAGE_OR_FOLDER... [--out FILE.csv|.jsonl|.parquet] [--top N]", DESCRIPTION)
    add_model_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="Images, and folders of images.")
    parser.add_argument("--out", metavar="FILE", help="Write here; the ending says what. Default: CSV to the terminal.")
    parser.add_argument("--top", type=int, metavar="N", help="Only the N most probable classes. Default: all.")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="Images at once. Default: 32.")
    values = parser.parse_args(list(arguments))
    if values.top is not None and values.top < 1:
        raise ConfigError(f"--top {values.top}: must be at least 1")
    check_batch_size(values.batch_size)
    if values.out and Path(values.out).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {values.out}: must end in {', '.join(SUFFIXES)}")
    return values


def write(rows: Iterable["Row"], columns: "Columns", out: str | None, stdout: TextIO) -> None:
    """Write all rows in the form that `out` asks for, or as CSV to standard output.

    Raises:
        RunError: they cannot be written; a file that was there before is left as it was.
    """
    from train.inference.tables import WRITERS, suffix_of

    try:
        with files.replacing(Path(out)) if out else nullcontext(Standard(stdout)) as file:
            WRITERS[suffix_of(out)](rows, columns, file)
    except OSError as error:
        raise RunError(f"{out or 'standard output'}: cannot be written: {error.strerror or error}") from error


class Counted:
    """Rows, counted as they pass."""

    def __init__(self, rows: Iterator["Row"]) -> None:
        """Nothing has passed yet."""
        self._source, self.rows, self.unusable = rows, 0, 0

    def any(self) -> bool:
        """Whether there is a row; none is lost."""
        first = list(islice(self._source, 1))
        self._source = chain(first, self._source)
        return bool(first)

    def __iter__(self) -> Iterator["Row"]:
        """Yield each row."""
        for row in self._source:
            self.rows += 1
            self.unusable += bool(row.error)
            yield row


class Standard:
    """Standard output for bytes of UTF-8; ends the command once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        """Of the stream that `data_only` gives."""
        self._stream = stream

    def write(self, data: bytes) -> int:
        """Write at once, so that whoever reads sees each row as it is known."""
        self._stream.write(data.decode())
        self._stream.flush()
        if failure := getattr(self._stream, "failure", None):
            raise failure
        return len(data)
