"""What of a network is trained, and what is computed again."""

import copy

import pytest
import torch

from models import ModelError
from models.classifier import Classifier
from models.family import FAMILIES
from models.loading import load_model
from tests.checkpoints import NAMES, small_checkpoint


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path) -> Classifier:
    """With dropout everywhere that the family has it."""
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    if request.param.startswith("dinov2"):
        rates["drop_path_rate"] = 0.2
    folder = small_checkpoint(request.param, tmp_path / "checkpoint", **rates)
    return load_model(str(folder), NAMES).model


def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def part_of(name: str) -> str:
    """`vit.dinov2.encoder.layer.1.norm1.weight` -> `block 1`; else embeddings, norm or head."""
    words = name.split(".")
    if "classifier" in words:
        return "head"
    if "embeddings" in words:
        return "embeddings"
    numbers = [word for word in words if word.isdecimal()]
    return f"block {numbers[0]}" if numbers else "norm"


def trained_parts(model: Classifier) -> set[str]:
    return {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model: Classifier) -> dict[str, torch.Tensor]:
    """The loss and every gradient of one training step."""
    torch.manual_seed(9)
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {"loss": loss.detach()}


@pytest.mark.parametrize(
    ("what", "said", "trained"),
    [
        ("backbone", "frozen: backbone", {"head"}),
        ("1", "frozen: embeddings and 1 of 2 blocks", {"block 1", "norm", "head"}),
        ("2", "frozen: embeddings and 2 of 2 blocks", {"norm", "head"}),
    ],
)
def test_what_is_frozen_gets_no_gradient_and_has_no_dropout(what, said, trained, model):
    every = {"embeddings", "block 0", "block 1", "norm", "head"}
    assert trained_parts(model) == every
    model.train()
    assert model.freeze(what) == said and trained_parts(model) == trained
    assert {part_of(name) for name in step(model) if name != "loss"} == trained
    model.eval()
    assert not any(module.training for module in model.modules())
    assert model.train() is model and model.training and model.vit.training and model.vit.classifier.training
    modes = {(part_of(name), module.training) for name, module in model.named_modules() if not list(module.children())}
    assert {part for part, training in modes if training} - {"norm"} == trained - {"norm"}
    assert all((part, not training) not in modes for part, training in modes if part in {"block 0", "head"})


def test_a_frozen_backbone_gives_the_same_features_in_training_and_in_evaluation(model):
    loose = model.train()(images())
    assert not torch.equal(loose, model.eval()(images()))
    model.freeze("backbone")
    assert torch.equal(model.train()(images()), model.eval()(images()))


def test_a_copy_keeps_its_own_parts_frozen(model):
    model.freeze("1")
    other = copy.deepcopy(model).train()
    assert [part.training for part in other.frozen] == [False, False]
    assert other.frozen[1] is other.blocks[0] and other.frozen[1] is not model.blocks[0]


@pytest.mark.parametrize("what", ["3", "999"])
def test_more_blocks_than_there_are_cannot_be_frozen(what, model):
    with pytest.raises(ModelError, match=f"--freeze {what}: the model has 2 blocks; backbone freezes all but the head"):
        model.freeze(what)


@pytest.mark.parametrize("frozen", [None, "1", "backbone"])
def test_activations_computed_again_give_the_same_loss_and_gradients_to_the_bit(frozen, model):
    if frozen:
        model.freeze(frozen)
    model.train()
    passes = []
    model.blocks[1].mlp.register_forward_hook(lambda *_: passes.append(1))
    before, once = step(model), len(passes)
    model.recompute_activations()
    passes.clear()
    after = step(model)
    assert len(passes) == (1 if frozen == "backbone" else 2) and once == 1
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
