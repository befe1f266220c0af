import pytest
import torch

from train.errors import ConfigError
from train.precision import Precision
from train.system.device import choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_bf16_only_where_the_processor_has_a_unit_for_it(monkeypatch):
    has_unit = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    usable = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")
    name, reason = choose_precision("auto", CPU)
    assert name == ("bf16" if has_unit and usable else "fp32") and reason
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_precision("auto", CPU)[0] == "fp32"


def test_fp16_on_a_cpu_is_refused_not_replaced():
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("asked", ["cuda:99", "gpu", "quantum", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_in_one_line(asked):
    with pytest.raises(ConfigError) as caught:
        choose_device(asked)
    assert f"--device {asked}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "inside"),
    [("fp32", torch.float32, torch.float32), ("bf16", torch.float32, torch.bfloat16), ("fp64", torch.float64, None)],
)
def test_weights_stay_wide_and_products_are_narrow(name, weights, inside):
    precision = Precision(name, CPU)
    assert precision.dtype == weights and not precision.scaler.is_enabled()
    layer = torch.nn.Linear(2, 2, dtype=precision.dtype)
    with precision.autocast():
        assert layer(torch.ones(1, 2, dtype=precision.dtype)).dtype == (inside or torch.float64)
