"""What a finished run leaves behind: the best model, its card, and the results in the Trainer's files and keys."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from torch import nn

from data.loader import Plan
from models.vit import LoadedModel, load_model
from train import ConfigError, RunError, distributed, fs, launch
from train.checkpoint import MODEL_FILES
from train.config import Config, TrainConfig
from train.evaluate import Metrics
from train.feed import Feed
from train.pictures import MOST_CLASSES, confusion_picture, prediction_picture
from train.state import TrainState
from train.tracking import Tracker, read_log, say


def finish(
    folder: Path,
    config: Config,
    decided: dict[str, Any],
    state: TrainState,
    plan: Plan,
    feed: Feed,
    tracker: Tracker,
    stop: bool,
) -> None:
    """After the last update: the best model to the top of the folder, evaluated as it lies there, and its record.

    After an early stop (`stop`, or updates are left) only `trainer_state.json` is written, and how to go on is said.

    Raises:
        RunError: no evaluation gave a number, so that no model can be called the best.
    """
    first = launch.rank() == 0
    if first:
        write_trainer_state(folder, state, plan, config.train)
    if stop or state.step < plan.total_updates:
        say(f"stopped after update {state.step} of {plan.total_updates}; to go on: {resume_command(folder)}")
        return
    if state.best.step is None:
        raise RunError(f"{state.best.metric} was nan in every evaluation; try a lower --learning_rate")
    distributed.from_first(lambda: export_best(folder, state))
    # What was saved is judged, not what is in memory: read back from the folder as a user would.
    dtype = state.precision.dtype
    network = load_model(str(folder), feed.label_names, attention=decided["attention"], dtype=dtype).network
    network.to(state.precision.device)
    if config.run.fsdp:
        distributed.shard(network)
    metrics = feed.validate(network)
    if not first:
        return
    best = metrics.values[state.best.metric]
    evaluation = eval_results(metrics) | {"epoch": plan.epoch(state.best.step)}
    choices = {name: decided[name] for name in ("preset", "preset_reason", "precision")}
    training = train_results(state, plan, feed.preparation_seconds) | choices
    write_results(folder, training, evaluation)
    write_model_card(folder, config, decided, state, evaluation)
    if not config.run.fsdp:  # a sharded network computes only where all processes take part
        show(tracker, network, state, metrics, feed)
    tracker.log_outcome(config.flat(), metrics.values, state.step)
    total = sum(state.seconds.values())
    say(f"time: {total:.1f} s; {', '.join(f'{part} {spent / total:.1%}' for part, spent in state.seconds.items())}")
    low, high = evaluation["eval_accuracy_wilson_95"]
    same = "exactly as" if best == state.best.value else f"{state.best.value!r} when"
    say(
        f"done: {folder} holds the model of update {state.best.step}; read back from there: {state.best.metric}"
        f" {best:.6g} ({same} logged), accuracy {metrics.values['accuracy']:.4f}"
        f" (95 % interval {low:.4f} to {high:.4f})"
    )


def resume_command(folder: Path) -> str:
    """What to type to go on with the run in `folder`."""
    return f"python -m train.main --output_dir {shlex.quote(str(folder))} --resume_from_checkpoint auto"


def export_best(folder: Path, state: TrainState) -> None:
    """Copy the best checkpoint's model to the top of the run's folder."""
    for name in MODEL_FILES:
        fs.copy(folder / f"checkpoint-{state.best.step}" / name, folder / name)


def show(
    tracker: Tracker,
    network: nn.Module,
    state: TrainState,
    metrics: Metrics,
    feed: Feed,
) -> None:
    """Give TensorBoard the confusion matrix and some predictions."""
    batch = next(feed.validation())
    pictures = {
        "validation/predictions": prediction_picture(network, batch, feed.normalize, state.precision, feed.label_names)
    }
    if len(feed.label_names) <= MOST_CLASSES:
        pictures["validation/confusion"] = confusion_picture(metrics.confusion, feed.label_names)
    tracker.log_pictures(state.step, pictures)


def print_evaluation(loaded: LoadedModel, feed: Feed) -> None:
    """The metrics of --eval_only, as JSON on standard output.

    Raises:
        ConfigError: the model was not trained on these classes, so its head is a fresh one.
    """
    if loaded.new_head:
        raise ConfigError("--eval_only: the model was not trained on these classes; name one that was with --model")
    metrics = feed.validate(loaded.network)
    if launch.rank() == 0:
        print(json.dumps(eval_results(metrics), indent=2))


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a rate from counts (E. B. Wilson, 1927): unlike the normal one, sound near 0 and 1."""
    rate = correct / total
    middle = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def train_results(state: TrainState, plan: Plan, preparation_seconds: float) -> dict[str, float]:
    """The Trainer's summary of training, with the rates over training time alone: no evaluation, no saves.

    Where the whole time went stands beside it, in seconds; of a run that was resumed, that of all its starts.
    """
    return {
        "epoch": plan.epoch(state.step),
        "train_loss": state.loss_total.item() / state.step,
        "train_runtime": state.train_seconds,
        "train_samples": plan.samples,
        "train_samples_per_second": plan.samples_until(state.step) / state.train_seconds,
        "train_steps_per_second": state.step / state.train_seconds,
        "skipped_updates": state.skipped,
        "preparation_seconds": preparation_seconds,
        **{f"{part}_seconds": seconds for part, seconds in state.seconds.items()},
    }


