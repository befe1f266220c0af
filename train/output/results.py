"""What a finished run leaves behind: the best model, its card, and the results in the Trainer's files and keys."""

import json
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data import DataError, files
from data.loading.workers import WorkerError
from data.pipeline import DataPipeline
from data.plan import Plan
from models.classifier import Classifier
from models.loading import LoadedModel, load_model
from train.checkpoint.best import evaluations, keep_sound_best
from train.checkpoint.manifest import MODEL_FILES, CheckpointError, verify
from train.config.record import TEMPERATURE_FILE, read_log
from train.config.schema import FLAGS, FREE, IMPORTS_CODE, Config, RecipeConfig
from train.distributed.collectives import on_rank_zero
from train.distributed.env import rank, world_size
from train.distributed.parallel import shard
from train.errors import RunError
from train.evaluate import Metrics, evaluate, of_first_classes
from train.inference.temperature import temperature_of
from train.output.model_card import write_model_card
from train.output.pictures import MOST_CLASSES, confusion_picture, prediction_picture
from train.output.run_output import RunOutput
from train.precision import Precision
from train.recipes.predictions import write_predictions
from train.recipes.statistics import wilson_interval
from train.report.page import PAGE, write_report
from train.report.pictures import ImageBytes
from train.state import Best, TrainState
from train.system.console import say


def finish(
    config: Config,
    decided: dict[str, Any],
    state: TrainState,
    data: DataPipeline,
    output: RunOutput,
    stopped: bool,
) -> None:
    """After the last update: evaluate the best model as it lies on the disk, export it, and record the results.

    After an early stop, write only `trainer_state.json` and print how to continue.

    Raises:
        RunError: no model can be called the best: every evaluation gave NaN, no checkpoint of one is sound, or the
            best one now gives another figure than while training.
    """
    plan, folder = data.plan, output.folder
    keep_sound_best(folder, state.best, until=state.step)
    if rank() == 0:
        write_trainer_state(folder, state, plan, config.recipe)
    done = state.step == plan.total_updates or bool(state.ended)
    if stopped or not done:
        where = "the last update" if done else f"update {state.step} of {plan.total_updates}"
        to_what = "to evaluate and export the model" if done else "to continue"
        say(f"stopped after {where}; {to_what}: {resume_command(folder, config.recipe)}")
        return
    if state.ended:
        say(f"ended after update {state.step} of {plan.total_updates}: {state.ended}")
    if state.best.step is None:
        raise RunError(why_no_best(folder, state))
    checkpoint = folder / f"checkpoint-{state.best.step}"
    model = _reloaded(checkpoint, config, decided["attention"], state.precision, data.label_names)
    metrics = evaluate(model, data.validation_batches(), state.precision, data.label_names, with_predictions=True)
    check_reevaluation(state.best, metrics)
    on_rank_zero(lambda: export(checkpoint, folder))
    test = evaluate_on_test(model, data, state.precision)
    if rank() != 0:
        return
    evaluation = eval_results(metrics) | {"epoch": plan.epoch(state.best.step)}
    choices = {name: decided[name] for name in ("preset", "preset_reason", "precision", "preparation_seconds")}
    write_results(folder, evaluation, test, train_results(state, plan) | choices)
    write_model_card(folder, config, decided, state, evaluation, test)
    log_pictures(output, state.step, metrics, data)
    output.log_outcome(state.step, metrics.values)
    # Last, because a run that has it is finished; only the page is made from it.
    write_predictions(folder, metrics.predictions, data.validation_names(), data.label_names)
    write_page(folder, data.validation_image)
    print_summary(folder, config, state, metrics, evaluation, test)


def write_results(
    folder: Path, evaluation: dict[str, Any], test: dict[str, Any] | None, training: dict[str, Any]
) -> None:
    """The Trainer's files of results: one for each part, and one of all."""
    parts = {"train": training, "eval": evaluation, "test": test}
    for name, part in parts.items():
        if part is not None:
            write_json(folder / f"{name}_results.json", part)
        else:  # left by an earlier finish that had a test split
            (folder / f"{name}_results.json").unlink(missing_ok=True)
    write_json(folder / "all_results.json", evaluation | (test or {}) | training)


def evaluate_on_test(model: Classifier, data: DataPipeline, precision: Precision) -> dict[str, Any] | None:
    """The best model's figures on the test split; None without one. Collective: every rank calls it.

    Raises:
        DataError: in several processes, an image cannot be read any more; a single one warns and returns None.
    """
    if data.test_batches is None:
        return None
    try:
        metrics = evaluate(model, data.test_batches(), precision, data.label_names)
    except (DataError, WorkerError) as error:
        if world_size() > 1:  # the other processes wait for this one's counts
            raise DataError(f"{error}; --no_test_at_end finishes without the test split") from error
        say(f"warning: no evaluation on the test split: {error}")
        return None
    return {name.replace("eval_", "test_", 1): value for name, value in eval_results(metrics).items()}


