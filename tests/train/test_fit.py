"""`fit` itself: what it reports, when, and in which state. Network and pipeline are real; only the output is a spy."""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.loading.loader import Images
from data.pipeline import LoadingOptions, dataset_pipeline
from data.plan import Plan
from models.loading import load_model
from tests.making import make_optimizer, make_schedule
from train.config.schema import RecipeConfig
from train.errors import NonFiniteError
from train.loop import fit
from train.precision import Precision
from train.state import Best, TrainState

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]
LR = 0.1
NEVER = 10**6  # updates


class Call(NamedTuple):
    """One call of a method of the output: which, after how many updates, and what it was told."""

    name: str
    step: int
    told: tuple


class Spy:
    """Stands where the log and the checkpoints of a run are."""

    def __init__(self):
        self.calls, self.weights, self.updates = [], {}, 0

    def advance(self, images):
        self.updates += 1
        self.calls.append(Call("advance", self.updates, (images,)))

    def log_training(self, state, epoch, loss, grad_norm, learning_rate):
        self.weights[state.step] = copy_of(state)
        self.calls.append(Call("training", state.step, (epoch, loss, grad_norm, learning_rate)))

    def log_evaluation(self, state, epoch, metrics, improved):
        self.calls.append(Call("evaluation", state.step, (metrics.values["loss"], improved)))

    def save_checkpoint(self, state):
        self.calls.append(Call("save", state.step, (state.best.step,)))

    def steps(self, name):
        return [call.step for call in self.calls if call.name == name]

    def told(self, name, which):
        return [call.told[which] for call in self.calls if call.name == name]


class WithDropout(nn.Module):
    """A network whose result depends on torch's generator, too."""

    def __init__(self, model):
        super().__init__()
        self.model, self.vit = model, model.vit

    def forward(self, pixels):
        return F.dropout(self.model(pixels), 0.5, self.training)


def make_run(schedule="linear", arguments=None, total=6, lr=LR, precision=None, best=None, **plan):
    """A state and a pipeline for it. All twelve training images are of the first class."""
    torch.manual_seed(1)
    precision = precision or Precision("fp32", CPU)
    model = load_model("builtin:tiny", NAMES).model
    model.vit.to(precision.dtype)
    optimizer = make_optimizer(model, "sgd", None, lr)
    schedule = make_schedule(optimizer, schedule, arguments, total=total)
    state = TrainState(model, optimizer, schedule, precision, best or Best("loss", greater_is_better=False))
    return state, make_data(total, **plan)


def make_data(total=6, of_class=0, samples=12, batch_size=4, accumulation=1, **plan):
    """Twelve images in memory; the validation images are of one class."""
    pixels = torch.randint(0, 256, (samples, 3, 32, 32), generator=torch.manual_seed(2), dtype=torch.uint8)
    train, validation = Images(pixels, [0] * samples), Images(pixels[:3], [of_class] * 3)
    plan = Plan(samples, batch_size, accumulation, total, seed=7, **plan)
    return dataset_pipeline(train, validation, plan, CPU, NAMES, LoadingOptions(eval_batch_size=3), print)


def recipe(log=NEVER, evaluate=NEVER, save=None, **options):
    return RecipeConfig(logging_steps=log, eval_steps=evaluate, save_steps=save or evaluate * NEVER, **options)


def never_better():
    """As if an evaluation had been perfect, so that only the recipe makes `fit` save."""
    return Best("loss", greater_is_better=False, value=-1.0)


def copy_of(state):
    return {name: tensor.clone() for name, tensor in state.raw_model.state_dict().items()}


def weights_after(updates, total=6):
    """Those of a run in which nothing goes wrong."""
    state, data = make_run(total=total, stop_after=updates)
    fit(state, data, recipe(), Spy())
    return copy_of(state)


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


