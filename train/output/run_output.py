"""Where `fit` reports to: the log and the checkpoints of one run as one object."""

from types import TracebackType
from typing import Self

from train.checkpoint.folder import CheckpointFolder
from train.evaluate import Metrics
from train.output.tracker import Tracker
from train.state import TrainState
from train.system.lock import Lock


class RunOutput:
    """The tracker and the checkpoints of one run, joined because a checkpoint records how long the log was."""

    def __init__(self, tracker: Tracker, checkpoints: CheckpointFolder, lock: Lock) -> None:
        """`lock` holds the folder of both, and is released at the end."""
        self.tracker, self.checkpoints, self.lock = tracker, checkpoints, lock
        self.folder = checkpoints.folder

    def __enter__(self) -> Self:
        """Use as a context manager, so that leaving the block waits for the last save and closes the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written, even if training failed."""
        with self.lock, self.tracker:
            self.checkpoints.__exit__(kind, error, trace)

    def advance(self, images: int) -> None:
        """Move the progress bar by one update of that many images."""
        self.tracker.advance(images)

    def log_training(
        self, state: TrainState, epoch: float, loss: float, grad_norm: float, learning_rate: float
    ) -> None:
        """Record the mean loss since the last record, and the last update's gradient norm and learning rate."""
        self.tracker.log_training(state, epoch, loss, grad_norm, learning_rate)

    def log_evaluation(self, state: TrainState, epoch: float, metrics: Metrics, improved: bool) -> None:
        """Record an evaluation and print it as one line."""
        self.tracker.log_evaluation(state, epoch, metrics, improved)

    def save_checkpoint(self, state: TrainState) -> None:
        """Save the state, the length of the log with it."""
        self.checkpoints.save(state, self.tracker.log_bytes())

    def wait_for_save(self) -> None:
        """Wait until the last checkpoint is on the disk; raise what went wrong in writing it."""
        self.checkpoints.wait()
