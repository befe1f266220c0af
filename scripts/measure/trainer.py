"""The notebook's recipe by the Hugging Face Trainer, for comparison."""

from typing import Any

import datasets
import torch
from transformers import AutoImageProcessor, Trainer, TrainingArguments, ViTForImageClassification, set_seed


def build_trainer(model: str, dataset: str, dtype: torch.dtype, seed: int, **arguments: Any) -> Trainer:
    """The Trainer with pixels from the checkpoint's own processor.

    Args:
        model: checkpoint folder.
        dataset: with the columns of beans.
        dtype: of weights and pixels; loaded as float32 first, so that the head is the same draw in each.
        seed: of the head and the order.
        arguments: of TrainingArguments, besides the notebook's.
    """
    data = datasets.load_dataset(dataset)
    names = dict(enumerate(data["train"].features["labels"].names))
    processor = AutoImageProcessor.from_pretrained(model)
    set_seed(seed)
    network = ViTForImageClassification.from_pretrained(
        model, id2label=names, num_labels=len(names), ignore_mismatched_sizes=True, dtype=torch.float32
    ).to(dtype)

    def transform(rows: dict[str, list]) -> dict[str, Any]:
        pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(dtype), "labels": rows["labels"]}

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

    data = data.with_transform(transform)
    notebook = {"per_device_train_batch_size": 16, "num_train_epochs": 4, "learning_rate": 2e-4, "seed": seed}
    notebook |= {"remove_unused_columns": False, "use_cpu": not torch.cuda.is_available()}  # a CPU needs it for bf16
    return Trainer(
        model=network,
        args=TrainingArguments(**(notebook | arguments)),
        data_collator=collate,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=processor,
    )
