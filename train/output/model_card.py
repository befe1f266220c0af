"""The model card: README.md in the Hub's format."""

import html
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from data import files
from train.config.schema import FLAGS, Config, ModelConfig
from train.state import TrainState
from train.system import hub
from train.system.streams import printable

PER_CLASS = ("precision", "recall", "f1")
TITLES = {"balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1", "loss": "loss"}


def write_model_card(
    folder: Path,
    config: Config,
    decided: dict[str, Any],
    state: TrainState,
    evaluation: dict[str, Any],
    test: dict[str, Any] | None = None,
) -> None:
    """Write data, recipe, metrics with their interval, and how to load the model.

    Args:
        folder: of the run.
        config: all flags.
        decided: what the run recorded of its data.
        state: which update was the best.
        evaluation: of the validation images.
        test: of the test images, if there are any.
    """
    shown = vars(config.recipe) | {"seed": config.run.seed, "precision": decided["precision"]}
    shown |= {"image_size": config.model.image_size, "freeze": config.model.freeze}
    shown |= {name: value for name, value in vars(config.augment).items() if value != FLAGS[name].default}
    rows = [(name, *(evaluation[f"eval_{kind}/{name}"] for kind in PER_CLASS)) for name in decided["label_names"]]
    low, high = evaluation["eval_accuracy_wilson_95"]
    card = CARD.format(
        metadata=_metadata(folder, config, state, evaluation).to_yaml(),
        title=as_text(folder.resolve().name),
        model=_origin(config.model),
        dataset=as_code(public_name(config.data.dataset)),
        labels=", ".join(map(as_text, decided["label_names"])),
        step=state.best.step,
        metric=as_text(state.best.metric),
        low=low,
        high=high,
        test=_on_test(test),
        per_class="\n".join(f"| {as_text(name)} | {p:.4f} | {r:.4f} | {f1:.4f} |" for name, p, r, f1 in rows),
        recipe="\n".join(f"| {name} | {as_text(str(value))} |" for name, value in shown.items() if value is not None),
        **{name: decided[name] for name in ("train_images", "validation_images")},
        **{name: evaluation[f"eval_{name}"] for name in ("accuracy", "balanced_accuracy", "f1_macro", "loss")},
    )
    files.write_text(folder / "README.md", card)


def note_temperature(folder: Path, temperature: float, images: int) -> None:
    """Say in the card, if there is one, that the logits are scaled, which changes its losses and no label."""
    card = folder / "README.md"
    if not card.is_file():
        return
    line = (
        f"After these figures were measured, the logits were divided by {temperature:.4g}, a temperature fitted on"
        f" {images} validation images: labels are the same, probabilities and losses are not.\n\n"
    )
    text = re.sub(rf"{line[:40]}.*\n\n", "", card.read_text(encoding="utf-8"))
    files.write_text(card, text.replace("## Use\n", f"{line}## Use\n", 1))


def _on_test(test: dict[str, Any] | None) -> str:
    if test is None:
        return "These images selected the model, so these figures are optimistic. No test split was evaluated."
    low, high = test["test_accuracy_wilson_95"]
    rows = [
        f"| on {test['test_samples']} test images, which selected nothing | |",
        "|---|---|",
        f"| accuracy | {test['test_accuracy']:.4f} (95 % Wilson interval {low:.4f} to {high:.4f}) |",
        *(f"| {title} | {test[f'test_{name}']:.4f} |" for name, title in TITLES.items()),
    ]
    return "\n".join(rows)


def _origin(asked: ModelConfig) -> str:
    revision = f" at {as_code(asked.model_revision)}" if asked.model_revision else ""
    how = "trained from scratch" if asked.model.startswith("builtin:") else "fine-tuned"
    return f"{as_code(public_name(asked.model))}{revision}, {how}"


def public_name(name: str) -> str:
    """A data set or model as others may read it: of a folder of this machine only its own name."""
    on_network = "://" in name and "file:" not in name and "::/" not in name
    if name.startswith("builtin:") or on_network or hub.is_hub_name(name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "a folder"


def as_text(name: str) -> str:
    """Text of others, so that Markdown and HTML show it as it is."""
    return re.sub(r"([\\`*_|~#!\[\]])", r"\\\1", html.escape(printable(" ".join(name.split())), quote=False))


def as_code(name: str) -> str:
    """Text of others as code, in a fence that is longer than any in it."""
    text = printable(" ".join(name.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"`{text}`" if fence == "`" else f"{fence} {text} {fence}"


def _metadata(folder: Path, config: Config, state: TrainState, evaluation: dict[str, Any]) -> ModelCardData:
    """The YAML head that the Hub reads."""
    dataset, model = config.data.dataset, config.model.model
    on_hub = hub.is_hub_name(dataset)
    stem = dataset if on_hub else Path(dataset).name
    is_parquet = dataset.endswith(".parquet") or any(Path(dataset).rglob("*.parquet"))
    kind = dataset if on_hub else "parquet" if is_parquet else "imagefolder"
    source = {"dataset_name": stem, "dataset_type": kind, "dataset_split": "validation"}
    results = [
        EvalResult("image-classification", metric_type="accuracy", metric_value=evaluation["eval_accuracy"], **source),
        EvalResult(
            "image-classification",
            metric_type="f1",
            metric_name="F1 macro",
            metric_value=evaluation["eval_f1_macro"],
            **source,
        ),
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", state.raw_model.vit.config.model_type],
        base_model=model if hub.is_hub_name(model) else None,
        datasets=[dataset] if on_hub else None,
        model_name=folder.resolve().name,
        eval_results=results,
    )


CARD = """---
{metadata}
---

# {title}

{model} on {dataset} ({train_images} training images; classes: {labels}).
These are the weights of update {step}, the best by validation {metric}.

| on {validation_images} validation images | |
|---|---|
| accuracy | {accuracy:.4f} (95 % Wilson interval {low:.4f} to {high:.4f}) |
| balanced accuracy | {balanced_accuracy:.4f} |
| macro F1 | {f1_macro:.4f} |
| loss | {loss:.6f} |

| class, on validation | precision | recall | F1 |
|---|---|---|---|
{per_class}

{test}

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
