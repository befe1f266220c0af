"""One Ray for all tests that can share it."""

import pytest

from tests.train.ray.cluster import Cluster


@pytest.fixture(scope="session")
def cluster():
    pytest.importorskip("ray")
    found = Cluster()
    try:
        found.start()
        yield found
    finally:
        found.stop()
