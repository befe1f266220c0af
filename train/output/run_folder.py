"""The folder of a run: naming and opening it."""

import time
import uuid
from pathlib import Path
from typing import Any

from data import files
from train.config.record import RECORD, check_output_dir, dated_stem, is_run, read_record, write_record
from train.errors import ConfigError
from train.recipes.predictions import PREDICTIONS
from train.system.console import say
from train.system.lock import Lock


def make_run_dir(output_dir: str | None, dataset: str) -> Path:
    """Create the folder of a run, by default a dated one in runs/.

    Raises:
        ConfigError: it cannot be created or written in.
    """
    try:
        if output_dir is None:
            return _make_dated(Path("runs") / f"{dated_stem(dataset)}-{time.strftime('%Y%m%d-%H%M%S')}")
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {output_dir or 'runs'}: cannot be created: {error.strerror}") from error
    return Path(output_dir)


def open_run(output_dir: str | None, flags: dict[str, Any], decided: dict[str, Any], lock: Lock) -> tuple[Path, str]:
    """The folder of a run and the run's id: as recorded there if the run is being resumed, else new.

    Raises:
        ConfigError: the folder cannot be created or written in, or another process has just taken it.
    """
    if is_run(output_dir) and Path(output_dir) in lock:
        folder = Path(output_dir)
        files.remove_leftovers(folder)
        run_id = read_record(folder / RECORD)["run_id"]
        (folder / PREDICTIONS).unlink(missing_ok=True)  # not finished any more
        write_record(folder, run_id, flags, decided)  # a resume may have changed some flags
        _warn(folder)
        return folder, run_id
    folder, run_id = make_run_dir(output_dir, flags["dataset"] or "run"), uuid.uuid4().hex[:12]
    lock.take(folder)
    check_output_dir(str(folder), resuming=False)  # again: another run may have started since the first check
    files.remove_leftovers(folder)
    write_record(folder, run_id, flags, decided)
    _warn(folder)
    return folder, run_id


def _warn(folder: Path) -> None:
    for line in files.lost_promises(folder):
        say(f"warning: {line}")


def _make_dated(wanted: Path) -> Path:
    """Two runs may start in the same second: the second takes another name."""
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
