"""Everything in this folder is the reliability battery: minutes long in all, run by `pytest -m reliability`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.reliability)