def spoil(state, at, by):
    """Multiply a gradient of the backward pass with that number (from 1)."""
    passes = iter(range(1, NEVER))
    state.raw_model.vit.classifier.weight.register_hook(lambda gradient: gradient * (by if next(passes) == at else 1))


def test_a_run_reports_in_the_order_in_which_things_happen():
    state, data = make_run(total=4)
    spy = Spy()
    fit(state, data, recipe(log=2, evaluate=3), spy)
    assert [call[:2] for call in spy.calls] == [
        ("advance", 1),
        ("advance", 2),
        ("training", 2),
        ("advance", 3),
        ("evaluation", 3),
        ("save", 3),
        ("advance", 4),
        ("training", 4),
        ("evaluation", 4),
        ("save", 4),
    ]


def test_a_run_that_gets_better_has_its_last_evaluation_as_the_best():
    state, data = make_run(total=5)
    spy = Spy()
    fit(state, data, recipe(evaluate=3), spy)
    assert spy.steps("evaluation") == [3, 5] and spy.told("evaluation", 1) == [True, True]
    assert state.best.step == 5 and state.best.value == spy.told("evaluation", 0)[1]


def test_a_run_that_gets_worse_keeps_its_first_evaluation_and_saves_that_at_once():
    state, data = make_run(total=6, of_class=1)
    spy = Spy()
    fit(state, data, recipe(evaluate=2), spy)
    assert spy.steps("evaluation") == [2, 4, 6] and spy.told("evaluation", 1) == [True, False, False]
    assert state.best.step == 2 and state.best.value == spy.told("evaluation", 0)[0]
    assert spy.steps("save") == [2, 6] and spy.told("save", 0) == [2, 2]  # each knows which one is the best


def test_a_record_has_the_mean_loss_since_the_last_and_the_rate_of_its_update():
    every, some = Spy(), Spy()
    for spy, steps in ((every, 1), (some, 2)):
        state, data = make_run(total=5)
        fit(state, data, recipe(log=steps), spy)
    assert every.steps("training") == [1, 2, 3, 4, 5] and some.steps("training") == [2, 4, 5]
    losses = every.told("training", 1)
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert some.told("training", 1) == pytest.approx(means, rel=1e-6)
    assert every.told("training", 0) == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    norms = every.told("training", 2)
    assert some.told("training", 2) == [norms[1], norms[3], norms[4]]
    assert every.told("training", 3) == pytest.approx([LR * part / 5 for part in (5, 4, 3, 2, 1)])
    assert state.loss_total.item() == pytest.approx(sum(losses), rel=1e-6)


def test_checkpoints_come_at_the_multiples_and_at_the_end():
    state, data = make_run(total=7, best=never_better())
    spy = Spy()
    fit(state, data, recipe(evaluate=1, save=3), spy)
    assert spy.steps("save") == [3, 6, 7] and not any(spy.told("evaluation", 1))


def test_a_stop_after_an_update_saves_and_returns():
    state, data = make_run()
    spy, answers = Spy(), iter([False, True])
    fit(state, data, recipe(), spy, lambda: next(answers))
    assert [call[:2] for call in spy.calls] == [("advance", 1), ("advance", 2), ("save", 2)] and state.step == 2


def test_a_stop_during_an_evaluation_is_heeded_as_soon_as_it_ends():
    state, data = make_run(best=never_better())
    spy, answers = Spy(), iter([False, False, True])  # after update 1, after update 2, after its evaluation
    fit(state, data, recipe(evaluate=2), spy, lambda: next(answers))
    assert [call.name for call in spy.calls] == ["advance", "advance", "evaluation", "save"] and state.step == 2


def test_stop_after_saves_without_evaluating_and_keeps_the_schedule_of_the_whole_run():
    state, data = make_run(total=6, stop_after=3)
    spy = Spy()
    fit(state, data, recipe(log=1), spy)
    assert spy.steps("save") == [3] and spy.steps("evaluation") == [] and spy.calls[-1].name == "save"
    assert spy.told("training", 3) == pytest.approx([LR, LR * 5 / 6, LR * 4 / 6])
    assert state.learning_rate == pytest.approx(LR * 3 / 6)