def eval_results(metrics: Metrics) -> dict[str, Any]:
    """The best model's metrics, with the interval of its accuracy and the confusion counts."""
    correct = sum(row[index] for index, row in enumerate(metrics.confusion))
    return {
        **metrics.logged(),
        "eval_samples": metrics.samples,
        "eval_accuracy_wilson_95": list(wilson_interval(correct, metrics.samples)),
        "eval_confusion": metrics.confusion,
    }


def write_results(folder: Path, train: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """train_results.json, eval_results.json, and both in all_results.json."""
    _write_json(folder / "train_results.json", train)
    _write_json(folder / "eval_results.json", evaluation)
    _write_json(folder / "all_results.json", evaluation | train)


def write_trainer_state(folder: Path, state: TrainState, plan: Plan, train: TrainConfig) -> None:
    """trainer_state.json with the keys that tools made for the Trainer read."""
    best = None if state.best.step is None else str(folder / f"checkpoint-{state.best.step}")
    _write_json(
        folder / "trainer_state.json",
        {
            "best_metric": state.best.value,
            "best_global_step": state.best.step,
            "best_model_checkpoint": best,
            "epoch": plan.epoch(state.step),
            "global_step": state.step,
            "max_steps": plan.total_updates,
            "num_train_epochs": math.ceil(plan.epoch(plan.total_updates)),
            "logging_steps": train.logging_steps,
            "eval_steps": train.eval_steps,
            "save_steps": train.save_steps,
            "train_batch_size": train.per_device_train_batch_size,
            "is_local_process_zero": True,
            "is_world_process_zero": True,
            "log_history": read_log(folder),
        },
    )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    fs.write_text(path, json.dumps(document, indent=2) + "\n")


def write_model_card(
    folder: Path, config: Config, run: dict[str, Any], state: TrainState, evaluation: dict[str, Any]
) -> None:
    """README.md in the Hub's format: data, recipe, metrics with their interval, and how to load the model."""
    low, high = evaluation["eval_accuracy_wilson_95"]
    fs.write_text(
        folder / "README.md",
        CARD.format(
            metadata=_card_metadata(config, evaluation),
            title=folder.resolve().name,
            model=config.model.model,
            dataset=config.data.dataset,
            train_images=run["train_images"],
            validation_images=run["validation_images"],
            labels=", ".join(run["label_names"]),
            step=state.best.step,
            metric=config.train.metric_for_best_model,
            accuracy=evaluation["eval_accuracy"],
            low=low,
            high=high,
            f1=evaluation["eval_f1_macro"],
            loss=evaluation["eval_loss"],
            per_class="\n".join(
                f"| {name} | {evaluation[f'eval_precision/{name}']:.4f} | {evaluation[f'eval_recall/{name}']:.4f}"
                f" | {evaluation[f'eval_f1/{name}']:.4f} |"
                for name in run["label_names"]
            ),
            recipe="\n".join(f"| {name} | {value} |" for name, value in _recipe(config, run).items()),
        ),
    )


def _recipe(config: Config, run: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in vars(config.train).items() if value is not None}
    return shown | {"seed": config.run.seed, "precision": run["precision"], "device": run["device"]}


def _card_metadata(config: Config, evaluation: dict[str, Any]) -> str:
    """The YAML head that the Hub reads. JSON strings are YAML strings, quoted safely."""
    name = config.data.dataset
    is_hub = "/" in name and not Path(name).exists()
    lines = [
        "library_name: transformers",
        "pipeline_tag: image-classification",
        "tags: [image-classification, vit]",
    ]
    if is_hub:
        lines.append(f"datasets: [{json.dumps(name)}]")
    lines += [
        "model-index:",
        "- name: vit",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{name: {json.dumps(name)}, type: {json.dumps(name)}, split: validation}}",
        "    metrics:",
        f"    - {{type: accuracy, value: {evaluation['eval_accuracy']}}}",
        f"    - {{type: f1, name: F1 macro, value: {evaluation['eval_f1_macro']}}}",
    ]
    return "\n".join(lines)


CARD = """---
{metadata}
---

# {title}

`{model}` fine-tuned on `{dataset}` ({train_images} training images; classes: {labels}).
These are the weights of update {step}, the best by validation {metric}.

| on {validation_images} validation images | |
|---|---|
| accuracy | {accuracy:.4f} (95 % Wilson interval {low:.4f} to {high:.4f}) |
| macro F1 | {f1:.4f} |
| loss | {loss:.6f} |

| class | precision | recall | F1 |
|---|---|---|---|
{per_class}

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", "PATH_OF_THIS_FOLDER")
print(classify("leaf.jpg"))
```

## Recipe

| | |
|---|---|
{recipe}
"""
