"""`plainloop inspect`: what a data set holds, and what is wrong with it, before anything is trained."""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import files
from train.config.cli import problems, read_flags
from train.config.flags import Parser, add_flag, no_such_flag
from train.config.given import TYPED
from train.config.record import dataset_stem
from train.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, RecipeConfig, RunConfig
from train.distributed.env import world_size
from train.errors import ConfigError
from train.system import hub
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from data.inspect.survey import Seen
    from data.reading.splits import Splits
    from models.classifier import Classifier
    from models.loading import LoadedModel
    from train.precision import Precision

JSON, HTML = "inspect.json", "inspect.html"
MADE_BY = "plainloop inspect"  # in inspect.json, to know a folder of this command again
DATA_FLAGS = (
    *(
        "dataset",
        "train_dir",
        "validation_dir",
        "test_dir",
        "dataset_config_name",
        "image_column_name",
        "label_column_name",
        "train_val_split",
    ),
    *("max_train_samples", "max_eval_samples", "seed", "split_seed", "cache_dir"),
)
FLAGS_HERE = (*DATA_FLAGS, "model", "model_revision", "folds", "output_dir", "device", "precision", "debug")
HELP = {
    "model": "Folder of a run on these classes, or any pretrained checkpoint: lists labels that it contradicts.",
    "folds": "Of a model trained on other classes, judge each image by a head on its features that was trained on the"
    " other of so many folds of the images. Default: 5.",
    "output_dir": "Folder for inspect.json and inspect.html: new, empty, or of an earlier inspection, which is"
    " replaced. Default: inspect-DATASET.",
}
DESCRIPTION = """Counts, sizes, broken files, duplicates (also across the splits, and with contradictory labels) of a
data set, as a training with the same flags reads it. Of a training's CONFIG.yaml only the flags of the data count."""
SEEN = "of training images weak evidence, if the model was trained on them"
OUT_OF_FOLD = "by heads on the model's features that have not seen the image"
SURE = 0.8  # probability from which a model's contradiction is listed
BATCH = 32
FOLDS = 5  # of a model that was trained on other classes
PROBE = RecipeConfig(num_train_epochs=20.0, per_device_train_batch_size=16, learning_rate=1e-3)  # of its heads


def main(arguments: list[str]) -> int:
    """Inspect, and return the exit code: 0 whatever was found, 2 for what cannot be used."""
    return ended(arguments, lambda signals: run(arguments, signals))


def parse(arguments: Sequence[str]) -> Config:
    """The flags; ConfigError for one that is wrong or missing."""
    parser = Parser(
        prog="plainloop inspect",
        usage="plainloop inspect [CONFIG.yaml] --dataset X [--model RUN] [--flag value ...]",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for section in (DataConfig, RunConfig, ModelConfig):
        for item in fields(section):
            if item.name in FLAGS_HERE:
                add_flag(parser, section, item, HELP.get(item.name))
    flags = read_flags(parser, arguments)
    flags.given = {name: given for name, given in flags.given.items() if given.source == TYPED or name in DATA_FLAGS}
    for name in [name for name in flags.given if name not in FLAGS_HERE]:
        given = flags.take(name)
        flags.refuse(f"--{given.spelled}", no_such_flag(given.spelled, FLAGS_HERE))
    if found := problems(parser, flags):
        raise ConfigError("; ".join(found))
    values = parser.parse_args(flags.tokens())
    if not values.dataset:
        raise ConfigError("--dataset: name one")
    if values.folds and not values.model:
        raise ConfigError("--folds: judges images by a network's features; name a --model")
    sections = (
        section(**{name: value for name, value in vars(values).items() if name in section.__dataclass_fields__})
        for section in (RunConfig, DataConfig, ModelConfig)
    )
    return Config(*sections, AugmentConfig(), PROBE, notes=flags.all_notes())


def run(arguments: Sequence[str], _: Signals) -> None:
    """Read the data, print what was found, and write it."""
    config = parse(arguments)
    if world_size() > 1:
        raise ConfigError("plainloop inspect: works in one process; leave torchrun out")
    folder = Path(config.run.output_dir or f"inspect-{dataset_stem(config.data.dataset)}")
    check_folder(folder)
    if config.run.cache_dir:
        hub.move_caches(config.run.cache_dir)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from data.inspect import report
    from data.inspect.survey import look, survey, suspicious
    from train.precision import choose_compute
    from train.setup.inputs import load_classifier, load_data
    from train.system.console import say

    for note in config.notes:
        say(note)
    offline = hub.is_offline(config.data.dataset, config.model.model)
    splits = load_data(config, offline)
    if config.model.model:
        precision = choose_compute(config.run)
        loaded = load_classifier(config, None, splits.label_names, precision, offline)
        if config.model.model.startswith("builtin:"):
            raise ConfigError(f"--model {config.model.model}: is not trained, so it has no opinion of labels")
        seen, probabilities = classified(splits, loaded, config, precision)
    else:
        seen, probabilities = [image for image, _ in look(splits)], None
    found = {"made_by": MADE_BY, "model": config.model.model} | survey(splits, seen)
    if probabilities is not None:
        found["suspicious_labels"] = suspicious(splits, seen, probabilities, SURE)
        found["about_suspicious_labels"] = OUT_OF_FOLD if loaded.new_head else SEEN
    for line in report.lines(found):
        say(line)
    write(folder, found, report.html(found, splits))
    say(f"written: {folder / HTML}, {folder / JSON}")


def check_folder(folder: Path) -> None:
    """Refuse, before anything slow happens, a folder that holds anything but an earlier inspection.

    Raises:
        ConfigError: it is a file, holds something else, or cannot be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output_dir {folder}: is a file, not a folder")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        names = {name for name in names if not name.startswith(files.TEMPORARY)}
        if names and not (names <= {JSON, HTML} and _made_here(folder / JSON)):
            raise ConfigError(f"--output_dir {folder}: holds something else than an inspection; name a new folder")
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be read: {error.strerror}") from error


def _made_here(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(folder: Path, found: dict[str, Any], page: str) -> None:
    """Both files; inspect.json first, by which the folder is known again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / JSON, json.dumps(found, indent=2) + "\n")
        files.write_text(folder / HTML, page)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written in: {error.strerror}") from error


