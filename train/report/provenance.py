"""How a run was made: where the time went, what it ran on, and what to type to make it again."""

import shlex
from typing import Any

from train.config.flag_file import as_tokens
from train.config.presets import PRESETS
from train.config.schema import FLAGS, OF_THE_START
from train.report.gather import Gathered

PARTS = {"preparation": "preparing images", "data": "waiting for data", "compute": "computing"}
PARTS |= {"evaluation": "evaluating", "saving": "saving"}
ENVIRONMENT = {"device": "device", "precision": "precision", "precision_reason": "why this precision"}
ENVIRONMENT |= {"attention": "attention", "processes": "processes", "threads": "threads", "cpu_capability": "processor"}


def times(run: Gathered) -> list[tuple[str, float]]:
    """(part, seconds), those that took any."""
    known = [(title, run.training.get(f"{part}_seconds")) for part, title in PARTS.items()]
    return [(title, float(seconds)) for title, seconds in known if seconds]


def environment(run: Gathered) -> list[tuple[str, str]]:
    """What a run's bits depend on besides its flags."""
    record = run.record
    rows = [(title, str(record[name])) for name, title in ENVIRONMENT.items() if record.get(name) is not None]
    rows += [(library, str(version)) for library, version in record.get("versions", {}).items()]
    rows += [("speed", "; ".join(map(str, record.get("speed", []))))]
    for name, title in (("dataset_fingerprint", "data"), ("validation_fingerprint", "validation images")):
        rows += [(f"fingerprint of the {title}", str(record[name]))] if record.get(name) else []
    return [row for row in rows if row[1]]


def command(flags: dict[str, Any]) -> str | None:
    """What to type to train the same again; None for a run that a program started."""
    preset = flags.get("preset")
    if preset not in PRESETS:
        return None
    expected = {name: item.default for name, item in FLAGS.items()} | PRESETS[preset]
    changed = {
        name: value
        for name, value in flags.items()
        if name not in OF_THE_START and name != "preset" and value is not None and value != expected[name]
    }
    words = [f"--preset={preset}", *as_tokens(changed)]
    return " \\\n  ".join(["plainloop train", *map(shlex.quote, words)])
