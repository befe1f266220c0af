"""The recipes by name: what each sets differently from the defaults in `train/config/schema.py`."""

from typing import Any

from train.system import hub

BEANS_DATASET = "AI-Lab-Makerere/beans"
BEANS_MODEL = "google/vit-base-patch16-224-in21k"
# The notebook "Fine-tune ViT for image classification", as the Trainer runs it.
BEANS: dict[str, Any] = {
    "dataset": BEANS_DATASET,
    "model": BEANS_MODEL,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 4.0,
    "learning_rate": 2e-4,
    "logging_steps": 10,
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
}
# One recipe for much, little and unequal data; docs/recipes.md has what it measured. A number of updates, and not of
# epochs, is what few images need: Kolesnikov et al., Big Transfer, 2020, train at least 500.
BEST: dict[str, Any] = BEANS | {
    "min_steps": 160,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "augment": "flip_both",
    "random_resized_crop": 0.4,
    "label_smoothing": 0.1,
    "logit_adjustment": 1.0,
    "eval_steps": 40,
    "save_steps": 40,
}
# A small ViT from scratch on drawn leaves: needs no download, and a minute on two cores.
LEAVES: dict[str, Any] = BEANS | {
    "dataset": "builtin:leaves",
    "model": "builtin:small",
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 8.0,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "eval_steps": 200,
    "save_steps": 200,
    "metric_for_best_model": "accuracy",  # on 300 images from scratch the loss is the noisier of the two
}
# Over in a few seconds, in one process, one thread of control and float32, with every fast path off: what a debugger
# and a test want.
DEBUG: dict[str, Any] = LEAVES | {
    "model": "builtin:tiny",
    "max_train_samples": 48,
    "max_eval_samples": 24,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 2.0,
    "logging_steps": 2,
    "eval_steps": 6,
    "save_steps": 6,
    "metric_for_best_model": "loss",
    "precision": "fp32",
    "device": "cpu",
    "image_cache": "none",
    "dataloader_num_workers": "0",
    "torch_compile": "off",
    "tune_malloc": False,
    "async_save": False,
}
PRESETS: dict[str, dict[str, Any]] = {"beans": BEANS, "best": BEST, "leaves": LEAVES, "debug": DEBUG, "trainer": {}}


def choose_preset(asked: str, named: set[str], cache_dir: str | None) -> tuple[str, str]:
    """The preset to take, and why.

    Args:
        asked: the value of --preset.
        named: the flags that the user gave.
        cache_dir: the Hub cache to look in.
    """
    if asked != "auto":
        return asked, "as asked"
    if chosen := sorted(named & {"dataset", "model"}):
        return "beans", f"the recipe of beans, with the {' and '.join(chosen)} that you named"
    if hub.is_cached(BEANS_MODEL, "model", cache_dir) and hub.is_cached(BEANS_DATASET, "dataset", cache_dir):
        return "beans", "its dataset and model are in the Hub's local cache"
    unreachable = hub.why_unreachable()
    if unreachable is None:
        return "beans", "the Hub can be reached"
    return "leaves", f"{unreachable}, so the built-in leaves stand in for beans"
