"""own_run refuses what would fail late, change the run at a resume, or have no effect."""

import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from torchvision.transforms.v2 import ToDtype

from tests.running import run_here
from tests.test_readme import LightAndDark
from train.config.schema import RecipeConfig, RunConfig
from train.errors import ConfigError
from train.loop import fit
from train.loss import cross_entropy_sum
from train.optimizers.schedules import Schedule
from train.setup.own import own_run


def a_model():
    return torch.nn.Sequential(ToDtype(torch.float32, scale=True), torch.nn.Flatten(), torch.nn.Linear(3072, 2))


def start(folder, *, images=16, model=None, lr=0.1, momentum=0.9, run=None, recipe=None, stop_after=None, **parts):
    model = model or a_model()
    optimizer = parts.pop("optimizer", torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum))
    if callable(schedule := parts.get("schedule")):
        parts["schedule"] = schedule(optimizer)
    where = {"output_dir": str(folder), "precision": "fp32", "resume_from_checkpoint": "auto"} | (run or {})
    recipe = RecipeConfig(num_train_epochs=2, **(recipe or {}))
    sets = LightAndDark(images), LightAndDark(8)
    state, data, output = own_run(
        model, optimizer, *sets, ["dark", "light"], RunConfig(stop_after=stop_after, **where), recipe, **parts
    )
    with output:
        fit(state, data, recipe, output)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": {"eval_only": True}}, "eval_only=True: has no effect"),
        ({"run": {"torch_compile": "on"}}, "torch_compile='on': has no effect"),
        ({"recipe": {"learning_rate": 0.5}}, "learning_rate=0.5: has no effect"),
        (
            {"recipe": {"warmup_steps": 2}, "schedule": lambda o: Schedule(StepLR(o, 1))},
            "warmup_steps=2: has no effect",
        ),
        ({"run": {"output_dir": None}}, "output_dir: name"),
        ({"schedule": lambda o: StepLR(o, 1)}, "pass Schedule"),
        ({"optimizer": torch.optim.SGD(a_model().parameters())}, "parameters that are not the model's"),
        ({"images": 0}, "train: is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(change, said, tmp_path):
    with pytest.raises(ConfigError) as refused:
        start(tmp_path / "run", **change)
    assert said in str(refused.value) and not (tmp_path / "run").exists()


def five_times(logits, labels):
    return 5 * cross_entropy_sum(logits, labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.5}, "'lr': '0.1'"),
        ({"momentum": 0.0}, "'momentum': '0.9'"),
        ({"schedule": lambda o: Schedule(StepLR(o, 1))}, "schedule was LambdaLR, is now StepLR"),
        ({"loss_sum_fn": five_times}, "loss was cross_entropy_sum, is now five_times"),
        ({"images": 18}, "images was [16, 8], is now [18, 8]"),
    ],
    ids=["lr", "momentum", "schedule", "loss", "images"],
)
def test_a_resume_with_another_recipe_is_refused_with_the_difference(change, said, tmp_path):
    start(tmp_path / "run", stop_after=3)
    with pytest.raises(ConfigError) as refused:
        start(tmp_path / "run", **change)
    assert said in str(refused.value)
    assert start(tmp_path / "run").step == 4


def test_the_command_line_says_that_a_run_was_started_from_python(tmp_path, capsys):
    start(tmp_path / "run", stop_after=3)
    assert not (tmp_path / "run" / "config.yaml").exists()  # its flags alone would start another run
    capsys.readouterr()
    assert run_here("--output_dir", tmp_path / "run", "--resume_from_checkpoint", "auto") == 2
    assert "was started from Python" in capsys.readouterr().err
