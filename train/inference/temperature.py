"""Temperature scaling (C. Guo et al., 2017): one number that calibrates a model's probabilities."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data import files
from models.family import HEAD
from models.saving import WEIGHTS_FILE
from train.checkpoint.manifest import MANIFEST
from train.config.record import TEMPERATURE_FILE
from train.errors import ConfigError, RunError
from train.inference.calibration import expected_calibration_error, reliability

LEAST, MOST = 0.1, 10.0  # outside this range a fit is unreliable
TEMPERATURE = "temperature"  # in the header of model.safetensors: what the head was divided by


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that makes the labels most probable: softmax(logits / temperature).

    The cross-entropy is convex in 1 / temperature, so its slope is zero at one place, which halving finds.

    Args:
        logits: [n, classes].
        labels: [n], indices of classes.

    Raises:
        RunError: the best one lies outside LEAST..MOST, as where every image is right or none is.
    """
    logits = logits.double()
    of_labels = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(-1) * logits).sum(-1)
        return (expected - of_labels).mean().item()

    low, high = 1 / MOST, 1 / LEAST
    if slope(low) >= 0 or slope(high) <= 0:
        side = f"above {MOST:g}" if slope(low) >= 0 else f"below {LEAST:g}"
        unsure = bool((logits.argmax(-1) != labels).any())
        below = "it is far too unsure; train it longer" if unsure else "it makes no mistake on them"
        why = "it is wrong, and sure of it, on most of them" if slope(low) >= 0 else below
        raise RunError(
            f"--fit_temperature: the best temperature for these {len(labels)} images lies {side}: {why}; the model"
            " is left as it is"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def loss_and_error(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Cross-entropy in nats, and ECE."""
    confidences, predicted = logits.double().softmax(-1).max(-1)
    bins = reliability(confidences.tolist(), (predicted == labels).tolist())
    loss = F.cross_entropy(logits.double(), labels).item()
    return {"loss": loss, "expected_calibration_error": expected_calibration_error(bins)}


def check_folder(folder: str) -> Path:
    """Refuse a model that no temperature can be kept in.

    Raises:
        ConfigError: it is no folder with one file of weights, or a checkpoint, whose bytes a resume compares.
    """
    path = Path(files.follow(folder))
    if not (path / WEIGHTS_FILE).is_file():
        raise ConfigError(f"--fit_temperature: is kept in the model's folder; {folder} is none with a {WEIGHTS_FILE}")
    if (path / MANIFEST).exists():
        raise ConfigError(f"--fit_temperature: {folder} is a checkpoint, which stays as it was saved; name the run")
    return path


def divide_head(folder: Path, temperature: float, record: dict[str, object]) -> float:
    """Divide the head's weights by a temperature, for good, so every program that loads the model gets scaled logits.

    Logits are linear in the head: whoever computes softmax(logits), which includes pipelines of transformers and
    exported graphs, gets softmax(old logits / temperature) and needs to know nothing of it.

    Args:
        folder: of the model; the file of weights is replaced atomically.
        temperature: relative to the head as it is.
        record: what to keep beside it, for people.

    Returns:
        The temperature relative to the head as it was trained.
    """
    path = folder / WEIGHTS_FILE
    with safe_open(path, "pt") as stored:
        header = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, it is no dictionary
    total = temperature * float(header.get(TEMPERATURE, "1"))
    for name in HEAD & tensors.keys():
        tensors[name] = tensors[name] / temperature
    made = files.beside(path)
    try:
        save_file(tensors, made, metadata=header | {"format": "pt", TEMPERATURE: repr(total)})
        files.flush(made)
        files.rename(made, path)
    finally:
        made.unlink(missing_ok=True)
    files.write_text(folder / TEMPERATURE_FILE, json.dumps({"temperature": total, **record}, indent=2) + "\n")
    return total


def temperature_of(folder: Path) -> float | None:
    """What the head in a folder was divided by; None if it is as it was trained, or the file cannot be read."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as stored:
            return float((stored.metadata() or {})[TEMPERATURE])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
