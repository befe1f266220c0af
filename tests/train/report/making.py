"""Folders of runs that were never trained, for what no quick run has: many classes, strange names, half an end."""

import json
from pathlib import Path

import numpy as np

from train.config.presets import PRESETS
from train.config.schema import FLAGS
from train.recipes.predictions import Prediction, write_predictions
from train.recipes.statistics import wilson_interval


def make_run(folder: Path, label_names: list[str], images: int, updates: int = 2000, names=None) -> Path:
    """A finished run whose model is right four times of five, with the files that a run leaves."""
    folder.mkdir()
    generator, classes = np.random.default_rng(0), len(label_names)
    labels = np.arange(images) % classes
    predicted = np.where(generator.random(images) < 0.8, labels, generator.integers(0, classes, images))
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = int(confusion.trace())
    defaults = {name: item.default for name, item in FLAGS.items()}
    decided = {
        "config": defaults | PRESETS["beans"] | {"preset": "beans", "dataset": "/nowhere/at/all"},
        "data_notes": ["warning: 1 image is in both train and validation", "joined: something"],
        "label_names": label_names,
        "total_updates": updates,
        "train_images": 3 * images,
        "train_counts": [3 * int(count) for count in confusion.sum(1)],
        "validation_images": images,
        "validation_fingerprint": "content:0",
        "versions": {"torch": "2"},
        "precision": "bf16",
    }
    evaluation = {
        **{f"eval_{name}": hits / images for name in ("accuracy", "balanced_accuracy", "f1_macro")},
        "eval_loss": 0.5,
        "eval_samples": images,
        "eval_accuracy_wilson_95": list(wilson_interval(hits, images)),
        "eval_confusion": confusion.tolist(),
    }
    write(folder, "run.json", {"run_id": "made", **decided})
    write(folder, "eval_results.json", evaluation)
    write(folder, "train_results.json", {"data_seconds": 1.0, "compute_seconds": 99.0, "preparation_seconds": 0.01})
    write(folder, "trainer_state.json", {"best_global_step": updates})
    log = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4} for step in range(1, updates + 1)]
    log += [{"step": step, "eval_loss": float("nan"), "eval_accuracy": 0.5} for step in (updates // 2, updates)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    sure = generator.uniform(0.5, 1, images)
    rows = zip(labels.tolist(), predicted.tolist(), sure.tolist(), strict=True)
    found = [
        Prediction(i, label, taken, p, p if label == taken else 1 - p, -np.log(p if label == taken else 1 - p))
        for i, (label, taken, p) in enumerate(rows)
    ]
    write_predictions(folder, found, names or [f"{i:05}.jpg" for i in range(images)], label_names)
    return folder


def write(folder: Path, name: str, document: dict) -> None:
    (folder / name).write_text(json.dumps(document))
