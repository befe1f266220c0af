"""The model card: README.md in the Hub's format."""

import json
from pathlib import Path
from typing import Any

from data import files
from train.config.schema import Config
from train.state import TrainState


def write_model_card(
    folder: Path, config: Config, run: dict[str, Any], state: TrainState, evaluation: dict[str, Any]
) -> None:
    """README.md in the Hub's format: data, recipe, metrics with their interval, and how to load the model."""
    low, high = evaluation["eval_accuracy_wilson_95"]
    files.write_text(
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
            metric=config.recipe.metric_for_best_model,
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
    shown = {name: value for name, value in vars(config.recipe).items() if value is not None}
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
