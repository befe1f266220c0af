"""TensorBoard, Weights & Biases and MLflow behind one interface. None is imported unless asked for.

metrics.jsonl is the run's own log, which a resume truncates; a tracker gets the same values, by the same names.
"""

import os
import re
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from data.addresses import without_secrets
from train.config.reporting import check_installed
from train.system.console import say


class Tracker(Protocol):
    """What is told of a run. Whatever it raises ends its own part alone: see `RunOutput`."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values by name, such as train/loss, after `step` updates."""

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """Uint8 pictures [3, h, w] by name."""

    def log_outcome(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of the best model, when the run is finished."""

    def close(self) -> None:
        """Write what is still in memory."""


def open_trackers(names: list[str], folder: Path, run_id: str, flags: dict[str, Any], step: int) -> dict[str, Tracker]:
    """The trackers by name; one that cannot be opened is left out, with a warning.

    Args:
        names: of `TRACKERS`.
        folder: of the run; logs lie in it unless the tracker's own environment variables say otherwise.
        run_id: under which a tracker finds the run again when it is resumed.
        flags: of the run, to be shown beside its metrics.
        step: updates that are done already.

    Raises:
        ConfigError: a package is missing.
    """
    check_installed(names)
    settings = {name: _plain(value) for name, value in flags.items()}
    opened: dict[str, Tracker] = {}
    for name in names:
        try:
            opened[name] = KINDS[name](folder, run_id, settings, step)
        except Exception as error:
            warn_dropped(name, error)
    return opened


def warn_dropped(name: str, error: Exception) -> None:
    """Say that a tracker is given up, and why."""
    reason = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
    say(f"warning: {name} is turned off for the rest of this run: {reason}")


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float) else without_secrets(str(value))


def _final(metrics: dict[str, float]) -> dict[str, float]:
    return {f"final/{name.removeprefix('eval_')}": value for name, value in metrics.items()}


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, run_id: str, settings: dict[str, Any], step: int) -> None:
        """Open a new file; `purge_step` hides what a killed run had logged after its last checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self._settings = settings
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """For its tab of images."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step)

    def log_outcome(self, step: int, metrics: dict[str, float]) -> None:
        """Pair the settings with the final metrics, for its table of runs."""
        from torch.utils.tensorboard.summary import hparams

        # add_hparams() would open a second run folder; its three records belong to this one.
        for record in hparams(self._settings, _final(metrics)):
            self._writer._get_file_writer().add_summary(record)
        self.log(step, _final(metrics))

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, under the run's own id, so that a resume continues it."""

    def __init__(self, folder: Path, run_id: str, settings: dict[str, Any], step: int) -> None:
        """Begin the run, or continue it: the server keeps the first value that it gets for an update."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
        # A server that is gone costs a minute; by default the end of a run would wait for it without an end.
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            project=os.environ.get("WANDB_PROJECT", "plainloop"),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=settings,
            settings=wandb.Settings(console="off", silent=True),  # it would take hold of stdout
        )
        say(f"wandb: {'offline, in ' + self._run.dir if self._run.offline else self._run.url}")

    def log(self, step: int, values: dict[str, float]) -> None:
        """One record of its history; those of the same step become one."""
        self._run.log(values, step=step)

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """Beside the values of the same step."""
        images = {name: self._image(picture.permute(1, 2, 0).numpy()) for name, picture in pictures.items()}
        self._run.log(images, step=step)

    def log_outcome(self, step: int, metrics: dict[str, float]) -> None:
        """Into the summary, which its table of runs shows."""
        self._run.summary.update(_final(metrics))

    def close(self) -> None:
        """Hand over what is left, and wait until it has been written or sent."""
        self._run.finish()


class MLflow:
    """A run of MLflow, found again by a tag with the run's own id."""

    TAG = "plainloop.run_id"

    def __init__(self, folder: Path, run_id: str, settings: dict[str, Any], step: int) -> None:
        """Begin the run, or find it and note which updates it has already."""
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it, 3.17 wants a database
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is gone costs seconds; by default each call is tried again for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        store = os.environ.get("MLFLOW_TRACKING_URI", (folder / "mlruns").resolve().as_uri())
        self._client, self._status = MlflowClient(store), "KILLED"
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "plainloop")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{run_id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {self.TAG: run_id}
            self._run = self._client.create_run(experiment, tags=tags, run_name=folder.resolve().name).info.run_id
            for setting, value in settings.items():
                self._client.log_param(self._run, setting, str(value)[:6000])
        # After a kill it may be ahead of the checkpoint. The updates are the same ones, so they are not logged again.
        self._logged = {group: self._last(f"{group}/loss") for group in ("train", "eval")} if found else {}
        say(f"mlflow: run {self._run} in {without_secrets(store)}")

    def log(self, step: int, values: dict[str, float]) -> None:
        """All values of a record in one request."""
        from mlflow.entities import Metric

        group, now = next(iter(values)).partition("/")[0], int(time.time() * 1000)
        if step <= self._logged.get(group, 0):
            return
        entries = [Metric(_mlflow_name(name), float(value), now, step) for name, value in values.items()]
        for start in range(0, len(entries), MOST_METRICS):
            self._client.log_batch(self._run, entries[start : start + MOST_METRICS])

    def log_pictures(self, step: int, pictures: dict[str, torch.Tensor]) -> None:
        """As artifacts."""
        for name, picture in pictures.items():
            self._client.log_image(self._run, picture.permute(1, 2, 0).numpy(), artifact_file=f"{name}.png")

    def log_outcome(self, step: int, metrics: dict[str, float]) -> None:
        """As metrics of the last update; the run is finished then."""
        self.log(step, _final(metrics))
        self._status = "FINISHED"

    def close(self) -> None:
        """Say how it ended: finished, or stopped and to be continued."""
        self._client.set_terminated(self._run, self._status)

    def _last(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._run, name)), default=0)


MOST_METRICS = 1000  # in one request to MLflow
KINDS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _mlflow_name(name: str) -> str:
    """With the characters that MLflow allows; a metric may be named after somebody's class."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
