import inspect
import math

import pytest
import torch
from torch import nn
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from models.family import FAMILIES
from models.loading import load_model
from tests.checkpoints import small_checkpoint
from tests.making import make_optimizer, make_schedule
from train.errors import ConfigError
from train.optim import parameter_groups
from train.optimizers.arguments import parse_arguments
from train.optimizers.names import optimizer_parameters
from train.optimizers.signatures import torch_optimizers, torch_schedules, transformers_schedules

OPTIMIZERS = ["adamw", "SGD", "nadam", "radam", "rmsprop", "adagrad", "adafactor", "rprop", "asgd", "muon"]
OPTIMIZERS += ["adamw_torch_fused", "adamax", "adadelta", "torch.optim:Adam"]
SCHEDULERS = ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"]
SCHEDULERS += ["cosine_with_restarts", "reduce_lr_on_plateau", "OneCycleLR", "cosineannealinglr", "StepLR"]
SCHEDULERS += ["exponential_lr", "ReduceLROnPlateau", "CyclicLR", "torch.optim.lr_scheduler:LinearLR"]
NEEDED = {"StepLR": "step_size=2", "exponential_lr": "gamma=0.9"}


class MyOptimizer(torch.optim.SGD):
    """A user's own class."""


@pytest.fixture
def vit():
    return load_model("builtin:tiny", ["a", "b", "c"]).model.vit


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_every_optimizer_takes_three_updates_under_every_schedule(optimizer_name, vit):
    start = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    for scheduler_name in SCHEDULERS:
        vit.load_state_dict(start)
        momentum = "momentum=0.9" if scheduler_name == "CyclicLR" and optimizer_name == "SGD" else None
        optimizer = make_optimizer(vit, optimizer_name, momentum, 1e-3, 0.0)
        kwargs = NEEDED.get(scheduler_name)
        if scheduler_name == "CyclicLR" and optimizer_name != "SGD":
            kwargs = "cycle_momentum=false"
        if scheduler_name == "OneCycleLR":
            kwargs = "cycle_momentum=false"
        scheduler = make_schedule(optimizer, scheduler_name, kwargs, 0, 10)
        for _ in range(3):
            loss = vit(torch.randn(2, 3, 32, 32)).logits.square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            scheduler.step_on_metric(1.0)
        changed = [not torch.equal(start[name], tensor) for name, tensor in vit.state_dict().items()]
        assert all(torch.isfinite(tensor).all() for tensor in vit.state_dict().values())
        assert sum(changed) >= len(changed) - 4, (optimizer_name, scheduler_name)


def test_every_parameter_is_in_one_group_and_biases_and_norms_do_not_decay(vit):
    decayed, spared = parameter_groups(vit, 0.1)
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    assert sorted(names.values()) == sorted(names[id(p)] for group in (decayed, spared) for p in group["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    spared_names = {names[id(p)] for p in spared["params"]}
    assert spared_names == {name for name in names.values() if name.endswith("bias") or "norm" in name}


def test_frozen_parameters_are_left_out(vit):
    vit.vit.embeddings.requires_grad_(False)
    count = sum(len(group["params"]) for group in parameter_groups(vit, 0.0))
    assert count == sum(parameter.requires_grad for parameter in vit.parameters())


def test_the_default_is_the_trainers_fused_adamw(vit):
    optimizer = make_optimizer(vit, "adamw", None, 2e-4, 0.0)
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["fused"], group["lr"]) == ((0.9, 0.999), 1e-8, True, 2e-4)
    assert all(group["weight_decay"] == 0.0 for group in optimizer.param_groups)  # torch's own default is 0.01


def test_arguments_reach_the_class(vit):
    group = make_optimizer(vit, "sgd", "momentum=0.9,nesterov=true", 0.1, 0.0).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert make_optimizer(vit, "adamw", "betas=(0.8,0.9),eps=1e-6", 0.1, 0.0).param_groups[0]["betas"] == (0.8, 0.9)


def test_ones_own_class_is_named_by_module(vit):
    assert isinstance(make_optimizer(vit, "tests.train.test_optim:MyOptimizer", None, 0.1, 0.0), MyOptimizer)


@pytest.mark.parametrize(
    ("name", "arguments", "decay", "said"),
    [
        ("adamv", None, 0.0, "choose from ASGD, Adadelta"),
        ("optimizer", None, 0.0, "no such name"),
        ("lbfgs", None, 0.0, "closure"),
        ("sparseadam", None, 0.0, "sparse gradients"),
        ("math:sqrt", None, 0.0, "is not a class"),
        ("pathlib:Path", None, 0.0, "is not a torch.optim.Optimizer"),
        ("nowhere:Class", None, 0.0, "No module named 'nowhere'"),
        ("nowhere:", None, 0.0, "must have the form package.module:Class"),
        ("sgd", "momentun=0.9", 0.0, "momentun is not taken by SGD; SGD takes dampening"),
        ("sgd", "lr=0.9", 0.0, "lr is set by a flag of its own"),
        ("sgd", "momentum", 0.0, "must have the form name=value"),
        ("sgd", "nesterov=true", 0.0, "Nesterov"),
        ("adamw", "betas=(2,3)", 0.0, "beta"),
        ("adamw", "betas=0.9", 0.0, r"must be 2 numbers in parentheses, such as \(0.9, 0.999\)"),
        ("sgd", "nesterov=1", 0.0, "must be true or false"),
        ("adamw", "eps=small", 0.0, "must be a number"),
        ("rprop", None, 0.1, "Rprop takes none"),
        ("muon", "momentun=1", 0.0, "Muon takes"),
    ],
)
def test_a_wrong_optimizer_is_refused_with_what_there_is(vit, name, arguments, decay, said):
    with pytest.raises(ConfigError, match=said):
        make_optimizer(vit, name, arguments, 0.1, decay)


@pytest.mark.parametrize(
    ("name", "arguments", "warmup", "said"),
    [
        ("liner", None, 0, "choose from linear, cosine"),
        ("cosine", "num_cycle=2", 0, "cosine takes num_cycles"),
        ("StepLR", None, 0, "step_size"),
        ("StepLR", "step=2", 0, "StepLR takes gamma, step_size"),
        ("StepLR", "step_size=2", 5, "has no warm-up"),
        ("constant", None, 5, "has no warm-up"),
        ("linear", "num_training_steps=5", 0, "set by a flag of its own"),
        ("linear", "{bad", 0, "is not JSON"),
        ("warmup_stable_decay", None, 0, "num_decay_steps"),
    ],
)
def test_a_wrong_schedule_is_refused_with_what_there_is(vit, name, arguments, warmup, said):
    with pytest.raises(ConfigError, match=said):
        make_schedule(make_optimizer(vit, "sgd", None, 0.1, 0.0), name, arguments, warmup, 10)


def test_linear_falls_to_zero_like_the_trainers():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2e-4)
    scheduler = make_schedule(optimizer, "linear", None, 0, 260)
    used = []
    for _ in range(260):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert used == pytest.approx([2e-4 * (1 - k / 260) for k in range(260)], abs=1e-18)
    assert used[9] == pytest.approx(1.930769e-4, abs=1e-10) and optimizer.param_groups[0]["lr"] == 0