def _reloaded(
    checkpoint: Path, config: Config, attention: str, precision: Precision, label_names: list[str]
) -> Classifier:
    """From the checkpoint, as a user would load it: what was saved is judged, not what is in memory."""
    loaded = load_model(str(checkpoint), label_names, attention=attention, dtype=precision.dtype)
    model = loaded.model.to(precision.device)
    if config.run.fsdp:
        shard(model, model.blocks)
    return model


def print_summary(
    folder: Path,
    config: Config,
    state: TrainState,
    metrics: Metrics,
    evaluation: dict[str, Any],
    test: dict[str, Any] | None,
) -> None:
    """The last lines of a run: figures by class, where the time went, what the folder holds, what to type next."""
    for line in per_class_table(metrics):
        say(line)
    total = sum(state.seconds.values()) or 1e-9
    shares = ", ".join(f"{part} {spent / total:.1%}" for part, spent in state.seconds.items())
    say(f"time: {total:.1f} s of training; {shares}")
    best = metrics.values[state.best.metric]
    matches = "matches the log" if best == state.best.value else f"the log says {state.best.value!r}"
    low, high = evaluation["eval_accuracy_wilson_95"]
    say(
        f"done: {folder} holds the model of update {state.best.step}; verified: reloaded from disk, {state.best.metric}"
        f" {best:.6g} ({matches}), accuracy {metrics.values['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})"
    )
    if test is not None:
        low, high = test["test_accuracy_wilson_95"]
        say(
            f"test: accuracy {test['test_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) on"
            f" {test['test_samples']} images that selected nothing; the validation figure is optimistic, as it selected"
            " this model"
        )
    say(f"next: {evaluation_command(folder, config)}")
    if "tensorboard" in config.run.trackers:
        say(f"      tensorboard --logdir {shlex.quote(str(folder))}")


def per_class_table(metrics: Metrics) -> list[str]:
    """Precision, recall, F1 and number of images of each class, up to MOST_CLASSES of them."""
    names = [name.removeprefix("f1/") for name in metrics.values if name.startswith("f1/")]
    width = max(map(len, ["class", *names]))
    lines = [f"{'class':<{width}}  precision  recall     F1  images"]
    for name, row in list(zip(names, metrics.confusion, strict=True))[:MOST_CLASSES]:
        precision, recall, f1 = (metrics.values[f"{kind}/{name}"] for kind in ("precision", "recall", "f1"))
        lines.append(f"{name:<{width}}  {precision:>9.3f}  {recall:>6.3f}  {f1:>5.3f}  {sum(row):>6}")
    if len(names) > MOST_CLASSES:
        lines.append(f"and {len(names) - MOST_CLASSES} more classes, in eval_results.json")
    return lines


def resume_command(folder: Path, recipe: RecipeConfig) -> str:
    """What to type to continue the run in `folder`; with the classes to import, which a record is not trusted with."""
    command = ["plainloop", "train", *_flag("output_dir", folder), "--resume_from_checkpoint", "auto"]
    for name in IMPORTS_CODE:
        if ":" in getattr(recipe, name):
            command += _flag(name, getattr(recipe, name))
    return shlex.join(command)


def _flag(name: str, value: object) -> list[str]:
    """A flag as one types it; argparse would take a value that begins with a dash for another flag."""
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def why_no_best(folder: Path, state: TrainState) -> str:
    """Why a run that is finished has no best model."""
    if any(evaluations(folder, state.best, until=state.step)):
        return f"{folder}: every checkpoint of an evaluated model is lost, so no model is exported; train again"
    return f"{state.best.metric} was nan in every evaluation; try a lower --learning_rate"


def check_reevaluation(best: Best, metrics: Metrics) -> None:
    """Refuse a best model that gives another figure than it did while training.

    Another processor or number of processes rounds differently, so a loss may differ by a thousandth, and a rate by
    one image of the smallest class.

    Raises:
        RunError: names both figures.
    """
    now = metrics.values[best.metric]
    one_image = 1.5 / max(1, min(sum(row) for row in metrics.confusion if any(row)))
    allowed = 1e-3 * max(1.0, abs(best.value)) if best.metric == "loss" else max(1e-3, one_image)
    if not abs(now - best.value) <= allowed:
        raise RunError(
            f"the best model (update {best.step}) gave {best.metric} {best.value:.6g} while training, and {now:.6g} now"
            " that it was read back from its checkpoint; it is not exported; check the data set and this machine"
        )


def evaluation_command(folder: Path, config: Config) -> str:
    """What to type to evaluate the model in `folder` on the same validation images."""
    command = ["plainloop", "train", *_flag("model", folder), *_flag("dataset", config.data.dataset), "--eval_only"]
    chosen = asdict(config.data) | {"seed": config.run.seed}  # the seed draws a subset, or a split that is held out
    for name, value in chosen.items():
        if name not in FREE | {"dataset", "max_train_samples"} and value != FLAGS[name].default:
            command.append(f"--{name}={value}")
    return shlex.join(command)


