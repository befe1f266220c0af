"""What the page says of one run, ready for the template: text, rows and charts."""

from collections import Counter
from typing import Any

from train.recipes.predictions import Prediction, some_right, worst
from train.recipes.statistics import wilson_interval
from train.report.charts import Chart, Line, Point, chart
from train.report.gather import Gathered
from train.report.pictures import Pictures, by_cell
from train.report.provenance import command, environment, times

MOST_CELLS = 1600  # of all confusion matrices of a page: one of 40 classes
MOST_ROWS = 1000  # of all tables of classes
MOST_LISTED = 600  # images named in cells, of all matrices
MOST_IN_CELL = 12
MOST_PAIRS = 20
MOST_BARS = 40  # classes whose balance is drawn
FIGURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1", "loss": "loss"}
SPLITS = {"train": "training", "validation": "validation"}
WARNING = "warning: "


def section(run: Gathered, pictures: Pictures, share: int, number: int) -> dict[str, Any]:
    """Everything the template shows of one run.

    Args:
        run: as its folder has it.
        pictures: thumbnails of its validation images.
        share: this run may take one part of so many of a page.
        number: of this run on the page, from 0.
    """
    names, flags, notes = run.label_names, run.record["config"], run.record.get("data_notes", [])
    found = {
        "id": f"r{number}",
        "name": run.name,
        "model": flags.get("model") or "a model of its own",
        "dataset": flags.get("dataset") or "data of its own",
        "counts": [(run.record.get(f"{split}_images"), SPLITS[split]) for split in ("train", "validation")],
        "classes": len(names),
        "state": state(run),
        "ended": run.training.get("ended"),
        "best_step": run.best_step,
        "charts": curves(run),
        "balance": balance(run),
        "time": times(run),
        "warnings": [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)],
        "notes": [note for note in notes if not note.startswith(WARNING)] + scaled(run),
        "environment": environment(run),
        "command": command(flags),
        "preset_reason": run.record.get("preset_reason"),
        "pictures": pictures,
        "finished": run.finished,
    }
    if not run.finished:
        return found
    cells = by_cell(run.predictions)
    wrong = sum(len(images) for (label, taken), images in cells.items() if label != taken)
    return found | {
        "figures": figures(run),
        "tested": bool(run.test),
        "rows": class_rows(run)[: max(1, MOST_ROWS // share)],
        "matrix": matrix(run, cells, share) if len(names) ** 2 * share <= MOST_CELLS else None,
        "pairs": [] if len(names) ** 2 * share <= MOST_CELLS else confused_pairs(run, cells),
        "wrong": wrong,
        "judged": len(run.predictions),
        "worst": [shown(run, image) for image in worst(run.predictions)],
        "right": [shown(run, image) for image in some_right(run.predictions)],
    }


def scaled(run: Gathered) -> list[str]:
    """A note, if the model's probabilities are no longer those of this page."""
    if run.temperature is None:
        return []
    return [f"after these figures were measured, the logits were divided by a temperature of {run.temperature:.4g}"]


def state(run: Gathered) -> str | None:
    """How far a run has come that is not finished."""
    if run.finished:
        return None
    step, total = max((entry["step"] for entry in run.log), default=0), run.record["total_updates"]
    if step < total:
        return f"not finished, update {step} of {total}"
    return f"not finished: all {total} updates are done, and the results are not written yet"


def figures(run: Gathered) -> list[dict[str, Any]]:
    """Rows of figures, of validation and test; an accuracy with its 95 % interval."""
    rows = []
    for name, title in FIGURES.items():
        row = {"title": title, "percent": name != "loss"}
        for part, results in (("eval", run.evaluation), ("test", run.test)):
            row[part] = results.get(f"{part}_{name}")
            row[f"{part}_interval"] = results.get(f"{part}_accuracy_wilson_95") if name == "accuracy" else None
        rows.append(row)
    return rows


def points(run: Gathered, name: str) -> list[Point]:
    """(update, value) of what was logged under a name."""
    return [(entry["step"], float(entry[name])) for entry in run.log if entry.get(name) is not None]


def curves(run: Gathered) -> list[Chart]:
    """Loss, accuracy and learning rate."""
    accuracies = [Line("accuracy", points(run, "eval_accuracy"), 1)]
    accuracies += [Line("balanced", points(run, "eval_balanced_accuracy"), 2)]
    if accuracies[0].points == accuracies[1].points:
        accuracies.pop()
    made = [
        chart(
            "Loss",
            [Line("training", points(run, "loss")), Line("validation", points(run, "eval_loss"), 1)],
            run.best_step,
        ),
        chart("Validation accuracy", accuracies, run.best_step),
        chart("Learning rate", [Line("", points(run, "learning_rate"))], run.best_step),
    ]
    return [drawn for drawn in made if drawn is not None]


def class_rows(run: Gathered) -> list[dict[str, Any]]:
    """A row for each class, that of the lowest recall first where there are more than can be seen at a glance."""
    confusion, trained = run.evaluation["eval_confusion"], run.record.get("train_counts")
    rows = []
    for index, name in enumerate(run.label_names):
        support, hits = sum(confusion[index]), confusion[index][index]
        taken = sum(row[index] for row in confusion)
        rows.append(
            {
                "name": name,
                "train": trained[index] if trained else None,
                "support": support,
                "recall": hits / support if support else None,
                "interval": wilson_interval(hits, support) if support else None,
                "precision": hits / taken if taken else None,
                "f1": 2 * hits / (support + taken) if support + taken else None,
            }
        )
    if len(rows) > MOST_BARS:
        rows.sort(key=lambda row: (row["recall"] is None, row["recall"]))
    return rows


def balance(run: Gathered) -> list[tuple[str, int | None, int | None]]:
    """(class, training images, validation images); of many classes the largest and the smallest."""
    trained = run.record.get("train_counts")
    judged = Counter(found.label for found in run.predictions) if run.finished else None
    rows = [
        (name, trained[index] if trained else None, judged[index] if judged is not None else None)
        for index, name in enumerate(run.label_names)
    ]
    rows = [row for row in rows if row[1:] != (None, None)]
    if len(rows) <= MOST_BARS:
        return rows
    rows.sort(key=lambda row: -(row[1] if row[1] is not None else row[2]))
    return rows[: MOST_BARS // 2] + rows[-MOST_BARS // 2 :]


def matrix(run: Gathered, cells: dict[tuple[int, int], list[Prediction]], share: int) -> list[dict[str, Any]]:
    """The rows of the confusion matrix; a cell that is not empty has images to open."""
    confusion = run.evaluation["eval_confusion"]
    most = max(1, min(MOST_IN_CELL, MOST_LISTED // share // max(1, len(cells))))
    rows = []
    for label, counts in enumerate(confusion):
        cells_of_row = []
        for predicted, count in enumerate(counts):
            images = cells.get((label, predicted), [])[:most]
            cells_of_row.append(
                {
                    "count": count,
                    "heat": 0.3 + 0.7 * count / sum(counts) if count else 0,  # so that few are seen
                    "right": label == predicted,
                    "predicted": run.label_names[predicted],
                    "id": f"{label}-{predicted}",
                    "images": [shown(run, image) for image in images],
                }
            )
        rows.append({"name": run.label_names[label], "cells": cells_of_row})
    return rows


def confused_pairs(run: Gathered, cells: dict[tuple[int, int], list[Prediction]]) -> list[dict[str, Any]]:
    """The pairs of classes that were taken for each other most, where there are too many for a matrix."""
    wrong = sorted((item for item in cells.items() if item[0][0] != item[0][1]), key=lambda item: -len(item[1]))
    return [
        {
            "label": run.label_names[label],
            "predicted": run.label_names[predicted],
            "count": len(images),
            "of": sum(run.evaluation["eval_confusion"][label]),
            "id": f"{label}-{predicted}",
            "images": [shown(run, image) for image in images[:MOST_IN_CELL]],
        }
        for (label, predicted), images in wrong[:MOST_PAIRS]
    ]


def shown(run: Gathered, image: Prediction) -> dict[str, Any]:
    """What stands under a picture."""
    return {
        "index": image.index,
        "name": "/".join(run.images[image.index].split("/")[-3:]),  # split, class and file, of a folder
        "label": run.label_names[image.label],
        "predicted": run.label_names[image.predicted],
        "right": image.label == image.predicted,
        "probability": image.probability,
        "label_probability": image.label_probability,
    }
