"""The record of a run: the flags it was started with, and where to find it again."""

import glob
import json
import re
from pathlib import Path
from typing import Any

import yaml

from data import files, shortened
from train.config.schema import FLAGS, OF_THE_START
from train.errors import ConfigError

RECORD = "run.json"  # written at the start of a run: its id, every flag, and what was decided automatically
CONFIG = "config.yaml"  # the flags alone, for people, and to start the same run again
TEMPERATURE_FILE = "temperature.json"  # what the head was divided by after the run, and on what that was fitted
LOG = "metrics.jsonl"  # one line for each record of training and each evaluation


def find_run(output_dir: str | None, resume: str | None, dataset: str | None) -> Path | None:
    """The record of the run to resume; None if it does not exist yet, or nothing is to be resumed."""
    if resume is None:
        return None
    if resume != "auto":
        checkpoint = Path(files.follow(resume))
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
    stems = (
        {dated_stem(dataset), dataset_stem(dataset)} if dataset else set()
    )  # an earlier version named runs by the latter
    patterns = [f"{glob.escape(stem)}-[0-9]*" for stem in stems] or ["*"]
    runs = [folder / RECORD for pattern in patterns for folder in Path("runs").glob(pattern)]
    return max((run for run in runs if run.is_file()), key=lambda run: run.stat().st_mtime_ns, default=None)


def check_output_dir(output_dir: str | None, resuming: bool) -> None:
    """Refuse an output folder that belongs to something else, before anything slow happens.

    Raises:
        ConfigError: it is a file, holds another run, or holds anything else.
    """
    if output_dir == "":
        raise ConfigError("--output_dir: is empty; name a folder")
    if output_dir is None or not Path(output_dir).exists():
        return
    folder = Path(output_dir)
    if not folder.is_dir():
        raise ConfigError(f"--output_dir {output_dir}: is a file, not a folder")
    if not resuming and any(not path.name.startswith((files.TEMPORARY, files.LOCK)) for path in _listed(folder)):
        if not (folder / RECORD).is_file():
            raise ConfigError(f"--output_dir {output_dir}: is not empty, and holds no run; name a new folder")
        raise ConfigError(
            f"--output_dir {output_dir}: holds another run; name a new folder, or continue the run in it with"
            " --resume_from_checkpoint auto"
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be read: {error.strerror}") from error


def is_run(output_dir: str | None) -> bool:
    """Whether the folder holds a run."""
    return output_dir is not None and (Path(output_dir) / RECORD).is_file()


def check_trained(model: str) -> None:
    """Refuse what holds no trained model, before anything slow is imported or loaded.

    Raises:
        ConfigError: says what to name instead.
    """
    if model.startswith("builtin:"):
        raise ConfigError(f"{model}: has no trained weights; name the folder of a run")
    if not model:
        raise ConfigError("RUN: is empty; name the folder of a run")
    folder = Path(files.follow(model))
    if folder.is_file():
        raise ConfigError(f"{model}: is a file; name the folder of a run")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") > 1):  # no name on the Hub either
        raise ConfigError(f"{model}: there is no such folder")
    if not folder.is_dir() or (folder / "config.json").exists():
        return
    if (folder / RECORD).is_file():
        best = folder / "best"
        other = f"{best} is the best model so far" if best.exists() else "it has no checkpoint either"
        raise ConfigError(f"{model}: this run is not finished and has no model yet; {other}")
    if runs := sorted(str(path.parent) for path in folder.glob(f"*/{RECORD}")):
        raise ConfigError(f"{model}: holds several runs; name one of them: {shortened(runs, 3)}")
    raise ConfigError(f"{model}: holds no model (config.json); name the folder of a run")


def write_record(folder: Path, run_id: str, flags: dict[str, Any], decided: dict[str, Any]) -> None:
    """Write `run.json` and `config.yaml`; ConfigError if the folder cannot be written in."""
    try:
        files.write_text(folder / RECORD, json.dumps({"run_id": run_id, "config": flags, **decided}, indent=2) + "\n")
        if flags["dataset"] is None:  # data and model came from Python: the flags alone would start another run
            return
        again = {name: value for name, value in flags.items() if name not in OF_THE_START and value is not None}
        files.write_text(folder / CONFIG, yaml.safe_dump(again, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written in: {error.strerror}") from error


def read_record(record: Path) -> dict[str, Any]:
    """The content of a run.json.

    Raises:
        ConfigError: it cannot be read, or is not such a record.
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{record}: cannot be used: {' '.join(str(error).split())}") from error
    return content


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every record of metrics.jsonl, in order. A last line that a killed run left unfinished is not one.

    Raises:
        ConfigError: it cannot be read, or a line is no record.
    """
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(record, dict) and isinstance(record.get("step"), int) for record in found):
            raise ValueError("a line is no record of an update")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / LOG}: cannot be used: {' '.join(str(error).split())}") from error
    return found


def dataset_stem(dataset: str) -> str:
    """`AI-Lab-Makerere/beans` -> `beans`, `builtin:leaves` -> `leaves`, `../shared/beans/` -> `beans`."""
    return dataset.removeprefix("builtin:").rstrip("/").split("/")[-1].removesuffix(".parquet") or "run"


def dated_stem(dataset: str) -> str:
    """The stem as the beginning of a folder's name that every system allows: Windows has no `:` or `?` in names."""
    return re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", dataset_stem(dataset.replace("\\", "/"))).strip(" .") or "run"
