"""What only CUDA can show. Run with `pytest -m gpu` where there is a GPU."""

import json
import math

import pytest
import torch

from models.vit import load_model
from tests.running import run_here
from tests.test_loop import Plain, images
from train.health import NonFiniteError
from train.loop import train_step
from train.optim import build_optimizer
from train.precision import Precision, choose_precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_auto_on_cuda_is_fp16_with_a_scaler():
    name, _ = choose_precision("auto", torch.device("cuda"))
    assert name == "fp16" and Precision(name, torch.device("cuda")).scaler.is_enabled()


def test_an_injected_overflow_moves_no_weight_and_lowers_the_scale():
    device = torch.device("cuda")
    model = load_model("builtin:tiny", ["a", "b", "c"]).network.to(device)
    precision = Precision("fp16", device)
    optimizer = build_optimizer(model, "adamw", None, 1e-2, 0.0)
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = {name: tensor.to(device) for name, tensor in images(4).items()}
    assert not train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0).applied
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert precision.scaler.get_scale() == 2.0**15
    poison.remove()
    assert train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0).applied


def on_cuda(name):
    device = torch.device("cuda")
    model, precision = load_model("builtin:tiny", ["a", "b", "c"]).network.to(device), Precision(name, device)
    batch = {key: tensor.to(device) for key, tensor in images(4).items()}
    return model, precision, build_optimizer(model, "adamw", None, 1e-2, 0.1), batch


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_host_does_not_wait_for_an_update(name):
    model, precision, optimizer, batch = on_cuda(name)
    train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0)  # the first one loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    precision.health.check(2)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_gpu_refuses_what_is_no_number_and_all_after_it(name):
    model, precision, optimizer, batch = on_cuda(name)
    train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    poison = model.classifier.weight.register_hook(lambda gradient: gradient * math.nan)
    train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0)
    poison.remove()
    train_step(model, [batch], 4, optimizer, precision, Plain(torch.float32), 1.0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(NonFiniteError, match="the gradient norm is nan") as caught:
        precision.health.check(3)
    assert caught.value.update == 2


def test_the_leaves_are_learnt_in_fp16(tmp_path):
    out = tmp_path / "run"
    assert run_here("--preset", "leaves", "--device", "cuda", "--output_dir", out) == 0
    assert json.loads((out / "run.json").read_text())["precision"] == "fp16"
    assert json.loads((out / "eval_results.json").read_text())["eval_accuracy"] >= 0.95
