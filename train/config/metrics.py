"""The names of the metrics of an evaluation, and which one chooses the best model."""

from train.errors import ConfigError

SUMMARIES = ("accuracy", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro")
PER_CLASS = ("f1", "precision", "recall")


def metric_names(label_names: list[str]) -> list[str]:
    """Every name that --metric_for_best_model can choose, without the prefix eval_."""
    return ["loss", *SUMMARIES, *(f"{name}/{label}" for name in PER_CLASS for label in label_names)]


def check_metric(flag: str, name: str, label_names: list[str]) -> None:
    """ConfigError if no evaluation yields a metric of that name."""
    if name not in (names := metric_names(label_names)):
        raise ConfigError(f"--{flag} {name}: no such metric; choose from {', '.join(names)}")


def choose_metric(asked: str, greater_is_better: bool | None, label_names: list[str]) -> tuple[str, bool]:
    """The metric that chooses the best model, and whether more of it is better.

    Raises:
        ConfigError: no evaluation yields a metric of that name.
    """
    name = asked.removeprefix("eval_")
    check_metric("metric_for_best_model", name, label_names)
    return name, greater_is_better if greater_is_better is not None else name != "loss"
