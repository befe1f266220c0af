"""Several runs, one after another, each in a process of its own; then their comparison."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from data import files
from train.config.record import RECORD, is_run
from train.config.schema import FLAGS, Config
from train.errors import ConfigError, RunError
from train.recipes.grid import Start, make_grid
from train.recipes.predictions import PREDICTIONS
from train.recipes.report import compare, lines
from train.recipes.runs import SERIES, read_recipes, read_series
from train.system.console import say
from train.system.signals import Interrupted, Signals

ROOT = Path(__file__).resolve().parent.parent.parent
# The same program, wherever it lies, with the current folder looked at last, as `plainloop` does.
CHILD = """
import sys
sys.path[:0] = [sys.argv.pop(1)]
sys.path.append("")
sys.argv[0] = "plainloop"
from train.system.signals import end_with_parent
end_with_parent()
from train.main import main
sys.exit(main())
"""


def train_series(arguments: list[str], config: Config, signals: Signals) -> None:
    """Train every run of --seeds and --sweep that is not finished yet, and compare them.

    Raises:
        ConfigError: a flag cannot be used, or the folder holds something else; nothing has been started then.
        RunError: a run has failed.
        Interrupted: by a signal, after the run that trained has saved.
    """
    starts = make_grid(arguments, config)
    folder = Path(config.run.output_dir)
    record_series(folder, starts)
    again = shlex.join(["plainloop", "train", *arguments])
    for number, start in enumerate(starts, 1):
        child, which = folder / start.name, f"run {number} of {len(starts)}, {start.name}"
        if (child / PREDICTIONS).is_file():
            say(f"{which}: is finished already")
            continue
        say(f"{which}: {'continues' if is_run(str(child)) else 'starts'}")
        try:
            code = train_child(start, child, signals)
            signals.raise_received()
            _check_ended(code, which, again)
        except Interrupted:
            say(f"stopped in {which}; to continue: {again}")
            raise
    recipes = read_recipes([str(folder / start.name) for start in starts])
    for line in lines(compare(recipes)):
        say(line)
    say(f"compare again: {shlex.join(['plainloop', 'compare', str(folder)])}")


def record_series(folder: Path, starts: list[Start]) -> None:
    """Write down what each run was asked for, or compare it with what was written down when the series began.

    Raises:
        ConfigError: the folder holds something else, or a run of that name has other flags.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output_dir {folder}: is a file, not a folder")
        record = read_series(folder)
        listed = folder.iterdir() if folder.exists() else ()
        if not record and any(not path.name.startswith(files.TEMPORARY) for path in listed):
            what = "a single run" if (folder / RECORD).is_file() else "something else than a series of runs"
            raise ConfigError(f"--output_dir {folder}: holds {what}; name a new folder")
        for start in starts:
            if is_run(str(folder / start.name)):
                _check_same(start, record.get(start.name), folder)
        folder.mkdir(parents=True, exist_ok=True)
        known = record | {start.name: start.flags for start in starts}
        files.write_text(folder / SERIES, json.dumps(known, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be used: {error.strerror}") from error


def _check_same(start: Start, before: dict[str, Any] | None, folder: Path) -> None:
    """A flag that was not written down is younger than the series; the run had what is the default now."""
    if before is None:
        raise ConfigError(f"{folder / start.name}: holds a run that this series did not start; name a new --output_dir")
    known = {name: before.get(name, FLAGS[name].default) for name in start.flags}
    if different := [name for name in start.flags if known[name] != start.flags[name]]:
        shown = "; ".join(f"{name} was {known[name]}, is now {start.flags[name]}" for name in different)
        raise ConfigError(f"{folder / start.name}: {shown}; name another --output_dir to change that")


def train_child(start: Start, folder: Path, signals: Signals) -> int:
    """The exit code of one run, in a process whose output goes where ours goes.

    Its process group is its own, so that Ctrl-C reaches it once, from us, and not twice, which would end it at once.
    """
    command = [sys.executable, "-P", "-c", CHILD, str(ROOT), *start.tokens]
    command += [f"--output_dir={folder}", *(["--resume_from_checkpoint=auto"] if is_run(str(folder)) else [])]
    own_group = {} if sys.platform == "win32" else {"process_group": 0}
    sys.stdout.flush()
    with signals.deferred():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **own_group)
        with signals.passed_to(process):
            return process.wait()


def _check_ended(code: int, which: str, again: str) -> None:
    """Raise the error that has the same exit code as a run that did not end well."""
    if code == 0:
        return
    if code < 0:
        raise RunError(f"{which}: was ended by {signal.Signals(-code).name}; to continue: {again}")
    if code > 128:
        raise Interrupted(code - 128)
    error = ConfigError if code == 2 else RunError
    raise error(f"{which}: failed, as said above; to continue: {again}")
