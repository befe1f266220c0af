"""The folder of a run: naming it, refusing another run's, finding the one to resume."""

import fcntl
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Self

import yaml

from train import ConfigError, fs
from train.config import FLAGS, OF_THE_START

RECORD = "run.json"  # written whole at the start of a run: its id, every flag, and what was decided by itself
CONFIG = "config.yaml"  # the recipe alone, for people, and to give back to the command line


def find_run(output_dir: str | None, resume: str | None, dataset: str | None) -> Path | None:
    """The record of the run to resume; None if there is none yet, or none is to be resumed."""
    if resume is None:
        return None
    if resume != "auto":
        checkpoint = Path(resume)
        if not checkpoint.is_dir():
            raise ConfigError(f"--resume_from_checkpoint {resume}: there is no such folder; auto finds the newest")
        run = checkpoint.resolve().parent
        if not (run / RECORD).is_file():
            raise ConfigError(f"--resume_from_checkpoint {resume}: {run} holds no {RECORD}; not a run's checkpoint")
        if output_dir is not None and Path(output_dir).resolve() != run:
            raise ConfigError(
                f"--resume_from_checkpoint {resume}: belongs to the run in {run}, not to --output_dir {output_dir};"
                " to start a new run from its weights, give it as --model"
            )
        return (checkpoint.parent if checkpoint.parent != Path() else Path()) / RECORD
    if output_dir is not None:
        record = Path(output_dir) / RECORD
        return record if record.is_file() else None
    runs = [folder / RECORD for folder in Path("runs").glob(f"{_stem(dataset) if dataset else ''}*")]
    return max((run for run in runs if run.is_file()), key=lambda run: run.stat().st_mtime_ns, default=None)


def check_output_dir(output_dir: str | None, resuming: bool) -> None:
    """Refuse, before anything slow happens, a folder that is not this run's to write in.

    Raises:
        ConfigError: it is a file, holds another run, or holds anything else.
    """
    if output_dir is None or not Path(output_dir).exists():
        return
    folder = Path(output_dir)
    if not folder.is_dir():
        raise ConfigError(f"--output_dir {output_dir}: is a file, not a folder")
    if not resuming and any(not path.name.startswith(fs.TEMPORARY) for path in _listed(folder)):
        holds = "holds another run" if (folder / RECORD).is_file() else "is not empty"
        raise ConfigError(
            f"--output_dir {output_dir}: {holds}; name a new folder, or continue the run in it with"
            " --resume_from_checkpoint auto"
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be read: {error.strerror}") from error


def make_run_dir(output_dir: str | None, dataset: str) -> Path:
    """Create the folder of a run, by default a dated one in runs/.

    Raises:
        ConfigError: it cannot be made or written in.
    """
    try:
        if output_dir is None:
            return _make_dated(Path("runs") / f"{_stem(dataset)}-{time.strftime('%Y%m%d-%H%M%S')}")
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {output_dir or 'runs'}: cannot be made: {error.strerror}") from error
    return Path(output_dir)


class Lock:
    """One writer per run folder, for the length of a `with` block; the kernel lets go of it when the process dies."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Self:
        """Nothing is locked until `take`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of all."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def __contains__(self, folder: Path) -> bool:
        """Whether this lock has the folder."""
        return folder.resolve() in self._descriptors

    def take(self, folder: Path) -> None:
        """Lock a folder, unless this lock has it already.

        Raises:
            ConfigError: another process writes in it.
        """
        if folder in self:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"--output_dir {folder}: another process is writing in it; wait, or name another"
            ) from error
        self._descriptors[folder.resolve()] = descriptor


def is_run(output_dir: str | None) -> bool:
    """Whether the folder holds a run."""
    return output_dir is not None and (Path(output_dir) / RECORD).is_file()


def open_run(output_dir: str | None, flags: dict[str, Any], decided: dict[str, Any], lock: Lock) -> tuple[Path, str]:
    """The folder of a run and the run's id: as recorded there if it is being resumed, else new.

    Raises:
        ConfigError: the folder cannot be made or written in, or another process has just taken it.
    """
    if is_run(output_dir) and Path(output_dir) in lock:
        folder = Path(output_dir)
        fs.remove_leftovers(folder)
        run_id = read_record(folder / RECORD)["run_id"]
        _write_record(folder, run_id, flags, decided)  # with what was changed, as far as a resume may change it
        return folder, run_id
    folder, run_id = make_run_dir(output_dir, flags["dataset"]), uuid.uuid4().hex[:12]
    lock.take(folder)
    check_output_dir(str(folder), resuming=False)  # again: another run may have begun since the first look
    fs.remove_leftovers(folder)
    _write_record(folder, run_id, flags, decided)
    return folder, run_id


def _write_record(folder: Path, run_id: str, flags: dict[str, Any], decided: dict[str, Any]) -> None:
    try:
        fs.write_text(folder / RECORD, json.dumps({"run_id": run_id, "config": flags, **decided}, indent=2) + "\n")
        again = {name: value for name, value in flags.items() if name not in OF_THE_START and value is not None}
        fs.write_text(folder / CONFIG, yaml.safe_dump(again, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written in: {error.strerror}") from error


def read_record(record: Path) -> dict[str, Any]:
    """The content of a run.json.

    Raises:
        ConfigError: it is none.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        flags = content["config"]
        if (
            not isinstance(content["total_updates"], int)
            or not isinstance(content["run_id"], str)
            or not isinstance(flags, dict)
            or flags.keys() - FLAGS.keys()
        ):
            raise ValueError("it lacks what a run of this program writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record}: cannot be used: {' '.join(str(error).split())}") from error
    return content


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


def _stem(dataset: str) -> str:
    """`AI-Lab-Makerere/beans` -> `beans`, `builtin:leaves` -> `leaves`, `../shared/beans/` -> `beans`."""
    return dataset.removeprefix("builtin:").rstrip("/").split("/")[-1].removesuffix(".parquet") or "run"
