"""Ways to run the program: in this process, which is fast, and as a real process, which is what users do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from train.main import main

ROOT = Path(__file__).resolve().parent.parent
TIMES = re.compile(r"runtime|per_second|seconds")  # fields of a record that hold times


def run_here(*flags: object) -> int:
    """The exit code of `python -m train.main` with these flags, run in this process."""
    return main([str(flag) for flag in flags])


def run_process(
    *flags: object, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess:
    """`python -m train.main` with these flags, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "train.main", *map(str, flags)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def records(folder: Path) -> list[dict]:
    """metrics.jsonl without the fields that hold times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not TIMES.search(name)} for line in lines]


def weights(folder: Path) -> dict:
    """The tensors of a model folder."""
    return load_file(folder / "model.safetensors")


def same_tensors(one: dict, other: dict) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
