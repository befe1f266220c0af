"""The long column of the reliability battery: kills, power cuts, flipped bits and odd input, by the thousand.

    pip install -e ".[test]"
    python scripts/torture.py --trials R1=300 R2=400 R3=20000 R4=120 R5=all R6=5000 R7=1 R8=25 R14=2000 [--seed N]
    python scripts/torture.py --trials best=2000 folders=1
    python scripts/torture.py --trials groups=20

Prints a table and the seed of every random schedule. A battery that is not named does not run; --minutes bounds R1.
`tests/reliability` runs the same with small numbers at every change.
"""

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # before torch, and for every child

from tests.reliability import faults, flips, folders, fuzz, groups, hostile, kills, pictures, power, reference
from tests.reliability.harness import Report

Battery = Callable[[Path, int, int, float], Report]  # (folder, trials, seed, seconds)

BATTERIES: dict[str, Battery] = {
    "R1": lambda folder, trials, seed, seconds: kills.kill_and_resume(folder, trials, seed, seconds),
    "R2": lambda folder, trials, seed, seconds: kills.kill_at_every_call(folder, most=trials),
    "R3": lambda folder, trials, seed, seconds: power.power_cuts(_made(folder / "recorded").parent, trials, seed),
    "R4": lambda folder, trials, seed, seconds: faults.fail_at_every_call(folder, most=trials),
    "R5": lambda folder, trials, seed, seconds: flips.flip_bits(folder, trials or None, seed),
    "best": lambda folder, trials, seed, seconds: flips.flip_best(folder, trials, seed),
    "folders": lambda folder, trials, seed, seconds: folders.hostile_folders(folder),
    "R6": lambda folder, trials, seed, seconds: fuzz.fuzz(folder, trials, seed),
    "R7": lambda folder, trials, seed, seconds: hostile.hostile_checkpoints(folder),
    "R8": lambda folder, trials, seed, seconds: pictures.odd_images(trials, seed),
    "groups": lambda folder, trials, seed, seconds: groups.groups_killed(folder, trials, seed),
    "R14": lambda folder, trials, seed, seconds: reference.schedules_and_windows(trials, seed),
}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> int:
    """Run what was asked for; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="*", default=[], metavar="BATTERY=COUNT", help="R5=all flips every bit")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--minutes", type=float, default=60.0, help="most that R1 may take")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--real", nargs=2, type=Path, metavar=("MODEL", "DATASET"), help="R1 also on these: 5 kills")
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, seed {asked.seed}", flush=True)
    failed = False
    for item in asked.trials:
        name, _, count = item.partition("=")
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            started = time.perf_counter()
            trials = 0 if count == "all" else int(count)
            report = BATTERIES[name](Path(folder), trials, asked.seed, 60 * asked.minutes)
        print(f"{report}, {time.perf_counter() - started:.0f} s", *report.failures[:5], sep="\n  ", flush=True)
        failed |= bool(report.failures)
    if asked.real:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            report = kills.kill_the_real_thing(Path(folder), *(path.resolve() for path in asked.real), 5, asked.seed)
        print(report, *report.failures, sep="\n  ")
        failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
