import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.plan import Plan
from models.loading import load_model
from tests.making import make_optimizer, make_state
from train import precision as precision_module
from train.errors import NonFiniteError
from train.loop import train_step
from train.precision import Precision
from train.state import Best

CPU = torch.device("cpu")


class Plain(nn.Module):
    """A ViT behind a plain division by 255, with the same interface as `Classifier`."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.classifier = vit, vit.classifier

    def forward(self, pixels):
        return self.vit(pixels.to(self.vit.dtype) / 255).logits


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return Plain(load_model("builtin:tiny", ["a", "b", "c"]).model.vit.to(dtype))


def step(model, pieces, count, optimizer, precision, max_grad_norm=1.0):
    """One update of a fresh state."""
    return train_step(make_state(model, optimizer, precision), pieces, count, max_grad_norm)


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
        optimizer = make_optimizer(model, "sgd", None, 0.1, 0.0)
        result = step(model, pieces, sum(sizes), optimizer, Precision("fp64", CPU), 1.0)
        ways.append((result, torch.cat([parameter.flatten() for parameter in model.parameters()])))
    (one, weights), (whole, expected) = ways
    assert one.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)
    assert one.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-12)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-13)


def test_an_update_is_that_of_ten_plain_lines():
    batch, model, plain = images(6), network(), network()
    optimizer = make_optimizer(model, "adamw", None, 1e-2, 0.1)
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
        result = step(model, [batch], 6, optimizer, Precision("fp64", CPU), 0.1)
        loss = F.cross_entropy(plain(batch["pixel_values"]), batch["labels"])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
        reference.zero_grad()
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-10) and norm > 0.1
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_norm_of_zero_does_not_clip():
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    result = step(model, [images(4)], 4, make_optimizer(model, "sgd", None, 1.0, 0.0), Precision("fp64", CPU), 0)
    moved = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(model.parameters(), before, strict=True)))
    assert moved == pytest.approx(result.grad_norm.item(), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(bad):
    model = network()
    with torch.no_grad():
        model.classifier.bias[0] = bad
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, precision = make_optimizer(model, "adamw", None, 1e-2, 0.0), Precision("fp64", CPU)
    step(model, cut(images(5), [3, 2]), 5, optimizer, precision, 1.0)
    with pytest.raises(NonFiniteError, match="the loss is") as caught:
        precision.raise_if_not_finite(8)
    assert caught.value.update == 8
    assert all(
        torch.equal(tensor, before[name]) or name.endswith("classifier.bias")
        for name, tensor in model.state_dict().items()
    )
    assert not optimizer.state


def test_a_gradient_that_is_no_number_stops_too():
    model = network()
    model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    optimizer, precision = make_optimizer(model, "sgd", None, 1.0, 0.0), Precision("fp64", CPU)
    step(model, [images(2)], 2, optimizer, precision, 1.0)
    with pytest.raises(NonFiniteError, match="gradient norm is inf"):
        precision.raise_if_not_finite(1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adagrad"])
def test_a_device_that_is_not_asked_refuses_the_bad_update_and_all_after_it(name, monkeypatch):
    """As on CUDA: the host looks three updates later, and finds weights and optimizer as the bad one found them."""
    fused = lambda optimizer: optimizer.defaults["fused"]  # noqa: E731 - torch's fused kernels on a CPU know it, too
    monkeypatch.setattr(precision_module, "can_skip_on_device", fused)
    model, precision, after = network(torch.float32), Precision("fp32", CPU), {}
    optimizer = make_optimizer(model, name, None, 1e-2, 0.1)
    for update in range(1, 7):
        poison = model.classifier.weight.register_hook(
            lambda gradient, by=math.nan if update == 4 else 1: gradient * by
        )
        step(model, [images(3)], 3, optimizer, precision, 1.0)
        poison.remove()
        state = [value for values in optimizer.state.values() for value in values.values() if value is not None]
        after[update] = [tensor.clone() for tensor in (*model.state_dict().values(), *state)]
    same = [all(map(torch.equal, after[update], after[update + 1])) for update in range(1, 6)]
    assert same == [False, False, True, True, True]
    with pytest.raises(NonFiniteError, match="the gradient norm is nan") as caught:
        precision.raise_if_not_finite(6)
    assert caught.value.update == 4


def test_an_update_reads_nothing_back_from_its_device(monkeypatch):
    """Each of these calls would make the host wait for a GPU."""
    monkeypatch.setattr(precision_module, "can_skip_on_device", lambda optimizer: True)
    model, precision = network(torch.float32), Precision("fp32", CPU)
    optimizer = make_optimizer(model, "adamw", None, 1e-2, 0.0)
    for reads in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, reads, lambda *_, reads=reads: pytest.fail(f"{reads} in the step"))
    step(model, cut(images(5), [3, 2]), 5, optimizer, precision, 1.0)


def test_an_fp16_overflow_moves_neither_weights_nor_schedule():
    """The scaler itself is the same on every device; the CPU runs it here, CUDA in test_gpu."""
    model = network(torch.float32)
    precision = Precision("fp32", CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=True)
    optimizer = make_optimizer(model, "adamw", None, 1e-2, 0.0)
    state = make_state(model, optimizer, precision)
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train_step(state, [images(4)], 4, 1.0)
    state.count_update(result.loss, result.applied)
    assert not result.applied and state.skipped == 1 and precision.scaler.get_scale() == 2.0**3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    poison.remove()
    assert step(model, [images(4)], 4, optimizer, precision, 1.0).applied
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_scaling_does_not_change_the_update():
    ways = []
    for enabled in (False, True):
        model, precision = network(torch.float32), Precision("fp32", CPU)
        precision.scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        result = step(model, [images(4)], 4, make_optimizer(model, "sgd", None, 0.1, 0.0), precision, 1.0)
        ways.append((result.loss.item(), result.grad_norm.item(), model.classifier.weight.detach()))
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
