"""What torchrun puts into the environment. Without torchrun: one process, rank 0, never restarted."""

import os
import sys

from train.errors import ConfigError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")


def rank() -> int:
    """Number of this process over all machines; rank 0 is the one that writes and prints."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes that train together, over all machines."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def local_rank() -> int:
    """Number of this process on its machine, which is also the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def is_restart() -> bool:
    """Whether torchrun started this group of processes again after one of them failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def may_restart() -> bool:
    """Whether torchrun would start it again (--max-restarts)."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def check_environment() -> None:
    """Refuse an environment in which nothing can run.

    Raises:
        ConfigError: a variable of torchrun is no number, or Python drops docstrings, which the libraries parse.
    """
    for name in NUMBERS:
        if not os.environ.get(name, "0").isdecimal():
            raise ConfigError(f"{name}={os.environ[name]!r} in the environment: must be a number; torchrun sets it")
    if "MASTER_ADDR" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        for name in ("RANK", "MASTER_PORT"):
            if not os.environ.get(name, "").isdecimal():
                raise ConfigError(f"{name} in the environment: must be a number beside WORLD_SIZE; torchrun sets it")
        if not _number("RANK", 0) < _number("WORLD_SIZE", 1):
            raise ConfigError(
                f"RANK={os.environ['RANK']} in the environment: must be below WORLD_SIZE={os.environ['WORLD_SIZE']}"
            )
        if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
            raise ConfigError(f"MASTER_PORT={os.environ['MASTER_PORT']} in the environment: must be from 1 to 65535")
    if sys.flags.optimize > 1:
        raise ConfigError("PYTHONOPTIMIZE=2 (python -OO) is not supported: the libraries need docstrings; unset it")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default  # check_environment has refused what is none
