"""How many cores this process may use, which is not how many the machine has."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": microseconds of every so many; "max": no limit (cgroup v2)


def usable_cores() -> int:
    """Cores by affinity and by the container's quota; more threads than that get in each other's way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = QUOTA.read_text().split()
        return min(cores, max(1, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # another system, or no limit
        return cores
