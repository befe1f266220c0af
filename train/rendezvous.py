"""How the processes of a run find each other, also after some of them were killed and started again."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict

from torch.distributed import Store

from train.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from train.launch import rank, world_size


def meet(store: Store, parse: Callable[[], Config]) -> tuple[Config, str]:
    """What `parse` makes of the command line in the first process, and a name for this meeting that no earlier one had.

    torchrun keeps its store when it restarts the processes, so that all they left in it is still there: a process that
    took the address of a dead one from it would wait for that one in vain, and so would the living. (Its count of
    restarts does not tell: each machine has its own, https://github.com/pytorch/pytorch/issues/135712.) Therefore every
    process asks under a name made up on the spot, and the first one answers until all have said that they heard.

    Raises:
        TimeoutError: another process did not come within `--ddp_timeout`.
    """
    if rank():
        return _ask(store)
    config = parse()
    meeting = uuid.uuid4().hex
    end = time.monotonic() + config.run.ddp_timeout
    missing = set(range(1, world_size()))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):  # maybe by one that is dead; then nobody hears the answer
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", json.dumps([asdict(config), meeting]))
        time.sleep(0.02)
        missing = {other for other in missing if not store.check([f"heard/{meeting}/{other}"])}
        if time.monotonic() > end:
            raise TimeoutError(f"rank {min(missing)} did not come within {config.run.ddp_timeout} s")
    return config, meeting


def _ask(store: Store) -> tuple[Config, str]:
    name = uuid.uuid4().hex
    store.set(f"asks/{rank()}", name)
    found, meeting = json.loads(store.get(f"answer/{name}"))
    store.set(f"heard/{meeting}/{rank()}", "")
    sections = {"run": RunConfig, "data": DataConfig, "model": ModelConfig, "train": TrainConfig}
    config = Config(**{key: sections[key](**value) if key in sections else value for key, value in found.items()})
    return config, meeting
