"""Predictions as CSV, JSON lines or parquet, written row by row."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from train.inference.predict import Row
from train.inference.predictor import ranked
from train.recipes.predictions import spreadsheet_safe

ROW_GROUP = 10_000  # rows of a parquet file that are held in memory


@dataclass(frozen=True)
class Columns:
    """What is written of each image: the probability of every class, or those of the `top` most probable ones."""

    label_names: list[str]
    top: int | None = None

    @property
    def names(self) -> list[str]:
        """Of a flat table: path, label, probability, then the classes, then why a file could not be used."""
        if self.top is None:
            classes = [f"probability/{name}" for name in self.label_names]
        else:
            classes = [f"{kind}_{place}" for place in range(2, self.top + 1) for kind in ("label", "probability")]
        return ["path", "label", "probability", *classes, "error"]

    def flat(self, row: Row) -> list[Any]:
        """The values of `names`; None where there is none."""
        if row.probabilities is None:
            return [row.path, *[None] * (len(self.names) - 2), row.error]
        best = ranked(row.probabilities, self.label_names, self.top or 1)
        first = [row.path, *best[0]]
        if self.top is None:
            return [*first, *row.probabilities.tolist(), None]
        return [*first, *(value for pair in best[1:] for value in pair), None]

    def nested(self, row: Row) -> dict[str, Any]:
        """One JSON object: the probabilities by class, the most probable first."""
        if row.probabilities is None:
            return {"path": row.path, "error": row.error}
        best = ranked(row.probabilities, self.label_names, self.top)
        return {"path": row.path, "label": best[0][0], "probabilities": dict(best)}


def write_csv(rows: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """A header and one line for each row. What a spreadsheet would compute has a `'` before it."""
    table = csv.writer(_Utf8(file), lineterminator="\n")
    table.writerow([spreadsheet_safe(name) for name in columns.names])
    for row in rows:
        values = columns.flat(row._replace(path=as_utf8(row.path)))
        cells = (spreadsheet_safe(value) if isinstance(value, str) else value for value in values)
        table.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])


def write_jsonl(rows: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """One JSON object a line, numbers to the last digit."""
    for row in rows:
        shown = columns.nested(row._replace(path=as_utf8(row.path), error=as_utf8(row.error)))
        file.write(json.dumps(shown).encode() + b"\n")


def write_parquet(rows: Iterable[Row], columns: Columns, file: BinaryIO) -> None:
    """The columns of the CSV file, numbers as float64."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    texts = ("path", "label", "error")
    kinds = [pyarrow.string() if name.split("_")[0] in texts else pyarrow.float64() for name in columns.names]
    schema = pyarrow.schema(list(zip(columns.names, kinds, strict=True)))
    with ParquetWriter(file, schema) as table:
        for group in _groups(rows):
            values = zip(*(columns.flat(row._replace(path=as_utf8(row.path))) for row in group), strict=True)
            arrays = [pyarrow.array(column, kind) for column, kind in zip(values, kinds, strict=True)]
            table.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


Writer = Callable[[Iterable[Row], Columns, BinaryIO], None]
WRITERS: dict[str, Writer] = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


def as_utf8(text: str) -> str:
    """A file's name as text; bytes of it that are not UTF-8 are shown as `\\xff`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while group := list(islice(rows, ROW_GROUP)):
        yield group


@dataclass(frozen=True)
class _Utf8:
    """A text file over a binary one, which the csv module asks for; unlike TextIOWrapper, it does not close it."""

    file: BinaryIO

    def write(self, text: str) -> int:
        return self.file.write(text.encode())


def suffix_of(out: str | None) -> str:
    """Which of WRITERS a name asks for; CSV for standard output."""
    return Path(out).suffix.lower() if out else ".csv"
