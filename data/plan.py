"""Which images make up which update: a pure function of the seed and the update, so that nothing needs to be saved."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

IGNORED = -100  # label of an image that stands in for none; torch's cross-entropy and torchmetrics leave it out
Sample = tuple[int, int]  # (epoch, index): everything that the randomness of one sample depends on
Batch = dict[str, torch.Tensor]  # pixel_values uint8 [n, 3, h, w], labels int64 [n], index int64 [n]


class Balance:
    """Every class drawn equally often, with replacement: an epoch is as many draws as there are images."""

    def __init__(self, labels: Sequence[int]) -> None:
        """`labels`: the class of each image."""
        counts = Counter(labels)
        self.weights = torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)

    def order(self, seed: int) -> list[int]:
        """The images of one epoch."""
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator).tolist()


@dataclass(frozen=True)
class Plan:
    """The order of a data set of known size.

    Epochs and orders are the Trainer's: epoch e (from 0) is a permutation seeded with `seed + e`. A window of
    `accumulation` micro-batches never crosses the end of an epoch; the last one of an epoch may be short.
    """

    samples: int
    batch_size: int
    accumulation: int
    total_updates: int
    seed: int
    drop_last: bool = False
    rank: int = 0  # of `world` processes; each gets its share of every micro-batch
    world: int = 1
    stop_after: int | None = None  # stop after this many updates; schedule and order stay those of the whole run
    balance: Balance | None = None  # instead of every image once an epoch

    @property
    def stop_at(self) -> int:
        """The last update of this start of the program."""
        return min(self.total_updates, self.stop_after or self.total_updates)

    @property
    def whole_batch(self) -> int:
        """Images of a micro-batch over all processes; the last one of an epoch may have fewer."""
        return self.batch_size * self.world

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches per epoch, the last of which may be short."""
        return batches_per_epoch(self.samples, self.whole_batch, self.drop_last)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates per epoch, the last of which may have fewer micro-batches."""
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

    def micro_batches(self, update: int) -> list[list[Sample]]:
        """This process's share of each micro-batch of the update (from 1).

        Every `world`-th image, so that of a short last batch, too, each process gets as many as the others or one less.
        """
        epoch, position = divmod(update - 1, self.updates_per_epoch)
        order = _order(self.samples, self.seed + epoch, self.balance)
        start, size = position * self.accumulation * self.whole_batch, self.whole_batch
        starts = (start + number * size for number in range(self.micro_batch_count(update)))
        return [[(epoch, index) for index in order[s : s + size][self.rank :: self.world]] for s in starts]

    def indices(self, update: int) -> list[int]:
        """The indices of this process's images in the update (from 1)."""
        return [index for samples in self.micro_batches(update) for _, index in samples]


def batches_per_epoch(samples: int, batch_size: int, drop_last: bool = False) -> int:
    """Micro-batches per epoch; at least one, or there would be nothing to train on."""
    return max(1, samples // batch_size) if drop_last else math.ceil(samples / batch_size)


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, balance: Balance | None) -> list[int]:
    if balance is not None:
        return balance.order(seed)
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class StreamPlan:
    """How many updates of how many images for a stream: like `Plan`, but without visible ends of epochs."""

    batch_size: int
    accumulation: int
    total_updates: int
    seed: int
    samples: int | None  # of an epoch, where the data set says
    rank: int = 0
    world: int = 1
    stop_after: int | None = None

    @property
    def stop_at(self) -> int:
        """The last update of this start of the program."""
        return min(self.total_updates, self.stop_after or self.total_updates)

    def micro_batch_count(self, update: int) -> int:
        """Never a short window: the stream continues into the next epoch."""
        return self.accumulation

    def samples_in(self, update: int) -> int:
        """Images of the update, over all processes."""
        return self.batch_size * self.accumulation * self.world

    def samples_until(self, update: int) -> int:
        """Images of all updates up to this one, over all processes."""
        return update * self.samples_in(update)

    def indices(self, update: int) -> list[int]:
        """Positions in this process's stream of its images in the update (from 1)."""
        images = self.batch_size * self.accumulation
        return list(range((update - 1) * images, update * images))

    def epoch(self, update: int) -> float:
        """How many epochs are done after `update` updates; 0 if the length of an epoch is unknown."""
        return self.samples_until(update) / self.samples if self.samples else 0.0
