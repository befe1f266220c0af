"""R14: windows, batches and schedules of any geometry against a plain reference in float64."""

import math
import random

import torch
import torch.nn.functional as F
from torch import nn

from data.plan import Plan
from tests.making import make_optimizer, make_schedule
from tests.reliability.harness import Report, draw
from train.config.schema import RecipeConfig, RunConfig
from train.loop import train_step
from train.precision import Precision
from train.setup.inputs import make_plan
from train.state import Best, TrainState


class Toy(nn.Module):
    """A network whose answer is a linear map of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.classifier = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.randn(3, 3, generator=generator))
            self.classifier.bias.zero_()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, 1, 1] -> logits [n, 3]."""
        return self.classifier(pixels.flatten(1))


def _reference(pixels: torch.Tensor, labels: torch.Tensor, plan: Plan, train: RecipeConfig, total: int) -> list[float]:
    """The losses of a loop that knows no micro-batches: a whole window is one batch; linear to 0; plain AdamW."""
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.learning_rate, weight_decay=0.0)
    window = plan.batch_size * plan.accumulation
    losses, epoch = [], 0
    while len(losses) < total:
        order = torch.randperm(plan.samples, generator=torch.Generator().manual_seed(plan.seed + epoch))
        kept = plan.samples // plan.batch_size * plan.batch_size if plan.drop_last else plan.samples
        for rows in (order[:kept] if kept else order[: plan.batch_size]).split(window):
            if len(losses) == total:
                break
            update = len(losses)
            warmup = int(train.warmup_steps)
            factor = update / max(1, warmup) if update < warmup else (total - update) / max(1, total - warmup)
            optimizer.param_groups[0]["lr"] = train.learning_rate * max(0.0, factor)
            loss = F.cross_entropy(model(pixels[rows]), labels[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        epoch += 1
    return losses


def _ours(pixels: torch.Tensor, labels: torch.Tensor, plan: Plan, train: RecipeConfig, total: int) -> list[float]:
    model, precision = Toy(), Precision("fp64", torch.device("cpu"))
    optimizer = make_optimizer(model, train.optim, None, train.learning_rate, 0.0)
    schedule = make_schedule(optimizer, "linear", None, train.warmup_steps, total)
    state = TrainState(model, optimizer, schedule, precision, Best("loss", False))
    losses = []
    for update in range(1, total + 1):
        batches = []
        for keys in plan.micro_batches(update):
            rows = torch.tensor([index for _, index in keys])
            batches.append({"pixel_values": pixels[rows], "labels": labels[rows], "index": rows})
        step = train_step(state, batches, plan.samples_in(update), train.max_grad_norm)
        schedule.step()
        losses.append(step.loss.item())
    return losses


def _geometry(rng: random.Random) -> tuple[RecipeConfig, int, bool]:
    train = RecipeConfig(
        per_device_train_batch_size=rng.randint(1, 7),
        gradient_accumulation_steps=rng.randint(1, 5),
        num_train_epochs=rng.choice([0.3, 1.0, 1.5, 2.0, 3.7]),
        max_steps=rng.choice([-1, -1, rng.randint(1, 20)]),
        warmup_steps=rng.choice([0, 0, 3]),
        learning_rate=10 ** rng.uniform(-3, -1),
        max_grad_norm=rng.choice([0.1, 1.0, 100.0]),
    )
    return train, rng.randint(1, 40), rng.random() < 0.2


def schedules_and_windows(trials: int, seed: int) -> Report:
    """So many random geometries: the same number of updates as the Trainer's rule, the same losses to 1e-10."""
    report, rng = Report("R14 windows and schedules", facts={"seed": seed}), draw(seed)
    for trial in range(trials):
        train, samples, drop_last = _geometry(rng)
        generator = torch.Generator().manual_seed(trial)
        pixels = torch.randn(samples, 3, 1, 1, dtype=torch.float64, generator=generator)
        labels = torch.randint(0, 3, (samples,), generator=generator)
        plan = make_plan(train, samples, RunConfig(seed=42), drop_last)
        batches = max(1, samples // plan.batch_size) if drop_last else math.ceil(samples / plan.batch_size)
        per_epoch = batches // plan.accumulation + (batches % plan.accumulation > 0)
        total = train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * per_epoch)
        expected = _reference(pixels, labels, plan, train, total)
        found = _ours(pixels, labels, plan, train, plan.total_updates)
        right = len(found) == len(expected) and all(
            math.isclose(one, other, rel_tol=1e-10, abs_tol=1e-12) for one, other in zip(found, expected, strict=True)
        )
        report.check(right, f"trial {trial}: {samples} images, {train}")
    return report
