"""Vision Transformers of the usual sizes with random weights: what the measurements train."""

import time

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from data.plan import Batch
from models.classifier import Classifier
from train.config.schema import RecipeConfig, RunConfig
from train.loop import train_step
from train.precision import Precision, choose_compute
from train.setup.job import build_state
from train.state import TrainState
from train.system.device import choose_attention
from train.system.memory import keep_freed_memory

# Width, layers, heads, width inside the MLP: DeiT-Tiny's, DeiT-Small's and ViT-B/16's.
SIZES = {"tiny": (192, 12, 3, 768), "small": (384, 12, 6, 1536), "base": (768, 12, 12, 3072)}


def random_vit(size: str, side: int = 224, attention: str = "sdpa") -> Classifier:
    """A ViT of a size of SIZES for images of `side` pixels, three classes."""
    width, layers, heads, inner = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = ViTConfig(**shape, intermediate_size=inner, image_size=side, num_labels=3, attn_implementation=attention)
    processor = ViTImageProcessor(size={"height": side, "width": side}).to_dict()
    return Classifier(ViTForImageClassification(config), processor)


def ready_state(model: Classifier, precision: Precision) -> TrainState:
    """AdamW on the model, as a run would have it."""
    recipe = RecipeConfig(learning_rate=1e-4)
    return build_state(model.to(precision.device).train(), recipe, precision, 1000, ["a", "b", "c"])


def random_state(size: str, side: int = 224) -> TrainState:
    """A state of the given size in this machine's default precision, memory tuned as in a run."""
    precision = choose_compute(RunConfig())
    keep_freed_memory()
    return ready_state(random_vit(size, side, choose_attention(precision.device, precision.name)), precision)


def random_batch(state: TrainState, batch_size: int, classes: int = 3) -> Batch:
    """Noise of the size that the model takes."""
    wanted, device = state.raw_model.preprocessing, state.precision.device
    pixels = torch.randint(0, 256, (batch_size, 3, wanted.height, wanted.width), dtype=torch.uint8, device=device)
    labels = torch.randint(0, classes, (batch_size,), device=device)
    return {"pixel_values": pixels, "labels": labels, "index": torch.arange(batch_size)}


def timed_update(state: TrainState, batch: Batch, together: int = 1) -> float:
    """Seconds per update, over `together` of them; waits for the device."""
    started = time.perf_counter()
    for _ in range(together):
        train_step(state, [batch], len(batch["labels"]), 1.0)
    state.precision.raise_if_not_finite(together)
    return (time.perf_counter() - started) / together
