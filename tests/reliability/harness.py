"""Real runs in real processes that can be killed, in half a second each: imported once, then forked."""

import atexit
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from safetensors import safe_open

from data.reading.leaves import LABEL_NAMES
from models.classifier import Classifier
from models.loading import load_model
from tests.running import TIMES, records
from train.checkpoint.folder import list_checkpoints
from train.checkpoint.manifest import OPTIMIZER, RAW_WEIGHTS, STATE

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.reliability.preload"])


def dropout_model() -> str:
    """A tiny ViT with dropout: without it, a forgotten seed would change nothing. Made once, for all processes."""
    if "PLAINLOOP_TEST_MODEL" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="plainloop-model-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        loaded = load_model("builtin:tiny", list(LABEL_NAMES))
        loaded.model.vit.config.hidden_dropout_prob = loaded.model.vit.config.attention_probs_dropout_prob = 0.1
        Classifier(loaded.model.vit, loaded.model.processor).save_pretrained(folder)
        os.environ["PLAINLOOP_TEST_MODEL"] = str(folder)
    return os.environ["PLAINLOOP_TEST_MODEL"]


# Forty updates of a small ViT with ten saves: about a second.
RUN = (
    *("--preset", "debug", "--max_train_samples", 20, "--max_eval_samples", 6, "--per_device_train_batch_size", 2),
    *("--max_steps", 40, "--logging_steps", 3, "--eval_steps", 4, "--save_steps", 4, "--dataloader_timeout", 20),
    *("--model", dropout_model()),
)


@dataclass
class Report:
    """What a battery found: how many trials, which failed and how, and what else is worth a line."""

    name: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def check(self, right: bool, what: str) -> None:
        """Count a trial; remember it if it failed."""
        self.trials += 1
        if not right:
            self.failures.append(what)

    def __str__(self) -> str:
        facts = "".join(f", {name} {value}" for name, value in self.facts.items())
        bound = "" if self.failures or self.trials < 10 else f" (rate below {3 / self.trials:.1e} with 95 % confidence)"
        return f"{self.name}: {self.trials} trials, {len(self.failures)} failures{bound}{facts}"


def start(flags: tuple, before: Callable[[], None] | None = None, log: Path | None = None) -> BaseProcess:
    """Start a run as a process group of its own; `before` runs in it first (a picklable function)."""
    process = FORK.Process(target=_child, args=([str(flag) for flag in flags], before, log))
    process.start()
    return process


def _child(flags: list[str], before: Callable[[], None] | None, log: Path | None) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a run from the command line
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if before is not None:
        before()
    from train.main import main

    code = main(flags)
    sys.stdout.flush()
    os._exit(code)


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a run; its exit code, negative for a signal. One that does not end is killed and told as such."""
    process.join(seconds)
    if process.exitcode is None:
        kill_group(process)
        process.join()
        raise AssertionError(f"the run did not end within {seconds} s")
    return process.exitcode


def kill_group(process: BaseProcess) -> None:
    """SIGKILL to the run and its workers at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it had not become a group yet, or is gone


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def outcome(folder: Path) -> str:
    """One hash of all that a finished run must have in common with an unbroken one: weights, optimizer, log."""
    digest = hashlib.sha256()
    newest = list_checkpoints(folder)[0][1]
    saved = (folder / "model.safetensors", newest / "model.safetensors", newest / OPTIMIZER, newest / RAW_WEIGHTS)
    for file in filter(Path.exists, saved):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    state = json.loads((newest / STATE).read_text())
    kept = {name: value for name, value in state.items() if not TIMES.search(name) and name != "log_bytes"}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    digest.update(json.dumps(records(folder)).encode())
    return digest.hexdigest()


# -- kills at a chosen call of a save ----------------------------------------------------------------------


@dataclass
class KillAt:
    """Run in the child: SIGKILL to the whole group just before its `number`th change to the disk."""

    number: int
    folder: str

    def __call__(self) -> None:
        """Watch every change to the disk below the folder; fsync has no audit event, so it is wrapped."""
        fsync, left = os.fsync, [self.number]

        def count() -> None:
            left[0] -= 1
            if left[0] <= 0:
                os.killpg(0, signal.SIGKILL)

        def watch(event: str, arguments: tuple) -> None:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod")
            written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (changes or written) and str(arguments[0]).startswith(self.folder) and ".tmp-" in str(arguments[0]):
                count()

        def counted_fsync(descriptor: int) -> None:
            count()
            fsync(descriptor)

        os.fsync = counted_fsync
        sys.addaudithook(watch)


def draw(seed: int) -> random.Random:
    """The one source of a battery's random schedule; its seed is printed."""
    return random.Random(seed)
