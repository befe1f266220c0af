import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.loader import Plan
from models.vit import load_model
from train import health
from train.health import NonFiniteError
from train.loop import train_step
from train.optim import build_optimizer, build_scheduler
from train.precision import Precision
from train.state import Best, TrainState

CPU = torch.device("cpu")


class Plain(nn.Module):
    """The uint8 pixels as they are, in the network's dtype."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.dtype = dtype

    def forward(self, pixels):
        return pixels.to(self.dtype) / 255


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return load_model("builtin:tiny", ["a", "b", "c"]).network.to(dtype)


def images(count):
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(0, 3, (count,), generator=generator),
        "index": torch.arange(count),
    }


def cut(batch, sizes):
    pieces = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [16], [1] * 16, [4, 4, 4, 2], [4, 4, 2], [3, 7, 1]])
def test_a_window_gives_the_update_of_its_images_however_it_is_cut(sizes):
    batch = images(sum(sizes))
    ways = []
    for pieces in (cut(batch, sizes), [batch]):
        model = network()
        optimizer = build_optimizer(model, "sgd", None, 0.1, 0.0)
        step = train_step(model, pieces, sum(sizes), optimizer, Precision("fp64", CPU), Plain(), 1.0)
        ways.append((step, torch.cat([parameter.flatten() for parameter in model.parameters()])))
    (one, weights), (whole, expected) = ways
    assert one.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)
    assert one.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-12)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-13)


def test_an_update_is_that_of_ten_plain_lines():
    batch, model, plain = images(6), network(), network()
    optimizer = build_optimizer(model, "adamw", None, 1e-2, 0.1)
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in plain.named_parameters() if not (n.endswith("bias") or "norm" in n)]},
            {
                "params": [p for n, p in plain.named_parameters() if n.endswith("bias") or "norm" in n],
                "weight_decay": 0,
            },
        ],
        lr=1e-2,
        weight_decay=0.1,
    )
    for _ in range(3):
        step = train_step(model, [batch], 6, optimizer, Precision("fp64", CPU), Plain(), 0.1)
        loss = F.cross_entropy(plain(batch["pixel_values"].double() / 255).logits, batch["labels"])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
        reference.zero_grad()
        assert step.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        assert step.grad_norm.item() == pytest.approx(norm.item(), rel=1e-10) and norm > 0.1
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_norm_of_zero_does_not_clip():
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    step = train_step(
        model, [images(4)], 4, build_optimizer(model, "sgd", None, 1.0, 0.0), Precision("fp64", CPU), Plain(), 0
    )
    moved = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(model.parameters(), before, strict=True)))
    assert moved == pytest.approx(step.grad_norm.item(), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(bad):
    model = network()
    with torch.no_grad():
        model.classifier.bias[0] = bad
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, precision = build_optimizer(model, "adamw", None, 1e-2, 0.0), Precision("fp64", CPU)
    train_step(model, cut(images(5), [3, 2]), 5, optimizer, precision, Plain(), 1.0)
    with pytest.raises(NonFiniteError, match="the loss is") as caught:
        precision.health.check(8)
    assert caught.value.update == 8
    assert all(
        torch.equal(tensor, before[name]) or name == "classifier.bias" for name, tensor in model.state_dict().items()
    )
    assert not optimizer.state


def test_a_gradient_that_is_no_number_stops_too():
    model = network()
    model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    optimizer, precision = build_optimizer(model, "sgd", None, 1.0, 0.0), Precision("fp64", CPU)
    train_step(model, [images(2)], 2, optimizer, precision, Plain(), 1.0)
    with pytest.raises(NonFiniteError, match="gradient norm is inf"):
        precision.health.check(1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adagrad"])
def test_a_device_that_is_not_asked_refuses_the_bad_update_and_all_after_it(name, monkeypatch):
    """As on CUDA: the host looks three updates later, and finds weights and optimizer as the bad one found them."""
    fused = lambda optimizer: optimizer.defaults["fused"]  # noqa: E731 - torch's fused kernels on a CPU know it, too
    monkeypatch.setattr(health, "refuses_on_device", fused)
    model, precision, after = network(torch.float32), Precision("fp32", CPU), {}
    optimizer = build_optimizer(model, name, None, 1e-2, 0.1)
    for update in range(1, 7):
        poison = model.classifier.weight.register_hook(
            lambda gradient, by=math.nan if update == 4 else 1: gradient * by
        )
        train_step(model, [images(3)], 3, optimizer, precision, Plain(torch.float32), 1.0)
        poison.remove()
        state = [value for values in optimizer.state.values() for value in values.values() if value is not None]
        after[update] = [tensor.clone() for tensor in (*model.state_dict().values(), *state)]
    same = [all(map(torch.equal, after[update], after[update + 1])) for update in range(1, 6)]
    assert same == [False, False, True, True, True]
    with pytest.raises(NonFiniteError, match="the gradient norm is nan") as caught:
        precision.health.check(6)
    assert caught.value.update == 4


def test_an_update_reads_nothing_back_from_its_device(monkeypatch):
    """Each of these calls would make the host wait for a GPU."""
    monkeypatch.setattr(health, "refuses_on_device", lambda optimizer: True)
    model, precision = network(torch.float32), Precision("fp32", CPU)
    optimizer = build_optimizer(model, "adamw", None, 1e-2, 0.0)
    for reads in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, reads, lambda *_, reads=reads: pytest.fail(f"{reads} in the step"))
    train_step(model, cut(images(5), [3, 2]), 5, optimizer, precision, Plain(torch.float32), 1.0)


def test_an_fp16_overflow_moves_neither_weights_nor_schedule():
    """The scaler itself is the same on every device; the CPU runs it here, CUDA in test_gpu."""
    model = network(torch.float32)
    precision = Precision("fp32", CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=True)
    optimizer = build_optimizer(model, "adamw", None, 1e-2, 0.0)
    scheduler = build_scheduler(optimizer, "linear", None, 0, 10)
    state = TrainState(model, optimizer, scheduler, precision, Best("loss", False))
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = train_step(model, [images(4)], 4, optimizer, precision, Plain(torch.float32), 1.0)
    state.count_update(step.loss, step.applied)
    assert not step.applied and state.skipped == 1 and precision.scaler.get_scale() == 2.0**3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    poison.remove()
    assert train_step(model, [images(4)], 4, optimizer, precision, Plain(torch.float32), 1.0).applied
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_scaling_does_not_change_the_update():
    ways = []
    for enabled in (False, True):
        model, precision = network(torch.float32), Precision("fp32", CPU)
        precision.scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        step = train_step(
            model, [images(4)], 4, build_optimizer(model, "sgd", None, 0.1, 0.0), precision, Plain(torch.float32), 1.0
        )
        ways.append((step.loss.item(), step.grad_norm.item(), model.classifier.weight.detach()))
    assert ways[0][:2] == pytest.approx(ways[1][:2], rel=1e-6) and torch.allclose(ways[0][2], ways[1][2], atol=1e-7)


def test_the_best_is_strictly_better_and_a_tie_keeps_the_earlier():
    low = Best("loss", greater_is_better=False)
    assert low.improved_by(1.0) and not low.improved_by(math.nan)
    low = replace(low, value=1.0)
    assert low.improved_by(0.9) and not low.improved_by(1.0) and not low.improved_by(1.1)
    high = Best("accuracy", greater_is_better=True, value=0.5)
    assert high.improved_by(0.6) and not high.improved_by(0.5) and not high.improved_by(0.4)


@pytest.mark.parametrize(("samples", "batch", "accumulation"), [(1034, 16, 1), (1034, 4, 4), (10, 3, 2), (7, 7, 3)])
def test_epochs_are_counted_as_the_trainer_counts_them(samples, batch, accumulation):
    plan = Plan(samples, batch, accumulation, 1000, 42)
    assert plan.epoch(plan.updates_per_epoch) == 1 and plan.epoch(3 * plan.updates_per_epoch) == 3
    assert 0 < plan.epoch(1) <= 1
