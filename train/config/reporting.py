"""--report_to: which trackers are told of a run, and whether their packages are installed."""

import re
from importlib.util import find_spec

from train.errors import ConfigError

# Name of the tracker, which is that of its package -> what to install.
TRACKERS = {"tensorboard": "tensorboard", "wandb": '-e ".[wandb]"', "mlflow": '-e ".[mlflow]"'}


def tracker_names(report_to: str) -> list[str]:
    """`tensorboard,wandb` -> both names; `none` -> none; `all` -> those that are installed, as the Trainer does it.

    Raises:
        ConfigError: an unknown name.
    """
    asked = list(dict.fromkeys(re.findall(r"[^\s,]+", report_to)))
    if asked == ["none"]:
        return []
    if asked == ["all"]:
        return [name for name in TRACKERS if is_installed(name)]
    if not asked or (unknown := [name for name in asked if name not in TRACKERS]):
        wrong = f" {' '.join(unknown)[:80]}" if asked else ""
        raise ConfigError(f"--report_to{wrong}: the trackers are {', '.join(TRACKERS)}; or say all, or none")
    return asked


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name here, such as wandb's own logs, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def check_installed(names: list[str]) -> None:
    """Refuse a tracker whose package is missing, before anything slow; none is imported for that.

    Raises:
        ConfigError: says what to install.
    """
    for name in names:
        if not is_installed(name):
            raise ConfigError(f"--report_to {name}: needs the package: pip install {TRACKERS[name]}")
