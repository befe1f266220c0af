"""Where `fit` reports to: progress bar, metrics.jsonl, trackers and checkpoints of one run."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Self

import torch
from tqdm import tqdm

from train.checkpoint.folder import CheckpointFolder
from train.config.record import LOG
from train.distributed.env import rank
from train.evaluate import Metrics
from train.output.trackers import Tracker, warn_dropped
from train.state import TrainState
from train.system.console import say
from train.system.lock import Lock


class RunOutput:
    """The log and the checkpoints of one run, together because a checkpoint records how long the log was.

    A resume truncates the log to the checkpoint, so that no update is logged twice. In several processes only rank 0
    writes.
    """

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        lock: Lock,
        total_updates: int,
        step: int = 0,
        log_bytes: int = 0,
        trackers: Mapping[str, Tracker] | None = None,
    ) -> None:
        """Open the log beside the checkpoints, continuing after `step` updates and `log_bytes` bytes of metrics.jsonl.

        `lock` holds the folder, and is released at the end. The trackers are told of what is recorded; one that fails
        is dropped with a warning, as its server may be gone while the run is not.
        """
        self.folder, self._checkpoints, self._lock = checkpoints.folder, checkpoints, lock
        self._total, self._shown, self._images = total_updates, {}, 0
        self._trackers = dict(trackers or {})
        self.on_evaluation: Callable[[dict[str, float]], None] | None = None  # called on all ranks
        self._writes = rank() == 0
        if not self._writes:
            return
        self._log = (self.folder / LOG).open("a", encoding="utf-8", newline="\n")
        if self._log.tell() < log_bytes:
            raise OSError(f"{self.folder / LOG} is shorter than its checkpoint says")
        self._log.truncate(log_bytes)
        self._log.seek(log_bytes)
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total_updates, initial=step, unit="update", disable=hidden, dynamic_ncols=True)

    def __enter__(self) -> Self:
        """Use as a context manager: leaving the block waits for the last save and closes the log."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish what is being written; its failure is raised unless another error is being raised already."""
        with self._lock:
            if self._writes:
                self._bar.close()
                self._log.close()
                self._tell(lambda tracker: tracker.close())
            self._checkpoints.close(raise_failure=kind is None)

    def advance(self, images: int) -> None:
        """Move the progress bar by one update of that many images."""
        self._images += images
        if self._writes:
            self._show(refresh=False)  # before the update, which redraws the bar
            self._bar.update()

    def log_training(
        self, state: TrainState, epoch: float, loss: float, grad_norm: float, learning_rate: float
    ) -> None:
        """Record the mean loss since the last record, and the last update's gradient norm and learning rate."""
        values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        self._shown = {"loss": f"{loss:.4f}", "lr": f"{learning_rate:.2e}"}
        if state.skipped:  # by the scaler, after fp16 overflows
            values["skipped_updates"] = state.skipped
            self._shown["skipped"] = str(state.skipped)
        self._record("train", state.step, epoch, values, values | {"epoch": epoch})
        if not self._writes:
            return
        if self._bar.disable:  # nothing else would move where there is no terminal
            say(f"update {state.step}/{self._total}  epoch {epoch:.2f}  loss {loss:.4f}  lr {learning_rate:.2e}")
        self._show(refresh=True)

    def log_evaluation(self, state: TrainState, epoch: float, metrics: Metrics, improved: bool) -> None:
        """Record an evaluation and print it as one line."""
        logged, best = metrics.logged(), state.best.metric
        chooses = "" if best in ("loss", "accuracy") else f"  {best} {metrics.values[best]:.4f}"
        self._record("eval", state.step, epoch, logged, {n.removeprefix("eval_"): v for n, v in logged.items()})
        say(
            f"update {state.step}/{self._total}  epoch {epoch:.2f}  eval loss {metrics.values['loss']:.4f}"
            f"  accuracy {metrics.values['accuracy']:.4f}{chooses}{'  best so far' if improved else ''}"
        )
        if self.on_evaluation is not None:
            self.on_evaluation({"step": state.step, "epoch": epoch} | logged)

    def save_checkpoint(self, state: TrainState) -> None:
        """Save the state, and how long the log is; in the background if the run says so."""
        log_bytes = 0
        if self._writes:
            self._log.flush()
            os.fsync(self._log.fileno())
            log_bytes = self._log.tell()
        self._checkpoints.save(state, log_bytes)

    def wait_for_save(self) -> None:
        """Wait until the last checkpoint is on the disk; raise what went wrong in writing it."""
        self._checkpoints.wait()

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """Give the trackers uint8 pictures [3, h, w] under their names."""
        self._tell(lambda tracker: tracker.log_pictures(step, pictures))

    def log_outcome(self, step: int, metrics: dict[str, float]) -> None:
        """Give the trackers the metrics of the best model, for their tables of runs."""
        self._tell(lambda tracker: tracker.log_outcome(step, metrics))

    def _record(self, group: str, step: int, epoch: float, values: dict[str, float], scalars: dict[str, float]) -> None:
        if not self._writes:
            return
        self._log.write(json.dumps({"step": step, "epoch": epoch} | values) + "\n")
        self._log.flush()  # so that `tail -f` follows
        named = {f"{group}/{name}": value for name, value in scalars.items()}
        self._tell(lambda tracker: tracker.log(step, named))

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                warn_dropped(name, error)

    def _show(self, refresh: bool) -> None:
        if not self._bar.disable and (elapsed := self._bar.format_dict["elapsed"]):
            self._bar.set_postfix(self._shown | {"img/s": f"{self._images / elapsed:.0f}"}, refresh=refresh)