def export(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's model to the top of the run's folder, and read the copy back.

    Raises:
        RunError: the disk returns other bytes than the checkpoint's manifest names.
    """
    try:
        listed = verify(checkpoint)["files"]  # again: an evaluation may have taken an hour since
    except CheckpointError as error:
        raise RunError(
            f"the best checkpoint was damaged before it could be exported: {error}; check the disk"
        ) from error
    if (temperature := temperature_of(folder)) is not None:
        say(f"the temperature that was fitted here, {temperature:.4g}, is lost: the model is exported anew")
        (folder / TEMPERATURE_FILE).unlink(missing_ok=True)
    for name in MODEL_FILES:
        files.copy(checkpoint / name, folder / name)
        if files.sha256(folder / name) != listed[name]["sha256"]:
            (folder / name).unlink()
            raise RunError(f"{folder / name}: differs from {checkpoint / name} as it was saved; check the disk")
    if files.linked(folder / "best") != checkpoint.name:
        files.link(folder / "best", checkpoint.name)  # another one was the best, and is lost


def log_pictures(output: RunOutput, step: int, metrics: Metrics, data: DataPipeline) -> None:
    """Give the trackers the confusion matrix, and, where images are stored, the worst mistakes and a few right ones."""
    pictures, image, names = {}, data.validation_image, data.label_names
    if image is not None:
        try:
            pictures["validation/predictions"] = prediction_picture(metrics.predictions, image, names)
        except DataError as error:  # a file that training had in its cache has gone since
            say(f"warning: trackers get no predictions: {error}")
    if len(names) <= MOST_CLASSES:
        pictures["validation/confusion"] = confusion_picture(metrics.confusion, names)
    output.log_pictures(step, pictures)


def write_page(folder: Path, image: ImageBytes | None) -> None:
    """Write report.html. The run is finished all the same if that fails, and says why."""
    try:
        write_report(folder, image)
    except Exception as error:  # whatever it is: no reason to call a trained model failed
        again = shlex.join(["plainloop", "report", str(folder)])
        say(f"warning: {folder / PAGE} is not written: {error}; to try again: {again}")
    else:
        say(f"report: {folder / PAGE}")


def print_evaluation(loaded: LoadedModel, data: DataPipeline, precision: Precision) -> None:
    """The metrics of --eval_only, as JSON on standard output.

    Args:
        loaded: its first classes are those of the data, and it may have more.
        data: whose validation images are judged.
        precision: of the computation.
    """
    names = list(loaded.model.vit.config.id2label.values())
    try:
        metrics = evaluate(loaded.model, data.validation_batches(), precision, names)
    except WorkerError as error:
        raise RunError(f"--eval_only: {error}") from error
    if more := len(names) - len(data.label_names):
        metrics = of_first_classes(metrics, data.label_names)
        say(
            f"evaluation: the model has {len(names)} classes, {more} of which the data does not have: it may predict"
            " them, and is wrong then (last column of the confusion counts); macro averages are over the classes that"
            " have images"
        )
    if rank() == 0:
        print(json.dumps(eval_results(metrics), indent=2), flush=True)
        if failure := getattr(sys.stdout, "failure", None):
            raise RunError(f"--eval_only: the metrics cannot be written: {failure}")


def train_results(state: TrainState, plan: Plan) -> dict[str, float]:
    """The Trainer's summary of training, with the rates over training time alone: no evaluation, no saves.

    Where all the time went is there as well, in seconds; for a resumed run, summed over its starts.
    """
    seconds = max(state.train_seconds, 1e-9)
    return {
        "epoch": plan.epoch(state.step),
        "train_loss": state.loss_total.item() / max(state.step, 1),
        "train_runtime": state.train_seconds,
        "train_samples": plan.samples,
        "train_samples_per_second": plan.samples_until(state.step) / seconds,
        "train_steps_per_second": state.step / seconds,
        "skipped_updates": state.skipped,
        **{f"{part}_seconds": seconds for part, seconds in state.seconds.items()},
        **({"ended": state.ended} if state.ended else {}),
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


def write_trainer_state(folder: Path, state: TrainState, plan: Plan, recipe: RecipeConfig) -> None:
    """trainer_state.json with the keys that tools made for the Trainer read."""
    best = None if state.best.step is None else str(folder / f"checkpoint-{state.best.step}")
    write_json(
        folder / "trainer_state.json",
        {
            "best_metric": state.best.value,
            "best_global_step": state.best.step,
            "best_model_checkpoint": best,
            "epoch": plan.epoch(state.step),
            "global_step": state.step,
            "max_steps": plan.total_updates,
            "num_train_epochs": math.ceil(plan.epoch(plan.total_updates)),
            "logging_steps": recipe.logging_steps,
            "eval_steps": recipe.eval_steps,
            "save_steps": recipe.save_steps,
            "train_batch_size": recipe.per_device_train_batch_size,
            "is_local_process_zero": True,
            "is_world_process_zero": True,
            "log_history": read_log(folder),
        },
    )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file atomically."""
    files.write_text(path, json.dumps(document, indent=2) + "\n")
