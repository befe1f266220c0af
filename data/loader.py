"""From splits to batches: which images make up an update, and how they become uint8 tensors."""

import itertools
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.cache import Kept, Pixels
from data.seeds import key

Key = tuple[int, int]  # (epoch, index): all that the randomness of one sample hangs on
Batch = dict[str, torch.Tensor]  # pixel_values uint8 [n, 3, h, w], labels int64 [n], index int64 [n]


@dataclass(frozen=True)
class Plan:
    """Which images make up which update: a pure function of (seed, update), so that nothing need be saved.

    Epochs and orders are the Trainer's: epoch e (from 0) is a permutation seeded with `seed + e`; a window of
    `accumulation` micro-batches never crosses the end of an epoch, where it may be short.
    """

    samples: int
    batch_size: int
    accumulation: int
    total_updates: int
    seed: int
    drop_last: bool = False
    rank: int = 0  # which of `world` processes this is; each has a part of every micro-batch
    world: int = 1

    @property
    def whole_batch(self) -> int:
        """Images of a micro-batch over all processes; the last one of an epoch may have fewer."""
        return self.batch_size * self.world

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches an epoch, the last of which may be short."""
        return batches_per_epoch(self.samples, self.whole_batch, self.drop_last)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates an epoch, the last of which may have fewer micro-batches."""
        return math.ceil(self.batches_per_epoch / self.accumulation)

    def epoch(self, update: int) -> float:
        """How many epochs are done after `update` updates."""
        epochs, rest = divmod(update, self.updates_per_epoch)
        return epochs + min(rest * self.accumulation, self.batches_per_epoch) / self.batches_per_epoch

    def micro_batch_count(self, update: int) -> int:
        """How many micro-batches the update (from 1) has."""
        first = (update - 1) % self.updates_per_epoch * self.accumulation
        return min(self.accumulation, self.batches_per_epoch - first)

    def samples_in(self, update: int) -> int:
        """How many images the update (from 1) has, over all processes."""
        first = (update - 1) % self.updates_per_epoch * self.accumulation * self.whole_batch
        return min(self.micro_batch_count(update) * self.whole_batch, self.samples - first)

    def samples_until(self, update: int) -> int:
        """How many images the updates from 1 to this one have, over all processes."""
        epochs, rest = divmod(update, self.updates_per_epoch)
        kept = min(self.batches_per_epoch * self.whole_batch, self.samples)  # an epoch's, without what is dropped
        return epochs * kept + min(rest * self.accumulation * self.whole_batch, kept)

    def micro_batches(self, update: int) -> list[list[Key]]:
        """The keys of this process's part of each micro-batch of the update (from 1).

        Every `world`th image: of a short last batch too, each process has as many as the others, or one fewer.
        """
        epoch, position = divmod(update - 1, self.updates_per_epoch)
        order = _order(self.samples, self.seed + epoch)
        start, size = position * self.accumulation * self.whole_batch, self.whole_batch
        starts = (start + number * size for number in range(self.micro_batch_count(update)))
        return [[(epoch, index) for index in order[s : s + size][self.rank :: self.world]] for s in starts]

    def indices(self, update: int) -> list[int]:
        """The images of this process's part of the update (from 1)."""
        return [index for keys in self.micro_batches(update) for _, index in keys]


def batches_per_epoch(samples: int, batch_size: int, drop_last: bool = False) -> int:
    """Micro-batches an epoch; at least one, or there would be nothing to train on."""
    return max(1, samples // batch_size) if drop_last else math.ceil(samples / batch_size)


@lru_cache(maxsize=2)
def _order(samples: int, seed: int) -> list[int]:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()


class PlannedSampler(Sampler[list[Key]]):
    """The micro-batches of all updates after `start`, as one iteration: workers live from start to end."""

    def __init__(self, plan: Plan, start: int = 0, skip: int = 0) -> None:
        """`start` is the number of updates already done, `skip` that of micro-batches after them."""
        self.plan, self.start, self.skip = plan, start, skip

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of one micro-batch after another."""
        updates = range(self.start + 1, self.plan.total_updates + 1)
        batches = itertools.chain.from_iterable(map(self.plan.micro_batches, updates))
        yield from itertools.islice(batches, self.skip, None)


class InOrder(Sampler[list[Key]]):
    """Every image once over all processes, in the split's order, in batches: for evaluation.

    Process `rank` has every `world`th image. Nothing is padded or dropped; all processes have as many batches, of which
    the last may be short or empty, because a sharded network computes only where all take part.
    """

    def __init__(self, samples: int, batch_size: int, skip: int = 0, rank: int = 0, world: int = 1) -> None:
        """The first `skip` batches are left out."""
        self.batch_size, self.skip = batch_size, skip
        self.own, self.batches = range(rank, samples, world), math.ceil(samples / (batch_size * world))

    def __len__(self) -> int:
        """Number of batches."""
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of one batch after another."""
        for number in range(self.skip, self.batches):
            yield [(0, index) for index in self.own[number * self.batch_size : (number + 1) * self.batch_size]]


class Images(Dataset):
    """A split as a map-style dataset from (epoch, index) to a batch of samples."""

    def __init__(
        self,
        pixels: Pixels,
        labels: Sequence[int],
        seed: int = 0,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """`pixels[indices]` is uint8 [n, 3, h, w]; `augment` may change one image [3, h, w] at random."""
        self.pixels, self.labels, self.seed, self.augment = pixels, torch.as_tensor(labels), seed, augment

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def on_device(self) -> bool:
        """Whether the pixels lie on a GPU already."""
        return isinstance(self.pixels, Kept) and self.pixels.storage.is_cuda

    def __getitems__(self, samples: list[Key]) -> Batch:
        """A whole batch at once; DataError names an image that cannot be decoded."""
        indices = [index for _, index in samples]
        index = torch.tensor(indices, dtype=torch.int64)
        # Of a short last batch a process may have no image. A ViT takes no empty batch: it gets one without a label.
        pixels = self.pixels[indices or [0]]
        if self.augment is not None and indices:
            pixels = torch.stack([self._augment(image, *sample) for image, sample in zip(pixels, samples, strict=True)])
        return {
            "pixel_values": pixels,
            "labels": self.labels[index],
            "index": index,
        }

    def _augment(self, image: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        # What a random transform draws hangs on the sample alone: the same pixels for any number of workers,
        # and after a resume. The generator itself, because torch.manual_seed costs 70 times as much.
        torch.default_generator.manual_seed(key(self.seed, "augment", epoch, index))
        return self.augment(image)


def as_it_is(batch: Batch) -> Batch:
    """What `Images` gives is a batch already: nothing is left to collate."""
    return batch


def ignore_signals(worker: int) -> None:
    """In a worker: leave SIGTERM and Ctrl-C to the main process.

    A terminal or a scheduler signals the whole group; a worker that died of it would take the main process along
    before it can save (pytorch issue 119856).
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def build_loader(
    images: Images,
    batches: Sampler[list[Key]],
    *,
    workers: int = 0,
    timeout: float = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader over planned batches.

    Args:
        images: the dataset.
        batches: yields the keys of one batch after another.
        workers: processes that decode; 0 decodes in this one, where a debugger can follow.
        timeout: seconds after which a silent worker is an error; a frozen one would hang the run for good.
        pin_memory: page-locked batches, which CUDA copies asynchronously.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        timeout=timeout if workers else 0,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
        # iter(loader) draws a number; without a generator of its own, from the one that dropout uses.
        generator=torch.Generator(),
    )


def batches_on(device: torch.device, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, copied to a device (without waiting, where they are page-locked)."""
    for batch in batches:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
