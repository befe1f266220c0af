"""Fixtures that several rooms share."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

# No test may ask the network: a Hub name that is not cached must fail at once, here and in child processes.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor leave anything in the user's caches.
_caches = tempfile.TemporaryDirectory(prefix="plainloop-tests-")
os.environ["HF_HOME"] = _caches.name
# Networks this small are slower on two threads than on one, and far slower when something else runs beside them.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def shared(name: str) -> Path:
    """A folder of real data beside the checkout; the test is skipped where it is not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the real data in ../shared/{name}, which is not here")
    return path


@pytest.fixture
def beans() -> Path:
    return shared("beans")


@pytest.fixture
def deit_tiny() -> Path:
    return shared("deit-tiny")


@pytest.fixture(autouse=True)
def _own_randomness():
    """Each test starts from the same generator state, whichever ran before."""
    torch.manual_seed(0)
