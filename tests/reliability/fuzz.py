"""R6: command lines and configuration files that nobody meant: only the documented error, in one line, and exit 2."""

import contextlib
import io
import json
import random
from pathlib import Path

from tests.reliability.harness import Report, draw
from train.config.schema import FLAGS
from train.main import main

VALUES = [
    *("", " ", "0", "-1", "1", "3", "1e-3", "nan", "inf", "-inf", "1e999", "true", "None", "null", "auto", "cuda:7"),
    *("/nowhere/at/all", "a=b", "{", '{"a": 1}', "a=1,b=(2", "x" * 5000, "\x00", "\n", "--", "-", "%s%d", "[1]"),
    *("builtin:leaves", "builtin:none", "math:sqrt", "os:system", "adamw", "linear", "17.5", "0x10", "1_000"),
    *("\u00e9\u202e", "\u0661\u0662"),  # an accent and a right-to-left mark; twelve in Arabic digits
]
# What would train for real, read the home directory or take long is not for fuzzing.
UNFIT = {"cache_dir", "debug", "output_dir", "help"}


def one_run(arguments: list[str], folder: Path) -> str | None:
    """None if the program behaved; else what was wrong. Valid command lines stop after one update."""
    said, errors = io.StringIO(), io.StringIO()
    out = folder / "run"
    tail = ["--stop_after", "1", "--max_train_samples", "6", "--max_eval_samples", "3", "--output_dir", str(out)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = main([*arguments, *tail])
    except SystemExit as stop:
        return f"left by itself with {stop.code}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    error = errors.getvalue()
    if code == 0:
        return None
    if code != 2 or not error.startswith("error: ") or error.count("\n") != 1:
        return f"exit code {code}, said {error[:300]!r}"
    return None


def command_line(rng: random.Random) -> list[str]:
    """A debug run with one to three flags that are misspelt, misplaced or given nonsense."""
    arguments = ["--preset", "debug"] if rng.random() < 0.9 else []
    names = [name for name in FLAGS if name not in UNFIT]
    for _ in range(rng.randint(1, 3)):
        name, value = rng.choice(names), rng.choice(VALUES)
        kind = rng.random()
        if kind < 0.6:
            arguments += [f"--{name}={value}"]
        elif kind < 0.8:
            arguments += [f"--{name}", value]
        elif kind < 0.9:
            arguments += [f"--{name[: rng.randint(1, len(name))]}{rng.choice(['', 'x', '-'])}", value]
        else:
            arguments.insert(rng.randrange(len(arguments) + 1), value)
    return arguments


def config_file(rng: random.Random, path: Path) -> list[str]:
    """The same as a file, sometimes no YAML at all."""
    names = [name for name in FLAGS if name not in UNFIT]
    values = [*VALUES, None, 1, -1, 0.5, [], {}, {"a": [1]}, [1, "x"], True]
    drawn = {rng.choice([*names, "nonsense"]): rng.choice(values) for _ in range(rng.randint(1, 3))}
    content = {"preset": "debug"} | drawn
    text = json.dumps(content)
    path.write_text(text if rng.random() < 0.9 else text[: rng.randrange(len(text))])
    return [str(path)]


def fuzz(folder: Path, trials: int, seed: int) -> Report:
    """So many command lines and files."""
    report, rng = Report("R6 fuzzed command lines", facts={"seed": seed}), draw(seed)
    accepted = 0
    for trial in range(trials):
        here = folder / str(trial)
        here.mkdir()
        arguments = config_file(rng, here / "c.yaml") if rng.random() < 0.3 else command_line(rng)
        problem = one_run(arguments, here)
        accepted += (here / "run").exists()
        report.check(problem is None, f"{arguments}: {problem}")
    report.facts["accepted"] = accepted
    return report
