"""What a checkpoint saves and a resume restores, with the loss and the precision that the loop needs beside it."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data.augment import Mix, as_they_are
from train.config.early_end import EarlyEnd
from train.distributed.collectives import all_reduce_max
from train.evaluate import Metrics
from train.loss import LossSum, cross_entropy_sum
from train.optimizers.schedules import Schedule
from train.precision import Precision

PARTS = ("data", "compute", "evaluation", "saving")  # of every update; a run records the seconds of each


@dataclass
class Best:
    """The best evaluation so far, by one metric."""

    metric: str
    greater_is_better: bool
    value: float | None = None
    step: int | None = None

    def improved_by(self, value: float) -> bool:
        """Whether `value` is strictly better. A tie keeps the earlier one, as in the Trainer; NaN is never better."""
        if math.isnan(value):
            return False
        if self.value is None:
            return True
        return value > self.value if self.greater_is_better else value < self.value


@dataclass
class TrainState:
    """Model, optimizer, schedule, scaler and counters. No RNG state: each update is seeded from its number."""

    raw_model: nn.Module  # what is trained
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    best: Best
    loss_sum_fn: LossSum = cross_entropy_sum
    mix: Mix = as_they_are  # MixUp or CutMix, of the images and labels of a batch
    average: AveragedModel | None = None  # of the weights, with --ema
    early_end: EarlyEnd = field(default_factory=EarlyEnd)  # when to end before the plan does
    model: nn.Module | None = None  # the model as the loop calls it: raw_model itself, or DDP around it
    step: int = 0  # updates done, including those that the scaler skipped
    skipped: int = 0  # updates that the scaler skipped after an fp16 overflow
    losses_since_log: int = 0
    evaluations_since_best: int = 0
    ended: str = ""  # why, if the run is over before its plan is
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    loss_since_log: torch.Tensor = field(init=False)  # sum; on the device, because .item() would make the CPU wait
    loss_total: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Start both sums at zero, in the dtype of the losses."""
        self.model = self.model or self.raw_model
        zero = torch.zeros((), dtype=self.precision.dtype, device=self.precision.device)
        self.loss_since_log, self.loss_total = zero, zero.clone()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update: the head's, where it differs from layer to layer."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and exported: the average of the weights, where there is one."""
        return self.raw_model if self.average is None else self.average.module

    def update_average(self) -> None:
        """Take the weights after one more update into their average."""
        if self.average is not None:
            self.average.update_parameters(self.raw_model)

    @property
    def train_seconds(self) -> float:
        """Seconds spent training, without evaluations and saves."""
        return self.seconds["data"] + self.seconds["compute"]

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes to `part`, one of PARTS."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def count_update(self, loss: torch.Tensor, applied: bool) -> None:
        """Record one update: its mean loss, and whether it changed the weights."""
        self.step += 1
        self.skipped += not applied
        self.losses_since_log += 1
        self.loss_since_log = self.loss_since_log + loss
        self.loss_total = self.loss_total + loss

    def take_logged_loss(self) -> float:
        """Mean loss of the updates since the last call, which is what the Trainer logs."""
        mean = self.loss_since_log.item() / self.losses_since_log
        self.loss_since_log, self.losses_since_log = torch.zeros_like(self.loss_since_log), 0
        return mean

    def update_best(self, metrics: Metrics) -> bool:
        """Remember this evaluation if it is the best so far; returns whether it is."""
        value = metrics.values[self.best.metric]
        if not self.best.improved_by(value):
            self.evaluations_since_best += 1
            return False
        self.best.value, self.best.step, self.evaluations_since_best = value, self.step, 0
        return True

    def time_is_up(self) -> bool:
        """Whether --max_time has passed; the same answer in every process."""
        most = self.early_end.max_seconds
        return most is not None and bool(all_reduce_max(int(sum(self.seconds.values()) >= most)))

    def end_early(self, metrics: Metrics) -> None:
        """Set `ended` to the reason if the run is over after this evaluation."""
        self.ended = self.early_end.reason(metrics.values, self.evaluations_since_best, self.time_is_up())


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights: of the first update the weights, and from then on
    decay * average + (1 - decay) * weights.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
