"""`plainloop report`: a page about one run, or about several side by side."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from train.commands.shared import check_out, command_parser
from train.errors import ConfigError
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from train.report.gather import Gathered
    from train.report.pictures import Pictures

DESCRIPTION = """Writes one HTML file that needs nothing else: curves, what was taken for what, and the worst mistakes
as pictures. Every finished run has one already, report.html; this makes it again, from what the run's folder holds and
the data set it names. Of a run that is still training, the page has what there is so far."""


def main(arguments: list[str]) -> int:
    """Write the page, and return the exit code: 2 for what is no run, or is damaged."""
    return ended(arguments, lambda signals: run(arguments, signals))


def run(arguments: Sequence[str], _: Signals) -> None:
    """Read the runs, load their validation images, and write the page."""
    parser = command_parser("report", "RUN... [--out PAGE.html]", DESCRIPTION)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder of a run, or of runs (--seeds, --sweep).")
    parser.add_argument(
        "--out", metavar="FILE", help="Default: report.html in the run's folder; of several runs, here."
    )
    values = parser.parse_args(list(arguments))
    if not values.runs or not all(values.runs):
        raise ConfigError("plainloop report: name the folders of runs")
    check_out(values.out)
    from train.recipes.runs import find_runs
    from train.report.gather import gather
    from train.report.page import PAGE, check_replaceable, render, write_page
    from train.system.console import say

    folders = [folder for name in values.runs for folder in find_runs(name)]
    path = Path(values.out or (folders[0] / PAGE if len(folders) == 1 else PAGE))
    check_replaceable(path)
    runs = [gather(folder) for folder in folders]
    pictures = [pictures_of(found, len(runs)) for found in runs]
    for found, made in zip(runs, pictures, strict=True):
        if made.missing:
            say(f"{found.folder}: no pictures: {made.missing}")
    if write_page(path, render(runs, pictures)):
        say(f"written: {path}")
    else:
        say(f"{path}: is left as it is, because it has pictures; --out writes the page without them elsewhere")


def pictures_of(found: "Gathered", runs: int) -> "Pictures":
    """The pictures of a run's validation images, read again as it recorded; or why there are none.

    Args:
        found: the run.
        runs: on the page, which share the pictures.
    """
    from train.report.pictures import NOT_STORED, Pictures

    if not found.finished:
        return Pictures()
    if found.record.get("validation_fingerprint") is None or found.record["config"].get("streaming"):
        return Pictures(missing=NOT_STORED)
    from data import DataError
    from train.report.pictures import make_pictures

    try:
        return make_pictures(found.predictions, _validation_image(found), runs)
    except (DataError, ConfigError, OSError) as error:
        return Pictures(missing=f"its validation images cannot be read again: {error}")


def _validation_image(found: "Gathered") -> Callable[[int], bytes]:
    """Image bytes by the index of the prediction; ConfigError if the data are others than the run was judged on."""
    from data.cache.check import all_images, find_bad_images, good_rows
    from train.config.cli import recorded
    from train.config.record import RECORD
    from train.setup.inputs import load_data
    from train.system import hub

    config = recorded(found.folder / RECORD)
    config.run.eval_only = True  # no training image is read
    splits = load_data(config, hub.is_offline(config.data.dataset))
    names = found.label_names
    if set(splits.label_names) <= set(names):  # a class without validation images may be unknown here
        labels = [names.index(splits.label_names[label]) for label in splits.validation.labels]
        splits = replace(splits, label_names=names, validation=replace(splits.validation, labels=labels))
    if config.data.skip_bad_images:
        sound = good_rows(splits.validation, find_bad_images(all_images(splits)))
        splits = replace(splits, validation=splits.validation.select(sound))
    if splits.validation_fingerprint() != found.record["validation_fingerprint"]:
        raise ConfigError("they are not those that it was judged on")
    return splits.validation.read
