"""The smallest state that trains: checkpoints of a few kilobytes, for batteries of tens of thousands of trials."""

import torch
from transformers import ViTConfig, ViTForImageClassification

from models.classifier import Classifier
from tests.making import make_optimizer, make_schedule
from train.precision import Precision
from train.state import Best, TrainState

SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def small_state(seed: int = 0) -> TrainState:
    """A fresh one, ready to train."""
    torch.manual_seed(seed)
    names = {0: "a", 1: "b"}
    config = ViTConfig(**SIZES, id2label=names, label2id={name: index for index, name in names.items()})
    network = Classifier(ViTForImageClassification(config), PROCESSOR)
    optimizer = make_optimizer(network, "adamw", None, 1e-2, 0.0)
    scheduler = make_schedule(optimizer, "linear", None, 0, 1000)
    return TrainState(network, optimizer, scheduler, Precision("fp32", torch.device("cpu")), Best("loss", False))


def train(state: TrainState, updates: int = 1) -> None:
    """Update on noise that depends on the step."""
    for _ in range(updates):
        torch.manual_seed(state.step)
        loss = state.model(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.schedule.step()
        state.count_update(loss.detach(), True)
