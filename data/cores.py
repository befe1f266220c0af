"""How many cores this process may use, which can be fewer than the machine has."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "200000 100000" is 2 cores, "max 100000" no limit


def usable_cores() -> int:
    """Cores by affinity and container quota; more threads than that only slow each other down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = QUOTA.read_text().split()
        return min(cores, max(1, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # not Linux, or no limit
        return cores
