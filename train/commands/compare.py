"""`plainloop compare`: which of several recipes is better, and whether that is more than luck."""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from train.config.flags import Parser
from train.errors import ConfigError
from train.recipes.report import METRICS, compare, lines
from train.recipes.runs import read_recipes
from train.system.console import say
from train.system.exit import ended
from train.system.signals import Signals

DESCRIPTION = """Runs that differ only in the seed are one recipe. Each recipe is compared with the first one that is
named, image by image. Nothing is trained or evaluated: this reads the predictions.csv of each run."""


def main(arguments: list[str]) -> int:
    """Compare, and return the exit code: 0 whatever was found, 2 for runs that cannot be compared."""
    return ended(arguments, lambda signals: run(arguments, signals))


def run(arguments: Sequence[str], _: Signals) -> None:
    """Read the runs and print the comparison."""
    parser = Parser(
        prog="plainloop compare",
        usage="plainloop compare RUN... [--metric accuracy|balanced_accuracy] [--json]",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder of a run, or of runs (--seeds, --sweep).")
    parser.add_argument("--metric", choices=METRICS, help="Default: as the runs chose their best model, else accuracy.")
    parser.add_argument("--json", action="store_true", help="Print the comparison as JSON, and nothing else.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    values = parser.parse_args(list(arguments))
    if not values.runs:
        raise ConfigError("plainloop compare: name the folders of runs")
    document = compare(read_recipes(values.runs), values.metric)
    if values.json:
        print(json.dumps(document, indent=2), flush=True)
        return
    for line in lines(document):
        say(line)
