"""`plainloop push`: the model of a finished run, and its card, to the Hugging Face Hub."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import files
from train.commands.shared import command_parser
from train.config.record import RECORD, check_trained
from train.distributed.env import world_size
from train.errors import ConfigError
from train.system.exit import ended
from train.system.signals import Signals

if TYPE_CHECKING:
    from train.output.upload import Upload

DESCRIPTION = """The weights, the two files that say how to use them, and README.md go in one commit: no optimizer, no
checkpoint, and no run.json, which has paths of this machine. The card is checked first."""


def main(arguments: list[str]) -> int:
    """Push, and return the exit code: 0 done, 1 the Hub failed, 2 for what cannot be pushed."""
    return ended(arguments, lambda signals: run(arguments, signals))


def run(arguments: Sequence[str], _: Signals) -> None:
    """Check everything here, then send it."""
    values = _parse(arguments)
    folder = _model_folder(values.run)
    # Imported only now: these take seconds, and a mistyped flag should not.
    from train.output.upload import check_model, collect, connect, send
    from train.system.console import say

    check_model(folder)
    hub = None if values.dry_run else connect()
    name = values.repo if "/" in values.repo or hub is None else f"{hub.whoami()['name']}/{values.repo}"
    uploads = collect(folder, name, values.with_logs)
    for line in _listing(uploads):
        say(line)
    if hub is None:
        say(f"dry run: nothing was sent; these {len(uploads)} files would go to {name}")
        if "/" not in name:
            say(f"README.md: names {name} in its example; with your login it will be YOUR-NAME/{name}")
        return
    address = send(hub, name, uploads, private=values.private, revision=values.revision, message=values.message)
    say(f"done: {address}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("push", "RUN REPO [--dry_run] [...]", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="Folder of a finished run, or of a model with its README.md.")
    parser.add_argument("repo", metavar="REPO", help="NAME, under your own login, or USER/NAME.")
    parser.add_argument("--dry_run", action="store_true", help="List what would go: path, size, SHA-256. Asks nobody.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--with_logs",
        action="store_true",
        help="Also metrics.jsonl, the results, trainer_state.json, tensorboard/ and report.html.",
    )
    parser.add_argument("--revision", metavar="TEXT", help="Branch to commit to, made if it is not there.")
    parser.add_argument("--message", metavar="TEXT", default="Model and card", help="Of the commit.")
    values = parser.parse_args(list(arguments))
    _check_repo(values.repo)
    if (name := values.revision) is not None and (".." in name or name.startswith(("/", "-")) or not name.strip()):
        raise ConfigError(f"--revision {name}: is not the name of a branch")
    if not values.message.strip():
        raise ConfigError("--message: is empty")
    if world_size() > 1:
        raise ConfigError("this command works in one process; leave torchrun out")
    return values


def _check_repo(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        text = "is no name for a repository; it is NAME or USER/NAME, of letters, digits, - _ and single dots"
        raise ConfigError(f"REPO {name}: {text}") from None


def _model_folder(named: str) -> Path:
    """The folder to push, as far as a look at its files can tell; what is in them is checked later."""
    from train.checkpoint.manifest import MANIFEST

    folder = Path(files.follow(named))
    if not folder.is_dir():
        raise ConfigError(f"RUN {named}: there is no such folder")
    if (folder / MANIFEST).exists():
        run = folder.resolve().parent
        other = f"; name the run, {shlex.quote(str(run))}" if (run / RECORD).is_file() else ""
        raise ConfigError(f"RUN {named}: is a checkpoint, with its optimizer and no card{other}")
    check_trained(str(folder))
    return folder


def _listing(uploads: "list[Upload]") -> list[str]:
    width = max(len(upload.path) for upload in uploads)
    return [f"{upload.path:<{width}}  {upload.size:>12,} bytes  sha256 {upload.sha256}" for upload in uploads]
