"""Frozen parts, recomputed activations and other families over several processes, beside one."""

import pytest
import torch

from models.family import FAMILIES
from models.loading import load_model
from tests.checkpoints import small_checkpoint
from tests.reliability.groups import start_group
from tests.reliability.harness import finish
from tests.running import records, run_here, weights

LEAVES = ["angular_leaf_spot", "bean_rust", "healthy"]
EXACT = (
    *("--preset", "debug", "--max_train_samples", 20, "--max_eval_samples", 8, "--precision", "fp64"),
    *("--logging_steps", 1, "--eval_steps", 3, "--save_steps", 3, "--max_steps", 6, "--weight_decay", 0.1),
)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("vit", ("--freeze", "backbone")),
        ("deit", ("--freeze", 1, "--gradient_checkpointing", "true")),
        ("dinov2", ("--image_size", 48, "--gradient_checkpointing", "true")),
        ("dinov2_with_registers", ("--freeze", 2)),
    ],
)
def test_two_processes_train_the_same_as_one(family, flags, how, tmp_path):
    flags = (*EXACT, "--model", small_checkpoint(family, tmp_path / "model", LEAVES), *flags, "--output_dir")
    assert run_here(*flags, tmp_path / "alone", "--per_device_train_batch_size", 8) == 0
    sharded = ("--fsdp", "true") if how == "fsdp" else ()
    group = (*flags, tmp_path / how, "--per_device_train_batch_size", 4, *sharded)
    log = tmp_path / "log"
    assert finish(start_group((*group, "--stop_after", 3), log=log)) == 0, log.read_text()
    assert finish(start_group(("--output_dir", tmp_path / how, "--resume_from_checkpoint", "auto"), log=log)) == 0
    for one, other in zip(records(tmp_path / how), records(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    alone = weights(tmp_path / "alone")
    for name, tensor in weights(tmp_path / how).items():
        assert torch.allclose(tensor, alone[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles_with_frozen_parts_and_recomputed_activations(family, tmp_path, capsys):
    flags = ("--model", small_checkpoint(family, tmp_path / "model", LEAVES), "--freeze", 1)
    # Not AdamW: it makes full steps of the last bits of a gradient that is zero, as that of the keys' biases is.
    flags = (
        *EXACT,
        *flags,
        "--precision",
        "fp32",
        "--optim",
        "sgd",
        "--gradient_checkpointing",
        "true",
        "--output_dir",
    )
    assert run_here(*flags, tmp_path / "eager") == 0
    assert run_here(*flags, tmp_path / "compiled", "--torch_compile", "on") == 0
    assert "torch.compile on" in capsys.readouterr().out
    before = load_model(str(tmp_path / "model"), LEAVES).model.state_dict()
    after = load_model(str(tmp_path / "compiled"), LEAVES).model.state_dict()
    frozen = {name for name in before if ".embeddings." in name}
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    for name, tensor in weights(tmp_path / "eager").items():
        assert torch.allclose(weights(tmp_path / "compiled")[name], tensor, atol=1e-4), name
