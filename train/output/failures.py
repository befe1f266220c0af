"""What can go wrong in the middle of a run, in one line that says what to do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from data import shortened
from data.loading.workers import WorkerError
from data.pipeline import DataPipeline
from train.config.schema import RecipeConfig
from train.distributed.collectives import all_gather
from train.distributed.process_group import is_lost_peer, kill_stopped_siblings
from train.errors import ConfigError, NonFiniteError, RunError, is_out_of_memory
from train.output.results import resume_command
from train.state import TrainState
from train.system.console import say
from train.system.signals import Interrupted

MOST_NAMED = 8


@contextlib.contextmanager
def explained(state: TrainState, data: DataPipeline, folder: Path, recipe: RecipeConfig) -> Iterator[None]:
    """Turn failures of training and reporting that a person can mend into ConfigError (input) or RunError (machine).

    Args:
        state: knows how far the run has come.
        data: knows which images a bad update had.
        folder: of the run, whose checkpoints are intact whatever happened.
        recipe: for the command that continues it.
    """
    again = f"continue with: {resume_command(folder, recipe)}"
    try:
        yield
    except NonFiniteError as error:
        names = [data.image_name(index) for index in all_gather(data.plan.indices(error.update))]
        raise ConfigError(
            f"update {error.update}: {error.what}; stopped before it changed the weights; its images:"
            f" {shortened(names, MOST_NAMED)}; try a lower --learning_rate, or --precision fp32"
        ) from error
    except WorkerError as error:
        raise RunError(f"update {state.step + 1}: {error}; {again}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RunError(
                "out of memory: a new run with half of --per_device_train_batch_size and twice"
                " --gradient_accumulation_steps, or with --gradient_checkpointing, trains the same in less; where"
                f" memory was short only now, {again}"
            ) from error
        if not is_lost_peer(error):
            raise
        kill_stopped_siblings()
        reason = str(error).splitlines()[0]
        raise RunError(
            f"update {state.step + 1}: another process of this run is gone or frozen ({reason}); {again}"
        ) from error
    except Interrupted:  # only while reporting: training puts a signal off until it has saved
        say(f"stopped while the results were written; to finish: {resume_command(folder, recipe)}")
        raise
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write in {folder}: {getattr(error, 'strerror', None) or error}; {again}") from error
