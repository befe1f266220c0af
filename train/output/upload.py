"""What a push sends, and how: the files with a card that is fit to be published, and the exchange with the Hub."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from data import files
from data.addresses import without_secrets
from models.loading import load_model
from models.saving import WEIGHTS_FILE
from models.source import Source, read_checkpoint
from train.config.record import LOG, RECORD, read_record
from train.errors import ConfigError, RunError
from train.system import hub as reach
from train.system.console import say

CARD = "README.md"
MODEL = (WEIGHTS_FILE, "config.json", "preprocessor_config.json")
RESULTS = ("eval_results.json", "test_results.json", "train_results.json", "all_results.json")
LOGS = (LOG, *RESULTS, "trainer_state.json", "report.html")  # each as far as it is there
PLACEHOLDER = "PATH_OF_THIS_FOLDER"  # in the example of a card as the run wrote it


@dataclass(frozen=True)
class Upload:
    """One file of a push."""

    path: str  # in the repository
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def sha256(self) -> str:
        """Of what is sent."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return files.sha256(self.content)


def check_model(folder: Path) -> None:
    """Load the model as a user of it will, without the network.

    Raises:
        ConfigError, ModelError: it names no classes, or its files or weights cannot be used.
    """
    source = Source(str(folder), None, None, offline=True)
    with source.explained():
        classes = read_checkpoint(source).classes
    if not classes or load_model(str(folder), classes, offline=True).new_head:
        raise ConfigError(f"RUN {folder}: is no trained classifier: it names no classes, or its head lacks weights")


def collect(folder: Path, repo: str, with_logs: bool) -> list[Upload]:
    """Everything to send. Says which logs tell paths of this machine.

    Args:
        folder: of the model.
        repo: whose name the example in the card gets; the file itself stays as it is.
        with_logs: of training, as far as they are there.

    Raises:
        ConfigError: a file is missing or a link, or the card cannot be published.
    """
    private = _private_paths(folder)
    uploads = [Upload(name, _own_file(folder, folder / name)) for name in MODEL]
    for upload in uploads[1:]:
        if found := _leak(upload.content.read_bytes(), private):
            raise ConfigError(f"{upload.content}: names {found}, a path of this machine; take it out before a push")
    uploads.append(Upload(CARD, _card(_own_file(folder, folder / CARD), repo, private)))
    if with_logs:
        logs = [folder / name for name in LOGS if (folder / name).exists() or (folder / name).is_symlink()]
        events = folder / "tensorboard"
        logs += sorted(path for path in events.rglob("*") if path.is_symlink() or not path.is_dir())
        found = [Upload(path.relative_to(folder).as_posix(), _own_file(folder, path)) for path in logs]
        if telling := [upload.path for upload in found if _leak(upload.content.read_bytes(), private)]:
            say(f"warning: {', '.join(telling)}: name folders of this machine")
        uploads += found
    return uploads


def _own_file(folder: Path, path: Path) -> Path:
    """A file that lies in the folder itself: a link may lead to something that nobody meant to publish."""
    if not path.exists() and not path.is_symlink():
        what = "the run is not finished" if (folder / RECORD).is_file() else "it is needed"
        raise ConfigError(f"{path}: is missing; {what}")
    if path.resolve() != folder.resolve() / path.relative_to(folder) or not path.is_file():
        raise ConfigError(f"{path}: is a link, or no ordinary file; only files of the folder itself are pushed")
    return path


def _private_paths(folder: Path) -> list[str]:
    """Absolute paths that nothing published should name."""
    named = [folder.resolve(), Path.home(), Path.cwd()]
    if (folder / RECORD).is_file():
        flags = read_record(folder / RECORD)["config"]
        named += [
            Path(value) for name in ("dataset", "model", "output_dir") if isinstance(value := flags.get(name), str)
        ]
    return [str(path) for path in named if path.is_absolute() and len(path.parts) > 1]


def _leak(content: bytes, private: list[str]) -> str | None:
    """The first of these paths in the content, as a whole."""
    return next((path for path in private if re.search(re.escape(path.encode()) + rb"(?![\w.-])", content)), None)


def _card(path: Path, repo: str, private: list[str]) -> bytes:
    """The card as it is published, checked as far as that goes without the Hub."""
    try:
        text = path.read_text(encoding="utf-8").replace(PLACEHOLDER, repo)
        head = ModelCard(text).data
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: is no model card: {' '.join(str(error).split())[:200]}") from error
    for name in ("pipeline_tag", "library_name"):
        if not getattr(head, name, None):
            raise ConfigError(f"{path}: its head has no {name}, by which the Hub knows how to use a model")
    for number, line in enumerate(text.splitlines(), 1):
        if found := _leak(line.encode(), private):
            raise ConfigError(f"{path}: line {number} names {found}, a path of this machine; edit it before a push")
    return text.encode()


def connect() -> HfApi:
    """A client with a token that the Hub takes.

    Raises:
        ConfigError: there is no token, or the Hub does not take it.
        RunError: the Hub cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set; unset it to push, or say --dry_run")
    if not (token := get_token()):
        raise ConfigError("no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    if why := reach.why_unreachable():
        raise RunError(f"{why}; nothing was sent")
    api = HfApi(token=token, library_name="plainloop")
    with _explained("the login", token):
        api.whoami()
    return api


def send(api: HfApi, repo: str, uploads: list[Upload], *, private: bool, revision: str | None, message: str) -> str:
    """Make the repository if it is not there, and one commit in it; returns the commit's address.

    Raises:
        ConfigError: the card is refused, the token may not write there, or the repository is public but shall not be.
        RunError: the Hub or the network failed; there is no commit then.
    """
    (card,) = [upload.content for upload in uploads if upload.path == CARD]
    with _explained(repo, api.token):
        try:
            ModelCard(card.decode()).validate()
        except ValueError as error:
            raise ConfigError(f"{CARD}: the Hub refuses it: {' '.join(str(error).split())[:300]}") from error
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise ConfigError(f"--private: {repo} is there already, and public; nothing was sent")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(upload.path, upload.content) for upload in uploads]
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)


@contextmanager
def _explained(what: str, token: str) -> Iterator[None]:
    """Whatever the client raises becomes one line, without the token."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:  # of the network: many libraries' classes
        raise _in_one_line(what, error, token) from None


def _in_one_line(what: str, error: Exception, token: str) -> ConfigError | RunError:
    answer = error if isinstance(error, HfHubHTTPError) else error.__cause__  # which an upload of weights wraps
    if not isinstance(answer, HfHubHTTPError):
        return RunError(f"{what}: cannot be pushed: {_told(error, token)}")
    status = answer.response.status_code
    if status == 401:
        return ConfigError(f"{what}: the Hub does not take this token; log in again with `hf auth login`")
    if status == 403:
        return ConfigError(f"{what}: this token may not write there; make one that may, and log in again")
    return RunError(f"{what}: the Hub answered {status}: {_told(answer, token)}")


def _told(error: Exception, token: str) -> str:
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return without_secrets(" ".join(text.split()).replace(token, "..."))[:300]
