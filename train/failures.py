"""What can go wrong in the middle of a run, in one line that says what to do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from data.loader import Plan
from data.sources import Split
from data.streaming import Stream, StreamPlan
from data.workers import WorkerError
from train import ConfigError, RunError, distributed
from train.health import NonFiniteError
from train.state import TrainState

MOST_NAMED = 8


@contextlib.contextmanager
def explained(state: TrainState, plan: Plan | StreamPlan, images: Split | Stream, folder: Path) -> Iterator[None]:
    """Turn the failures of `fit` that a person can mend into ConfigError (what was given) or RunError (the machine).

    Args:
        state: tells how far the run has come.
        plan: tells which images a bad update had.
        images: the training split, to name them.
        folder: of the run, whose checkpoints are whole whatever happened.
    """
    again = f"continue with: python -m train.main --output_dir {folder} --resume_from_checkpoint auto"
    try:
        yield
    except NonFiniteError as error:
        names = [images.image_name(index) for index in distributed.gathered(plan.indices(error.update))]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise ConfigError(
            f"update {error.update}: {error.what}; stopped before it changed the weights; its images:"
            f" {', '.join(names[:MOST_NAMED])}{more}; try a lower --learning_rate, or --precision fp32"
        ) from error
    except WorkerError as error:
        raise RunError(f"update {state.step + 1}: {error}; {again}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the device's memory is full: halve --per_device_train_batch_size and double"
            " --gradient_accumulation_steps, which trains the same"
        ) from error
    except RuntimeError as error:
        if not distributed.is_loss(error):
            raise
        distributed.kill_stopped_siblings()
        reason = str(error).splitlines()[0]
        raise RunError(
            f"update {state.step + 1}: another process of this run is gone or frozen ({reason}); {again}"
        ) from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write in {folder}: {getattr(error, 'strerror', None) or error}; {again}") from error
