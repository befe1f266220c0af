"""Which model an exported file holds."""

import json
from pathlib import Path

from data import files
from train.config.record import RECORD, read_record


def model_name(run: str, record: Path | None, revision: str | None) -> str:
    """Which model this is, for the file's metadata: `run b04faa6e6651, update 260`, or its name. No path."""
    folder = Path(files.follow(run)).resolve()
    if record is None:
        return folder.name if folder.exists() else run + (f" at {revision}" if revision else "")
    update = folder.name.removeprefix("checkpoint-")
    if (folder / RECORD).is_file():
        update = _best_update(folder)
    return f"run {read_record(record)['run_id']}" + (f", update {update}" if update.isdecimal() else "")


def _best_update(folder: Path) -> str:
    try:
        return str(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