def test_warmup_below_one_is_a_share_of_all_updates():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    make_schedule(optimizer, "linear", None, 0.25, 10)  # ceil(2.5) = 3 updates
    scheduler = make_schedule(optimizer, "linear", None, 0.25, 10)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_the_length_of_the_run_is_filled_in_where_a_class_demands_it(vit):
    scheduler = make_schedule(make_optimizer(vit, "sgd", "momentum=0.9", 0.1, 0.0), "OneCycleLR", None, 0, 77)
    assert scheduler.scheduler.total_steps == 77
    assert optimizer_parameters("adamw_torch")[0] == "AdamW"


def test_what_is_read_from_source_is_what_an_import_finds():
    def signatures(found):
        return {name: {k: p.default for k, p in inspect.signature(f).parameters.items()} for name, f in found.items()}

    lr_scheduler = torch.optim.lr_scheduler
    classes = {name: item for name, item in vars(torch.optim).items() if inspect.isclass(item)}
    optimizers = {n: c for n, c in classes.items() if issubclass(c, torch.optim.Optimizer) and n != "Optimizer"}
    classes = {name: item for name, item in vars(lr_scheduler).items() if inspect.isclass(item) and name[0] != "_"}
    schedules = {n: c for n, c in classes.items() if issubclass(c, lr_scheduler.LRScheduler) and n != "LRScheduler"}
    functions = {item.value: function for item, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    for read, imported in (
        (torch_optimizers(), optimizers),
        (torch_schedules(), schedules),
        (transformers_schedules(), functions),
    ):
        found, expected = {n: {k: p.default for k, p in item.items()} for n, item in read.items()}, signatures(imported)
        assert found.keys() == expected.keys()
        for name, defaults in found.items():
            assert list(defaults) == list(expected[name])
            assert all(value in (..., expected[name][key]) for key, value in defaults.items()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_moves_the_matrices_of_the_blocks_of_every_family(family, tmp_path):
    model = load_model(str(small_checkpoint(family, tmp_path / "model")), ["a", "b", "c"]).model
    by_muon = {id(p) for group in make_optimizer(model, "muon").muon.param_groups for p in group["params"]}
    assert by_muon == {id(p) for p in model.blocks.parameters() if p.ndim == 2}


def test_muon_moves_matrices_and_adamw_the_rest(vit):
    optimizer = make_optimizer(vit, "muon", "momentum=0.8", 1e-3, 0.1)
    assert math.isclose(optimizer.param_groups[0]["momentum"], 0.8)
    by_muon = {id(p) for p in optimizer.muon.param_groups[0]["params"]}
    names = {name for name, parameter in vit.named_parameters() if id(parameter) in by_muon}
    assert names and all(dict(vit.named_parameters())[name].ndim == 2 for name in names)
    assert not any("classifier" in name or "embeddings" in name for name in names)
    optimizer.param_groups[0]["lr"] = 0.5  # what a schedule does must reach the half that steps
    assert optimizer.muon.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("a=1", {"a": 1}),
        (
            "a=1e-3, b=(0.9,0.95), c=true,d=None,e=word",
            {"a": 1e-3, "b": (0.9, 0.95), "c": True, "d": None, "e": "word"},
        ),
        ('{"a": [1, 2]}', {"a": [1, 2]}),
    ],
)
def test_arguments_are_read_as_python_values(text, expected):
    assert parse_arguments("optim_args", text) == expected