def looked_at(
    splits: "Splits", model: "Classifier", precision: "Precision", compute: "Callable[[torch.Tensor], torch.Tensor]"
) -> tuple[list["Seen"], list["torch.Tensor | None"]]:
    """Every image, and its row of what `compute` makes of a batch; None for an image that cannot be decoded."""
    import torch

    from data.inspect.survey import look
    from train.inference.predictor import resize_for

    model.eval()
    seen, rows = [], []
    waiting: dict[int, torch.Tensor] = {}

    def work() -> None:
        with torch.no_grad(), precision.autocast():
            found = compute(torch.stack(list(waiting.values())).to(precision.device)).float().cpu()
        for position, row in zip(waiting, found, strict=True):
            rows[position] = row
        waiting.clear()

    for image, pixels in look(splits, resize_for(model)):
        seen.append(image)
        rows.append(None)
        if pixels is not None:
            waiting[len(seen) - 1] = pixels
        if len(waiting) == BATCH:
            work()
    if waiting:
        work()
    return seen, rows


def classified(
    splits: "Splits", loaded: "LoadedModel", config: Config, precision: "Precision"
) -> tuple[list["Seen"], list[list[float] | None]]:
    """Every image, and the probability of each class; None for an image that cannot be decoded.

    Of a model that was trained on other classes, by heads on its features that have not seen the image.
    """
    model = loaded.model
    compute = model.features if loaded.new_head else lambda pixels: model(pixels).float().softmax(-1)
    seen, rows = looked_at(splits, model, precision, compute)
    if loaded.new_head:
        rows = _out_of_fold(splits, seen, rows, model, config, precision)
    return seen, [None if row is None else row.tolist() for row in rows]


def _out_of_fold(
    splits: "Splits",
    seen: list["Seen"],
    rows: list["torch.Tensor | None"],
    model: "Classifier",
    config: Config,
    precision: "Precision",
) -> list["torch.Tensor | None"]:
    import torch

    from train.loss import cross_entropy_sum
    from train.setup.folds import assign_folds, out_of_fold

    sound = [position for position, row in enumerate(rows) if row is not None]
    labels = [seen[position].label for position in sound]
    folds = config.run.folds or FOLDS
    fold = assign_folds(labels, [seen[position].digest or b"" for position in sound], folds, config.run.seed)
    features = torch.stack([rows[position] for position in sound])
    found = out_of_fold(model.vit.classifier, features, labels, fold, config, precision, cross_entropy_sum)
    for position, row in zip(sound, found, strict=True):
        rows[position] = row
    return rows
