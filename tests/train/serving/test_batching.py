import asyncio
import threading

import pytest
import torch

from train.serving.batching import Batcher


def image(value):
    return torch.full((3, 2, 2), value, dtype=torch.uint8)


def batched(compute, batch_size, work):
    """What `work(batcher)` returns, and the sizes of the batches."""
    sizes = []

    async def main():
        batcher = Batcher(compute, batch_size, sizes.append)
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 20)
        finally:
            running.cancel()

    return asyncio.run(main()), sizes


def mean(pixels):
    return pixels.float().mean((1, 2, 3))[:, None]


def test_what_arrives_while_the_model_is_busy_is_the_next_batch_and_each_gets_its_own_row():
    free, started = threading.Event(), threading.Event()

    def compute(pixels):
        started.set()
        free.wait(20)
        return mean(pixels)

    async def work(batcher):
        first = asyncio.create_task(batcher.classify(image(9)))
        while not started.is_set():
            await asyncio.sleep(0.01)  # nobody waited for a second image
        others = [asyncio.create_task(batcher.classify(image(value))) for value in range(5)]
        await asyncio.sleep(0)
        free.set()
        return [row.item() for row in await asyncio.gather(first, *others)]

    rows, sizes = batched(compute, 3, work)
    assert rows == [9, 0, 1, 2, 3, 4] and sizes == [1, 3, 2]


def test_an_error_is_raised_for_the_images_of_its_batch_and_the_next_batch_is_computed():
    def compute(pixels):
        if (pixels == 7).any():
            raise RuntimeError("seven")
        return mean(pixels)

    async def work(batcher):
        bad = await asyncio.gather(*(batcher.classify(image(value)) for value in (7, 1)), return_exceptions=True)
        return bad, (await batcher.classify(image(2))).item()

    (bad, good), sizes = batched(compute, 8, work)
    assert [str(error) for error in bad] == ["seven", "seven"] and good == 2 and sizes == [2, 1]


def test_an_image_whose_request_has_ended_is_not_computed():
    async def work(batcher):
        tasks = [asyncio.create_task(batcher.classify(image(value))) for value in (1, 2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        return (await tasks[1]).item()

    assert batched(mean, 8, work) == (2, [1])
