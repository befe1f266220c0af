"""From runs to one page: rendered, and written where nothing better is lost."""

import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import DataError, files
from train.config.schema import FREE
from train.errors import ConfigError
from train.report.charts import Chart, Line, chart
from train.report.gather import Gathered, checked, gather
from train.report.pictures import NOT_STORED, ImageBytes, Pictures, make_pictures
from train.report.sections import points, section
from train.system.streams import printable

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "report.html"
MARK = '<meta name="generator" content="plainloop report">'
WITH_PICTURES = '<meta name="pictures" content="yes">'
HEAD_BYTES = 2000  # of a page, in which both stand
MOST_BYTES = 3_000_000
LONGEST_TEXT = 80  # of a name that others gave


def render(runs: list[Gathered], pictures: list[Pictures]) -> str:
    """The page of one run, or of several side by side.

    Where long names or many runs would make it larger than MOST_BYTES, it has fewer pictures, rows and cells, and says
    where the rest is.

    Raises:
        ConfigError: a folder holds what no run writes, or there are too many runs for one page.
    """
    beside = checked(runs[0].folder, lambda: side_by_side(runs)) if len(runs) > 1 else None
    template = _template()
    for share in (len(runs) * fewer for fewer in (1, 2, 4, 8, 16)):
        shown = [made.within(share) for made in pictures]
        sections = [
            checked(run.folder, partial(section, run, made, share, number))
            for number, (run, made) in enumerate(zip(runs, shown, strict=True))
        ]
        mark = f"{MARK}{WITH_PICTURES}" if any(made.by_index for made in shown) else MARK
        page = checked(runs[0].folder, partial(template.render, mark=mark, sections=sections, beside=beside))
        page = re.sub(r"\n\s+", "\n", page)
        if len(page.encode()) <= MOST_BYTES:
            return page
    raise ConfigError(f"the page of {len(runs)} runs would be larger than {MOST_BYTES // 10**6} MB; name fewer")


def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=clean,
    )
    environment.filters |= {"short": short, "percent": percent, "figure": figure, "duration": duration}
    return environment.get_template("page.html.j2")


def write_report(folder: Path, image: ImageBytes | None) -> None:
    """Write the page of a finished run into its folder.

    Args:
        folder: of the run.
        image: its validation images as encoded, by index; None if they were not stored.

    Raises:
        ConfigError: the page cannot be made or written.
    """
    run, pictures = gather(folder), Pictures(missing=NOT_STORED)
    if image is not None:
        try:
            pictures = make_pictures(run.predictions, image)
        except DataError as error:
            pictures = Pictures(missing=f"a validation image cannot be read any more: {error}")
    if not write_page(folder / PAGE, render([run], [pictures])):
        raise ConfigError(f"{folder / PAGE}: has pictures, and is left as it is")


def write_page(path: Path, page: str) -> bool:
    """Write a page; False where one with pictures lies, and this one has none.

    Raises:
        ConfigError: the file is something else, or cannot be written.
    """
    check_replaceable(path)
    try:
        if path.exists() and WITH_PICTURES in _head(path) and WITH_PICTURES not in page[:HEAD_BYTES]:
            return False
        files.write_text(path, page)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return True


def check_replaceable(path: Path) -> None:
    """Refuse to replace what is no page of this program."""
    try:
        if path.exists() and (not path.is_file() or MARK not in _head(path)):
            raise ConfigError(f"{path}: is not a report of plainloop, and is left as it is; name another file (--out)")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES).decode(errors="replace")


def side_by_side(runs: list[Gathered]) -> dict[str, Any]:
    """What several runs are compared by: flags that differ, and their curves in one picture."""
    flags = [{n: v for n, v in run.record["config"].items() if n not in FREE} for run in runs]
    flags = [found | {"precision": run.record.get("precision")} for run, found in zip(runs, flags, strict=True)]
    differing = [name for name in flags[0] if any(found.get(name) != flags[0][name] for found in flags)]
    named = Counter(run.name for run in runs)
    return {
        "differing": differing,
        "flags": [[found.get(name) for name in differing] for found in flags],
        "names": [run.name if named[run.name] == 1 else str(run.folder) for run in runs],
        "same_validation_images": len({run.record.get("validation_fingerprint") for run in runs}) == 1,
        "charts": [drawn for drawn in map(partial(_overlaid, runs), CURVES) if drawn],
    }


CURVES = {"loss": "Training loss", "eval_loss": "Validation loss", "eval_accuracy": "Validation accuracy"}
CURVES |= {"learning_rate": "Learning rate"}


def _overlaid(runs: list[Gathered], name: str) -> Chart | None:
    return chart(CURVES[name], [Line(str(n), points(run, name), n - 1) for n, run in enumerate(runs, 1)])


def clean(value: Any) -> Any:
    """Text of others without characters that a page must not hold, or that turn the text around."""
    if type(value) is not str:  # markup of the template is left as it is
        return value
    return printable(value).encode(errors="backslashreplace").decode()


def short(text: str, most: int = LONGEST_TEXT) -> str:
    """A name in one line, of which the end is kept: it tells files apart."""
    line = clean(" ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-(most // 2) :]}"


def percent(value: float | None) -> str:
    """A rate as people read it."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"  # in one line


def figure(value: float | None) -> str:
    """A loss, or another number."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
