"""What happens to the weights beside the update: averages, and learning rates by layer."""

import json

import pytest
import torch
from safetensors.torch import load_file

from data.reading.leaves import LABEL_NAMES
from models.loading import load_model
from tests.making import make_schedule
from tests.running import records, run_here, same_tensors, weights
from train.checkpoint.manifest import RAW_WEIGHTS
from train.config.schema import RecipeConfig
from train.errors import ConfigError
from train.optim import build_optimizer

DEBUG = ("--preset", "debug", "--max_train_samples", 24, "--max_eval_samples", 6, "--max_steps", 6)
EACH = ("--eval_steps", 1, "--save_steps", 1, "--save_total_limit", 9)


def test_the_average_is_its_formula_and_is_what_is_evaluated(tmp_path):
    out = tmp_path / "run"
    assert run_here(*DEBUG, *EACH, "--precision", "fp64", "--ema", 0.8, "--output_dir", out) == 0
    expected = None
    for step in range(1, 7):
        folder = out / f"checkpoint-{step}"
        raw = load_file(folder / RAW_WEIGHTS)
        expected = raw if expected is None else {n: 0.8 * expected[n] + 0.2 * raw[n] for n in raw}
        saved = load_model(str(folder), list(LABEL_NAMES), dtype=torch.float64).model.state_dict()
        for name, value in expected.items():
            assert torch.allclose(saved[name], value, rtol=1e-12, atol=1e-15), (step, name)
        assert step == 1 or not saved["vit.classifier.weight"].equal(raw["vit.classifier.weight"])
    results, best = json.loads((out / "eval_results.json").read_text()), records(out)
    assert results["eval_loss"] == min(line["eval_loss"] for line in best if "eval_loss" in line)


def test_training_itself_does_not_see_the_average(tmp_path):
    for name, flags in (("plain", ()), ("average", ("--ema", 0.8))):
        assert run_here(*DEBUG, *EACH, *flags, "--output_dir", tmp_path / name) == 0
    plain = load_model(str(tmp_path / "plain" / "checkpoint-6"), list(LABEL_NAMES)).model.state_dict()
    assert same_tensors(load_file(tmp_path / "average" / "checkpoint-6" / RAW_WEIGHTS), plain)
    assert not (tmp_path / "plain" / "checkpoint-6" / RAW_WEIGHTS).exists()


@pytest.mark.parametrize("save", ["true", "false"])
def test_a_run_with_an_average_resumes_to_the_same_bits(save, tmp_path):
    flags = (*DEBUG, "--ema", 0.9, "--eval_steps", 2, "--save_steps", 2, "--async_save", save, "--output_dir")
    assert run_here(*flags, tmp_path / "whole") == 0
    assert run_here(*flags, tmp_path / "broken", "--stop_after", 3) == 0
    assert run_here(*flags, tmp_path / "broken", "--resume_from_checkpoint", "auto") == 0
    assert same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")
    last = [tmp_path / name / "checkpoint-6" / RAW_WEIGHTS for name in ("whole", "broken")]
    assert same_tensors(*map(load_file, last))


def test_an_average_whose_weights_are_lost_is_one_line(tmp_path, capsys):
    flags = (*DEBUG, "--ema", 0.9, "--output_dir", tmp_path / "run")
    assert run_here(*flags, "--stop_after", 3) == 0
    (tmp_path / "run" / "checkpoint-3" / RAW_WEIGHTS).unlink()
    assert run_here(*flags, "--resume_from_checkpoint", "auto") == 2
    assert f"{RAW_WEIGHTS} is missing" in capsys.readouterr().out


def test_learning_rates_fall_by_layer():
    model = load_model("builtin:small", list(LABEL_NAMES)).model  # three blocks
    plain = build_optimizer(model, RecipeConfig(learning_rate=1e-3, weight_decay=0.1))
    optimizer = build_optimizer(model, RecipeConfig(learning_rate=1e-3, weight_decay=0.1, layer_decay=0.5))
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    decays = {id(p): g["weight_decay"] for g in plain.param_groups for p in g["params"]}
    assert rates.keys() == decays.keys() == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        rate, decay = rates[id(parameter)]
        block = next(
            (i for i, layer in enumerate(model.blocks) if any(p is parameter for p in layer.parameters())), None
        )
        below = 4 if "embeddings" in name else 0 if block is None else 3 - block
        assert rate == 1e-3 * 0.5**below and decay == decays[id(parameter)], name


@pytest.mark.parametrize("schedule", ["cosine", "OneCycleLR", "CosineAnnealingLR"])
def test_every_schedule_keeps_the_ratio_of_the_layers(schedule):
    model = load_model("builtin:small", list(LABEL_NAMES)).model
    optimizer = build_optimizer(model, RecipeConfig(learning_rate=1e-3, layer_decay=0.5))
    peaks = [group["lr"] for group in optimizer.param_groups]
    made = make_schedule(optimizer, schedule, total=10)
    for _ in range(4):
        optimizer.step()
        made.step()
    ratios = [group["lr"] / peak for group, peak in zip(optimizer.param_groups, peaks, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) and 0 < ratios[0] < 1.1


def test_a_model_without_layers_has_no_layer_decay():
    with pytest.raises(ConfigError, match="Linear has no attribute `blocks`"):
        build_optimizer(torch.nn.Linear(2, 2), RecipeConfig(layer_decay=0.5))


@pytest.mark.parametrize("optim", ["muon", "sgd"])
def test_layer_decay_resumes_to_the_same_bits(optim, tmp_path):
    flags = (*DEBUG, "--layer_decay", 0.6, "--optim", optim, "--output_dir")
    assert run_here(*flags, tmp_path / "whole") == 0
    assert run_here(*flags, tmp_path / "broken", "--stop_after", 3) == 0
    assert run_here(*flags, tmp_path / "broken", "--resume_from_checkpoint", "auto") == 0
    assert same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")
