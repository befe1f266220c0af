"""From a plan to batches of uint8 tensors: samplers, data sets and the DataLoader."""

import itertools
import math
import signal
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data import DataError
from data.augment import Augment, augmented
from data.cache.prepared import Kept, Pixels
from data.plan import IGNORED, Batch, Plan, Sample
from data.seeds import derive_seed


class PlannedSampler(Sampler[list[Sample]]):
    """The micro-batches of all updates after `start` as one iteration, so that workers live as long as the run."""

    def __init__(self, plan: Plan, start: int = 0, skip: int = 0) -> None:
        """Start after `start` updates and `skip` more micro-batches."""
        self.plan, self.start, self.skip = plan, start, skip

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield the samples of one micro-batch after another."""
        updates = range(self.start + 1, self.plan.total_updates + 1)
        batches = itertools.chain.from_iterable(map(self.plan.micro_batches, updates))
        yield from itertools.islice(batches, self.skip, None)


class InOrder(Sampler[list[Sample]]):
    """Every image once over all processes, in the split's order, for evaluation.

    Process `rank` gets every `world`-th image. Nothing is padded or dropped. All processes get the same number of
    batches, the last of which may be short or empty, because a sharded model needs all of them to compute.
    """

    def __init__(self, samples: int, batch_size: int, skip: int = 0, rank: int = 0, world: int = 1) -> None:
        """Leave out the first `skip` batches."""
        self.batch_size, self.skip = batch_size, skip
        self.own, self.batches = range(rank, samples, world), math.ceil(samples / (batch_size * world))

    def __len__(self) -> int:
        """Number of batches."""
        return self.batches - self.skip

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield the samples of one batch after another."""
        for number in range(self.skip, self.batches):
            yield [(0, index) for index in self.own[number * self.batch_size : (number + 1) * self.batch_size]]


class Images(Dataset):
    """A split as a map-style dataset from (epoch, index) to a batch of samples."""

    def __init__(
        self,
        pixels: Pixels,
        labels: Sequence[int],
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        """`pixels[indices]` is uint8 [n, 3, h, w]; `augment` may change one image [3, h, w] at random."""
        self.pixels, self.labels, self.seed, self.augment = pixels, torch.as_tensor(labels), seed, augment

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def on_device(self) -> bool:
        """Whether the pixels are on a GPU already."""
        return isinstance(self.pixels, Kept) and self.pixels.storage.is_cuda

    def __getitems__(self, samples: list[Sample]) -> Batch:
        """A whole batch at once; DataError names an image that cannot be decoded."""
        indices = [index for _, index in samples]
        if not indices:
            return self._stand_in()
        pixels = self.pixels[indices]
        if self.augment is not None:
            pixels = augmented(self.augment, pixels, self.seed, samples)
        index = torch.tensor(indices, dtype=torch.int64)
        return {"pixel_values": pixels, "labels": self.labels[index], "index": index}

    def _stand_in(self) -> Batch:
        """Of a short last batch a process may get no image, but a ViT takes no empty batch: an image that is ignored.

        Its label makes it count for nothing: no loss, no gradient, no metric.
        """
        pixels = self.pixels[[0]]
        if self.augment is not None:  # which may change the size
            pixels = augmented(self.augment, pixels, self.seed, [(0, 0)])
        return {"pixel_values": pixels, "labels": torch.tensor([IGNORED]), "index": torch.tensor([-1])}


class OwnImages(Dataset):
    """Any map-style data set of (image, label) pairs, as batches: image uint8 [3, h, w], label the index of a class."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        """`seed` makes random transforms inside the data set reproducible."""
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitems__(self, samples: list[Sample]) -> Batch:
        """A whole batch at once; DataError if an item has another form."""
        ignored = not samples  # see Images._stand_in
        images, labels, indices = [], [], []
        for epoch, index in samples or [(0, 0)]:
            torch.default_generator.manual_seed(derive_seed(self.seed, "augment", epoch, index))
            image, label = self.dataset[index]
            if getattr(image, "dtype", None) != torch.uint8 or image.ndim != 3:
                found = getattr(image, "dtype", type(image).__name__)
                raise DataError(f"image {index} of the data set: is {found}, not a uint8 tensor [3, height, width]")
            images.append(image)
            labels.append(IGNORED if ignored else int(label))
            indices.append(-1 if ignored else index)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels), "index": torch.tensor(indices)}


def as_it_is(batch: Batch) -> Batch:
    """Collate nothing: a data set with `__getitems__` returns whole batches."""
    return batch


def ignore_signals(worker: int) -> None:
    """In a worker: leave SIGTERM and Ctrl-C to the main process.

    A terminal or a scheduler signals the whole process group; a worker that dies of it would end the main process
    before it can save (pytorch issue 119856).
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def build_loader(
    images: Images,
    batches: Sampler[list[Sample]],
    *,
    workers: int = 0,
    timeout: float = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader over planned batches.

    Args:
        images: the dataset.
        batches: yields the samples of one batch after another.
        workers: processes that decode; 0 decodes in this one, where a debugger can follow.
        timeout: seconds after which a worker that delivers nothing has failed; a frozen one would hang the run.
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
    """The batches, copied to a device; asynchronously if they are page-locked."""
    for batch in batches:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
