"""`plainloop evaluate`: the metrics of a trained model on a split of a data set."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import files
from train.commands.shared import (
    add_data_flags,
    add_model_flags,
    check_batch_size,
    command_parser,
    data_of,
    load_model_of,
    load_split_of,
    record_of,
)
from train.config.record import RECORD, check_trained, read_record
from train.errors import ConfigError
from train.system import hub
from train.system.console import data_only, say
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from data.reading.splits import Splits
    from train.config.schema import DataConfig
    from train.evaluate import Metrics
    from train.inference.predictor import Predictor
    from train.setup.evaluation import EvaluationData

ALREADY = 1e-3  # so close to 1, a second temperature is the first one again
JSON, DIAGRAM = "evaluation.json", "reliability.svg"
MOST_CLASSES = 40  # lines of a table in the terminal
DESCRIPTION = """Accuracy with its interval, figures by class, calibration. Without --dataset: the run's own data. The
data may have fewer classes than the model."""


def main(arguments: list[str]) -> int:
    """Evaluate, and return the exit code: 0 whatever was found, 2 for what cannot be used."""
    return ended(arguments, lambda signals: run(arguments, signals))


def run(arguments: Sequence[str], _: Signals) -> None:
    """Evaluate, and print what was found: as lines, or as JSON alone."""
    values = parse(arguments)
    if values.json:
        with data_only() as stdout:
            print(json.dumps(evaluated(values), indent=2), file=stdout, flush=True)
    else:
        evaluated(values)


def evaluated(values: argparse.Namespace) -> dict[str, Any]:
    """The document of evaluation.json; prints it in short, and writes it with --out."""
    check_trained(values.run)
    data, seed = data_of(values)
    if values.cache_dir:
        hub.move_caches(values.cache_dir)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from train.setup.evaluation import document, evaluate_model

    splits = load_split_of(values, data, seed, *([values.split] if values.split else ["test", "validation"]))
    if values.fit_temperature:
        fit(values, data, seed)
    predictor = load_model_of(values, splits.label_names)
    evaluation = ready(values, data, splits, predictor)
    check_same_images(values, evaluation)
    metrics = evaluate_model(predictor, evaluation)
    found = document(metrics, evaluation, predictor)
    for line in lines(found):
        say(line)
    if values.out:
        write_files(Path(values.out), found, metrics, evaluation, predictor)
    return found


def write_files(
    folder: Path, found: dict[str, Any], metrics: "Metrics", evaluation: "EvaluationData", predictor: "Predictor"
) -> None:
    """The three files of --out; evaluation.json last, by which the folder is known again."""
    from train.inference.calibration import reliability_svg
    from train.recipes.predictions import write_predictions
    from train.setup.evaluation import reliability_of

    names = evaluation.splits.validation.image_names()
    write_predictions(folder, metrics.predictions, names, predictor.label_names)
    files.write_text(folder / DIAGRAM, reliability_svg(reliability_of(metrics)))
    files.write_text(folder / JSON, json.dumps(found, indent=2) + "\n")
    say(f"written: {folder / JSON}, predictions.csv, {DIAGRAM}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; ConfigError for one that is wrong."""
    parser = command_parser("evaluate", "RUN [--dataset X] [--split test] [--out FOLDER]", DESCRIPTION)
    add_model_flags(parser)
    add_data_flags(parser, "Data set to evaluate on. Default: the run's own, read as the run read it.")
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="Default: test where there is one, else validation."
    )
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="Images at once. Default: 32.")
    parser.add_argument("--out", metavar="FOLDER", help=f"Write {JSON}, predictions.csv and {DIAGRAM} here.")
    parser.add_argument("--json", action="store_true", help=f"Print {JSON} and nothing else.")
    parser.add_argument(
        "--fit_temperature",
        action="store_true",
        help="First divide the logits of the model in RUN by the number that makes validation most probable, for good:"
        " predict, serve, export and every other program that loads the model give calibrated probabilities then.",
    )
    values = parser.parse_args(list(arguments))
    check_batch_size(values.batch_size)
    if values.out:
        _check_folder(Path(values.out))
    return values


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no evaluation's, and make a new one, before anything slow, or lasting, happens."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file, not a folder")
    if (folder / RECORD).exists():
        raise ConfigError(f"--out {folder}: is the folder of a run, whose predictions.csv is its own; name another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON).exists():
        raise ConfigError(f"--out {folder}: holds something else than an evaluation; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made: {error.strerror}") from error


def check_same_images(values: argparse.Namespace, evaluation: "EvaluationData") -> None:
    """Say it if the run's own validation images are no longer those that it was judged on."""
    validation, record = evaluation.splits.validation.name == "validation", record_of(values.run)
    if values.dataset is not None or not validation or record is None:
        return
    known = read_record(record).get("validation_fingerprint")
    if known is not None and evaluation.splits.validation_fingerprint() != known:
        say("warning: these validation images, or their labels, are not those that the run was judged on")


def ready(values: argparse.Namespace, data: "DataConfig", splits: "Splits", predictor: "Predictor") -> "EvaluationData":
    """The images, decoded for the model."""
    from train.setup.evaluation import prepare

    return prepare(splits, predictor, values.batch_size, data.skip_bad_images, values.cache_dir)


def fit(values: argparse.Namespace, data: "DataConfig", seed: int) -> None:
    """Fit the temperature on validation, and keep it in the model's folder."""
    import torch

    from train.inference import temperature
    from train.output.model_card import note_temperature

    folder = temperature.check_folder(values.run)
    splits = load_split_of(values, data, seed, "validation")
    predictor = load_model_of(values, splits.label_names)
    evaluation = ready(values, data, splits, predictor)
    logits = torch.cat([predictor.logits(batch["pixel_values"]) for batch in evaluation.batches()])
    found = temperature.fit_temperature(logits, evaluation.labels)
    before, after = (temperature.loss_and_error(logits / by, evaluation.labels) for by in (1.0, found))
    record = {"fitted_on": f"validation of {splits.dataset}", "images": len(logits), "before": before, "after": after}
    if abs(found - 1) < ALREADY and (known := temperature.temperature_of(folder)) is not None:
        say(f"temperature: {known:.4g}, fitted before; these images ask for no other")
        return
    total = temperature.divide_head(folder, found, record)
    note_temperature(folder, total, len(logits))
    changes = ", ".join(f"{name.replace('_', ' ')} {old:.4f} -> {after[name]:.4f}" for name, old in before.items())
    say(f"temperature: {total:.4g}, fitted on {len(logits)} validation images: {changes}")
    say(f"temperature: kept in {folder}; what was exported before does not have it")


def lines(found: dict[str, Any]) -> list[str]:
    """An evaluation for the terminal."""
    low, high = found["accuracy_wilson_95"]
    shown = [
        f"{found['split']}: {found['images']} images, accuracy {found['accuracy']:.4f} (95 % interval {low:.4f} to"
        f" {high:.4f}), balanced accuracy {found['balanced_accuracy']:.4f}, macro F1 {found['f1_macro']:.4f},"
        f" loss {found['loss']:.4f}, calibration error {found['expected_calibration_error']:.4f}"
    ]
    width = max(map(len, ["class", *found["classes"]]))
    shown.append(f"{'class':<{width}}  precision  recall     F1  images")
    for name, row in list(found["classes"].items())[:MOST_CLASSES]:
        rates = f"{row['precision']:>9.3f}  {row['recall']:>6.3f}  {row['f1']:>5.3f}  {row['images']:>6}"
        shown.append(f"{name:<{width}}  {rates}")
    if len(found["classes"]) > MOST_CLASSES:
        shown.append(f"and {len(found['classes']) - MOST_CLASSES} more classes, with --json")
    return shown
