"""Everything that training changes, in one object: what a checkpoint saves and a resume restores."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from train.evaluate import Metrics
from train.precision import Precision

PARTS = ("data", "compute", "evaluation", "saving")  # where the time of a run goes


@dataclass
class Best:
    """The best evaluation so far, by one metric."""

    metric: str
    greater_is_better: bool
    value: float | None = None
    step: int | None = None

    def improved_by(self, value: float) -> bool:
        """Strictly better: a tie keeps the earlier, like the Trainer; nan is never better."""
        if math.isnan(value):
            return False
        if self.value is None:
            return True
        return value > self.value if self.greater_is_better else value < self.value


@dataclass
class TrainState:
    """Model, optimizer, schedule, scaler and counters. Nothing random: that is a function of the step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    precision: Precision
    best: Best
    replica: nn.Module | None = None  # the model as the loop calls it: itself, or DDP around it
    step: int = 0  # updates done, those that the scaler skipped included
    skipped: int = 0  # updates that the scaler skipped after an fp16 overflow
    losses_since_log: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    loss_since_log: torch.Tensor = field(init=False)  # a sum on the device: reading it would wait for the device
    loss_total: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Start both sums at zero, in the precision of the losses."""
        self.replica = self.replica or self.model
        zero = torch.zeros((), dtype=self.precision.dtype, device=self.precision.device)
        self.loss_since_log, self.loss_total = zero, zero.clone()

    @property
    def learning_rate(self) -> float:
        """Of the next update, in the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def train_seconds(self) -> float:
        """Without evaluations and saves."""
        return self.seconds["data"] + self.seconds["compute"]

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds of a block as `part`, one of PARTS."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def count_update(self, loss: torch.Tensor, applied: bool) -> None:
        """Record one update's mean loss, and whether it changed the weights."""
        self.step += 1
        self.skipped += not applied
        self.losses_since_log += 1
        self.loss_since_log = self.loss_since_log + loss
        self.loss_total = self.loss_total + loss

    def take_logged_loss(self) -> float:
        """Mean of the losses since the last call, as the Trainer logs it."""
        mean = self.loss_since_log.item() / self.losses_since_log
        self.loss_since_log, self.losses_since_log = torch.zeros_like(self.loss_since_log), 0
        return mean

    def keep_best(self, metrics: Metrics) -> bool:
        """Remember this evaluation if it is the best so far; returns whether it is."""
        value = metrics.values[self.best.metric]
        if not self.best.improved_by(value):
            return False
        self.best.value, self.best.step = value, self.step
        return True