def test_a_run_that_goes_on_asks_for_the_rest_and_ends_in_the_bits_of_one_that_was_not_stopped():
    ends, asked = [], []
    for stops in ([None], [2, None], [1, 4, None]):
        state, _ = make_run()
        state.model = WithDropout(state.raw_model)
        for stop_after in stops:
            data = make_data(stop_after=stop_after)
            noted = lambda after, data=data: asked.append(after) or data.train_batches(after)  # noqa: E731
            fit(state, replace(data, train_batches=noted), recipe(), Spy())
            torch.rand(3)  # whatever a new process draws before it goes on
        assert state.step == 6
        ends.append(copy_of(state))
    assert asked == [0, 0, 2, 0, 1, 4]
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


@pytest.mark.parametrize("stop_after", [None, 3, 2])
def test_a_run_that_is_where_it_should_stop_does_nothing(stop_after):
    state, data = make_run(total=6 if stop_after else 3, stop_after=3)
    fit(state, data, recipe(), Spy())
    before, spy = copy_of(state), Spy()
    fit(state, make_data(total=6 if stop_after else 3, stop_after=stop_after), recipe(log=1, evaluate=1), spy)
    assert spy.calls == [] and state.step == 3 and same(copy_of(state), before)


def test_an_fp16_overflow_skips_one_update_and_training_goes_on():
    state, data = make_run(total=4)
    state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    spoil(state, at=2, by=math.inf)
    spy = Spy()
    fit(state, data, recipe(log=1), spy)
    after = spy.weights
    assert same(after[1], after[2]) and not same(after[2], after[3]) and not same(after[3], after[4])
    assert spy.told("training", 3) == pytest.approx([LR, LR * 3 / 4, LR * 3 / 4, LR * 2 / 4])
    assert (state.step, state.skipped, state.schedule.steps) == (4, 1, 3)
    assert state.precision.scaler.get_scale() == 2.0**3


def test_a_nan_ends_the_run_at_its_update_with_the_weights_from_before():
    state, data = make_run()
    spoil(state, at=3, by=math.nan)
    spy = Spy()
    with pytest.raises(NonFiniteError, match="gradient norm is nan") as caught:
        fit(state, data, recipe(), spy)
    assert caught.value.update == 3 and state.step == 2 and [call.name for call in spy.calls] == ["advance"] * 2
    assert same(copy_of(state), weights_after(2))


class AskedLate(Precision):
    """As on CUDA, where asking after every update would cost time."""

    checks_every_update = False


@pytest.mark.parametrize("reason", ["log", "evaluate", "stop", "end"])
def test_a_nan_that_is_seen_late_is_seen_before_anything_is_written(reason):
    total = 4 if reason == "end" else 6
    state, data = make_run(total=total, precision=AskedLate("fp32", CPU))
    spoil(state, at=2, by=math.nan)
    steps = {reason: 4} if reason in ("log", "evaluate") else {}
    spy = Spy()
    with pytest.raises(NonFiniteError) as caught:
        fit(state, data, recipe(**steps), spy, lambda: reason == "stop" and spy.updates == 3)
    assert caught.value.update == 2
    assert [call.name for call in spy.calls] == ["advance"] * 3  # the fourth is the one that asked
    assert same(copy_of(state), weights_after(1, total))


def test_a_plateau_schedule_hears_of_every_evaluation():
    state, data = make_run("ReduceLROnPlateau", "patience=0,factor=0.5", total=6, of_class=1)
    spy = Spy()
    fit(state, data, recipe(log=1, evaluate=2), spy)
    assert spy.told("training", 3) == [LR, LR, LR, LR, LR / 2, LR / 2] and state.learning_rate == LR / 4
    assert state.schedule.scheduler.best == state.best.value == min(spy.told("evaluation", 0))


