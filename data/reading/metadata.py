"""A table beside the images, metadata.csv or metadata.jsonl: file name -> class, as text, as it is written.

Read with `csv` and `json`: pandas would guess types, and make `001` a 1 and `None` a hole.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from data import DataError, shortened
from data.reading.columns import LABEL_NAMES
from data.reading.names import composed

INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
Rows = list[tuple[str, str]]  # file name, class


def read_table(table: Path, name: str, image_column: str | None, label_column: str | None, notes: list[str]) -> Rows:
    """(file name, class) in the table's order.

    Args:
        table: the file.
        name: what to call it in messages.
        image_column: `file_name`, or the one named.
        label_column: one of the usual names, or the one named.
        notes: gets what was decided.

    Raises:
        DataError: it cannot be read, lacks a column or values, or names files outside its folder.
    """
    text = _decoded(table.read_bytes(), name)
    if name.endswith(".csv"):
        columns, rows = _csv_rows(text, name, notes)
    else:
        columns, rows = _json_rows(text, name)
    files = _column(
        columns, image_column, ("file_name", *(c for c in columns if c.endswith("_file_name"))), name, "image"
    )
    labels = _column(columns, label_column, LABEL_NAMES, name, "label")
    _refuse_missing(rows, files, files, name)
    _refuse_missing(rows, files, labels, name)
    if all(INTEGER.fullmatch(row[labels] or "") for row in rows) and any(row[labels] == "-1" for row in rows):
        _refuse_missing([row | {labels: None} if row[labels] == "-1" else row for row in rows], files, labels, name)
    if not rows:
        raise DataError(f"{name}: has a first line with the columns, and no rows")
    return [(_relative(row[files], name), row[labels]) for row in rows]


def in_order(names: Iterable[str]) -> list[str]:
    """Class names sorted: by number where all are plain integers, else as text."""
    names = sorted(set(names))
    return sorted(names, key=int) if all(map(INTEGER.fullmatch, names)) else names


def match(rows: Rows, files: Iterable[str], name: str, notes: list[str]) -> Rows:
    """The rows with the files' names as they are on disk, where an accent may be stored otherwise than in the table.

    Raises:
        DataError: the table names files that are not there, or one file with two labels.
    """
    present = set(files)
    by_form = {composed(file): file for file in present}
    found = [(file if file in present else by_form.get(composed(file)), file) for file, _ in rows]
    if missing := [file for path, file in found if path is None]:
        raise DataError(f"{name}: {len(missing)} of {len(rows)} files are not there: {shortened(missing, 3)}")
    return _unique([(path, label) for (path, _), (_, label) in zip(found, rows, strict=True)], name, notes)


def _decoded(data: bytes, name: str) -> str:
    encoding = next((found for mark, found in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{name}: holds zero bytes, as UTF-16 without a byte order mark does; save it as UTF-8")
    return text


def _csv_rows(text: str, name: str, notes: list[str]) -> tuple[list[str], list[dict]]:
    text = text if "\n" in text else text.replace("\r", "\n")  # lines as old Macs end them
    if text[:4].lower() == "sep=":  # Excel's hint, which the header tells as well
        text = text.partition("\n")[2]
    header = text.partition("\n")[0]
    counts = {mark: next(csv.reader([header], delimiter=mark), []) for mark in ",;\t"}
    mark = max(counts, key=lambda one: len(counts[one]))
    if mark != ",":
        notes.append(f"{_short(name)}: columns are separated by {'a tab' if mark == chr(9) else mark}")
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True) if line]
    except csv.Error as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    if not lines:
        raise DataError(f"{name}: is empty")
    columns = [column.strip() for column in lines[0]]
    if len(set(columns)) != len(columns):
        raise DataError(f"{name}: two columns have the same name: {', '.join(columns)}")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise DataError(f"{name}: row {number} has {len(line)} values for {len(columns)} columns")
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def _json_rows(text: str, name: str) -> tuple[list[str], list[dict]]:
    rows: list[dict] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            # Numbers as they are written; NaN is no value.
            row = json.loads(
                line, object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=lambda _: None
            )
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}: line {number} is not an object with columns")
        rows.append({key: json.dumps(value) if isinstance(value, bool) else value for key, value in row.items()})
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _once(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON; ValueError if it has a key twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)}")
    return dict(pairs)


def _column(columns: list[str], named: str | None, usual: Iterable[str], name: str, kind: str) -> str:
    found = [column for column in usual if column in columns] if named is None else [named]
    if named == "image" and named not in columns:  # what `datasets` calls the images of file_name
        found = ["file_name"]
    if kind == "image" and "file_name" not in found and len(found) > 1:
        raise DataError(f"{name}: {', '.join(found)} could all be the image; name one with --image_column_name")
    if not found or found[0] not in columns:
        raise DataError(
            f"{name}: {f'no column {named}' if named else f'no column seems to be the {kind}'};"
            f" name one with --{kind}_column_name; it has {', '.join(columns)}"
        )
    return found[0]


def _refuse_missing(rows: list[dict], files: str, column: str, name: str) -> None:
    missing = [row for row in rows if row.get(column) in (None, "")]
    if missing:
        which = shortened([str(row.get(files) or "?") for row in missing], 3)
        raise DataError(f"{name}: {len(missing)} of {len(rows)} rows have no value in '{column}': {which}")
    if wrong := [row for row in rows if not isinstance(row[column], str)]:
        raise DataError(f"{name}: '{column}' holds {wrong[0][column]!r}, which is not text or a number")


def _relative(file: str, name: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or PureWindowsPath(file).drive or "://" in file:
        raise DataError(f"{name}: file_name {file} is absolute; write it relative to the table's folder")
    if ".." in path.parts:
        raise DataError(f"{name}: file_name {file} leaves the table's folder; write it relative to that, without ..")
    return str(path)


def _short(name: str) -> str:
    """The table's own path, of a name that begins with --dataset."""
    return name.rpartition(": ")[2]


def _unique(rows: Rows, name: str, notes: list[str]) -> Rows:
    """Each file once."""
    labels: dict[str, str] = {}
    for file, label in rows:
        if labels.setdefault(file, label) != label:
            raise DataError(f"{name}: {file} is listed as {labels[file]} and as {label}")
    if len(labels) < len(rows):
        notes.append(f"{_short(name)}: {len(rows) - len(labels)} rows repeat a file, which counts once")
    return list(labels.items())
