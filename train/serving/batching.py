"""Images that arrive one by one -> batches for the model."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class Batcher:
    """Collects what waits whenever the model becomes free: nobody waits for a batch to fill up.

    The model runs in a thread of its own, so that the event loop goes on reading requests.
    """

    def __init__(
        self, compute: Callable[[torch.Tensor], torch.Tensor], batch_size: int, observe: Callable[[int], None]
    ) -> None:
        """Nothing is computed until `run` runs.

        Args:
            compute: uint8 [n, 3, height, width] -> [n, classes], called in one thread only.
            batch_size: the largest n.
            observe: told the n of each batch.
        """
        self._compute, self._batch_size, self._observe = compute, batch_size, observe
        self._waiting: asyncio.Queue[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]] = asyncio.Queue()

    async def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [3, height, width] -> [classes]; an error of `compute` is raised for each image of its batch."""
        row: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((pixels, row))
        return await row

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        loop = asyncio.get_running_loop()
        # Threads that decode images set torch's default for new threads to 1.
        setting = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
        with ThreadPoolExecutor(1, "model", **setting) as thread:
            while True:
                batch = await self._collected()
                if not batch:
                    continue
                self._observe(len(batch))
                pixels = torch.stack([image for image, _ in batch])
                try:
                    rows = await loop.run_in_executor(thread, self._compute, pixels)
                except Exception as error:
                    _settle(batch, lambda row, _, error=error: row.set_exception(error))
                else:
                    _settle(batch, lambda row, i, rows=rows: row.set_result(rows[i]))

    async def _collected(self) -> list[tuple[torch.Tensor, asyncio.Future[torch.Tensor]]]:
        """Waits for the first; leaves out those whose request has ended."""
        batch = [await self._waiting.get()]
        while len(batch) < self._batch_size and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return [(image, row) for image, row in batch if not row.done()]


def _settle(batch: list, settle: Callable[[asyncio.Future, int], None]) -> None:
    for i, (_, row) in enumerate(batch):
        if not row.done():  # its request may have ended meanwhile
            settle(row, i)
