"""How the processes of a run find each other, also after some were killed and started again."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed import Store

from train.distributed.env import rank, world_size


def meet(store: Store, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Rank 0 calls `make`; every rank gets the result and a name for this meeting that no earlier one had.

    When torchrun restarts the processes it keeps its store, and everything the dead ones wrote is still in it: a new
    process that read a dead one's address there would wait for it in vain. torchrun's restart count does not help,
    because each machine has its own (https://github.com/pytorch/pytorch/issues/135712). So every process asks under
    a name it has just made up, and rank 0 answers until all of them have confirmed.

    Args:
        store: torchrun's.
        make: the configuration as JSON; its `run.ddp_timeout` limits the wait, in seconds.

    Raises:
        TimeoutError: a process did not show up in time.
    """
    if rank():
        return _ask(store)
    document, meeting = make(), uuid.uuid4().hex
    limit = document["run"]["ddp_timeout"]
    end = time.monotonic() + limit
    missing = set(range(1, world_size()))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):  # perhaps from a dead process; then nobody reads the answer
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", json.dumps([document, meeting]))
        time.sleep(0.02)
        missing = {other for other in missing if not store.check([f"heard/{meeting}/{other}"])}
        if time.monotonic() > end:
            raise TimeoutError(f"rank {min(missing)} did not come within {limit} s")
    return document, meeting


def _ask(store: Store) -> tuple[dict[str, Any], str]:
    name = uuid.uuid4().hex
    store.set(f"asks/{rank()}", name)
    document, meeting = json.loads(store.get(f"answer/{name}"))
    store.set(f"heard/{meeting}/{rank()}", "")
    return document, meeting