def test_a_plateau_schedule_gets_the_metric_that_chooses_the_best():
    options = ("ReduceLROnPlateau", "patience=0,factor=0.5")
    rates = {}
    for metric in ("loss", "recall/b"):  # the loss falls; of class b there is no image, so its recall stays 0
        state, data = make_run(*options, total=4, best=Best(metric, greater_is_better=False))
        fit(state, data, recipe(evaluate=2), Spy())
        rates[metric] = state.learning_rate
    assert rates == {"loss": LR, "recall/b": LR / 2}


def test_the_network_trains_in_training_mode_also_after_an_evaluation():
    state, data = make_run(total=4)
    modes = []
    state.model.eval().register_forward_hook(lambda model, *_: modes.append(model.training))
    fit(state, data, recipe(evaluate=2), Spy())
    assert modes == [True, True, False, True, True, False]


def test_each_second_is_counted_once_and_where_it_was_spent():
    class SlowSpy(Spy):
        def save_checkpoint(self, state):
            time.sleep(0.08)

    def late(batches, seconds):
        for batch in batches:
            time.sleep(seconds)
            yield batch

    state, data = make_run(total=2)
    slow = replace(
        data,
        train_batches=lambda after: late(data.train_batches(after), 0.02),
        validation_batches=lambda: late(data.validation_batches(), 0.05),
    )
    started = time.perf_counter()
    fit(state, slow, recipe(evaluate=1), SlowSpy())
    took = time.perf_counter() - started
    assert state.seconds["saving"] >= 2 * 0.08 and state.seconds["evaluation"] >= 2 * 0.05
    assert state.seconds["data"] >= 2 * 0.02 and state.seconds["compute"] > 0
    assert sum(state.seconds.values()) <= took
    assert state.train_seconds == state.seconds["data"] + state.seconds["compute"]


def test_a_run_is_the_same_however_its_windows_are_cut():
    ends, images, losses = [], [], []
    for batch_size, accumulation in ((6, 1), (3, 2), (2, 3)):
        state, data = make_run(
            total=4, precision=Precision("fp64", CPU), samples=10, batch_size=batch_size, accumulation=accumulation
        )
        spy = Spy()
        fit(state, data, recipe(log=1), spy)
        ends.append(torch.cat([parameter.flatten() for parameter in state.raw_model.parameters()]))
        images.append(spy.told("advance", 0))
        losses.append(spy.told("training", 1))
    assert images == [[6, 4, 6, 4]] * 3  # ten images, and the next epoch starts with an update of its own
    assert losses[1] == pytest.approx(losses[0], rel=1e-12) and losses[2] == pytest.approx(losses[0], rel=1e-12)
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-12) and torch.allclose(ends[0], ends[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("world", "samples", "own"), [(1, 12, 4), (2, 12, 4), (1, 3, 3)])
def test_the_loss_is_the_mean_over_the_images_of_this_process(world, samples, own):
    state, data = make_run(total=1, precision=Precision("fp64", CPU), world=world, samples=samples)
    batch = next(data.train_batches(0))
    expected = F.cross_entropy(state.model(batch["pixel_values"]), batch["labels"]).item()
    spy = Spy()
    fit(state, data, recipe(), spy)
    assert len(batch["labels"]) == own and spy.told("training", 1) == pytest.approx([expected], rel=1e-12)
    assert spy.told("advance", 0) == [own * world]


def test_gradients_are_clipped_where_the_recipe_says():
    state, data = make_run("constant", total=1, lr=1.0, precision=Precision("fp64", CPU))
    before, spy = copy_of(state), Spy()
    fit(state, data, recipe(max_grad_norm=1e-3), spy)
    after = copy_of(state)
    moved = math.sqrt(sum((after[name] - before[name]).double().square().sum().item() for name in before))
    assert moved == pytest.approx(1e-3, rel=1e-3) and spy.told("training", 2)[0] > 0.1
