"""What only CUDA can show. Run with `pytest -m gpu` where there is a GPU."""

import json
import math

import pytest
import torch

from tests.making import make_optimizer
from tests.running import run_here
from tests.train.test_loop import images, network, step
from train.errors import NonFiniteError
from train.precision import Precision
from train.system.device import choose_precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_auto_on_cuda_is_fp16_with_a_scaler():
    name, _ = choose_precision("auto", torch.device("cuda"))
    assert name == "fp16" and Precision(name, torch.device("cuda")).scaler.is_enabled()


def test_an_injected_overflow_moves_no_weight_and_lowers_the_scale():
    device = torch.device("cuda")
    model = network(torch.float32).to(device)
    precision = Precision("fp16", device)
    optimizer = make_optimizer(model, "adamw", None, 1e-2, 0.0)
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = {name: tensor.to(device) for name, tensor in images(4).items()}
    assert not step(model, [batch], 4, optimizer, precision).applied
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert precision.scaler.get_scale() == 2.0**15
    poison.remove()
    assert step(model, [batch], 4, optimizer, precision).applied


def on_cuda(name):
    device = torch.device("cuda")
    model, precision = network(torch.float32).to(device), Precision(name, device)
    batch = {key: tensor.to(device) for key, tensor in images(4).items()}
    return model, precision, make_optimizer(model, "adamw", None, 1e-2, 0.1), batch


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_cpu_does_not_wait_for_an_update(name):
    model, precision, optimizer, batch = on_cuda(name)
    step(model, [batch], 4, optimizer, precision)  # the first one loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, [batch], 4, optimizer, precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    precision.raise_if_not_finite(2)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_gpu_refuses_a_nan_and_all_updates_after_it(name):
    model, precision, optimizer, batch = on_cuda(name)
    step(model, [batch], 4, optimizer, precision)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.nan)
    step(model, [batch], 4, optimizer, precision)
    poison.remove()
    step(model, [batch], 4, optimizer, precision)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(NonFiniteError, match="the gradient norm is nan") as caught:
        precision.raise_if_not_finite(3)
    assert caught.value.update == 2


def test_the_leaves_are_learnt_in_fp16(tmp_path):
    out = tmp_path / "run"
    assert run_here("--preset", "leaves", "--device", "cuda", "--output_dir", out) == 0
    assert json.loads((out / "run.json").read_text())["precision"] == "fp16"
    assert json.loads((out / "eval_results.json").read_text())["eval_accuracy"] >= 0.95
