"""What a run shows and records while it trains: progress bar, metrics.jsonl, TensorBoard."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from train.distributed.env import rank
from train.evaluate import Metrics
from train.state import TrainState
from train.system.console import say

LOG = "metrics.jsonl"


class Tracker:
    """The log of one run. A resume truncates it to the checkpoint, so that no update is logged twice.

    In several processes only rank 0 writes; on the others every method does nothing.
    """

    def __init__(self, folder: Path, total_updates: int, step: int = 0, log_bytes: int = 0) -> None:
        """Open the log in `folder`, continuing after `step` updates and `log_bytes` bytes of metrics.jsonl."""
        self._total, self._records = total_updates, rank() == 0
        if not self._records:
            return
        self._log = (folder / LOG).open("a", encoding="utf-8")
        if self._log.tell() < log_bytes:
            raise OSError(f"{folder / LOG} is shorter than its checkpoint says")
        self._log.truncate(log_bytes)
        self._log.seek(log_bytes)
        # purge_step hides what a killed run had logged after its last checkpoint.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._bar = tqdm(
            total=total_updates,
            initial=step,
            unit="update",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._shown: dict[str, str] = {}
        self._images = 0

    def __enter__(self) -> Self:
        """Use as a context manager, so that leaving the block closes the log."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Write out what is buffered, even if the run failed."""
        if not self._records:
            return
        self._bar.close()
        self._log.close()
        self._writer.close()

    def advance(self, images: int) -> None:
        """Move the progress bar by one update of that many images."""
        if not self._records:
            return
        self._images += images
        self._show(refresh=False)  # before the update, which redraws the bar
        self._bar.update()

    def _show(self, refresh: bool) -> None:
        if not self._bar.disable and (elapsed := self._bar.format_dict["elapsed"]):
            self._bar.set_postfix(self._shown | {"img/s": f"{self._images / elapsed:.0f}"}, refresh=refresh)

    def log_training(
        self, state: TrainState, epoch: float, loss: float, grad_norm: float, learning_rate: float
    ) -> None:
        """Record the mean loss since the last record, and the last update's gradient norm and learning rate."""
        if not self._records:
            return
        values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        if state.skipped:
            values["skipped_updates"] = state.skipped
        self._shown = {"loss": f"{loss:.4f}", "lr": f"{learning_rate:.2e}"}
        if state.skipped:
            self._shown["skipped"] = str(state.skipped)  # by the scaler, after fp16 overflows
        self._show(refresh=True)
        self._write(state.step, epoch, values)
        self._scalars("train", values | {"epoch": epoch}, state.step)

    def log_evaluation(self, state: TrainState, epoch: float, metrics: Metrics, improved: bool) -> None:
        """Record an evaluation and print it as one line."""
        if not self._records:
            return
        logged = metrics.logged()
        self._write(state.step, epoch, logged)
        self._scalars("eval", {name.removeprefix("eval_"): value for name, value in logged.items()}, state.step)
        say(
            f"update {state.step}/{self._total}  epoch {epoch:.2f}  eval loss {metrics.values['loss']:.4f}"
            f"  accuracy {metrics.values['accuracy']:.4f}{'  best so far' if improved else ''}"
        )

    def log_bytes(self) -> int:
        """Length of metrics.jsonl in bytes, once everything recorded so far has reached the disk."""
        if not self._records:
            return 0
        self._log.flush()
        os.fsync(self._log.fileno())
        return self._log.tell()

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """Add uint8 pictures [3, h, w] under their names."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step)

    def log_outcome(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Pair the hyper-parameters with the final metrics, for TensorBoard's table of runs."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        # add_hparams() would open a second run folder; its three records belong to this one.
        outcome = {f"final/{name.removeprefix('eval_')}": value for name, value in metrics.items()}
        for record in hparams(plain, outcome):
            self._writer._get_file_writer().add_summary(record)
        for name, value in outcome.items():
            self._writer.add_scalar(name, value, step)

    def _write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        self._log.write(json.dumps({"step": step, "epoch": epoch} | values) + "\n")
        self._log.flush()  # so that `tail -f` follows

    def _scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every record of metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
