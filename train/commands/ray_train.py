"""`plainloop ray train`: the same run over the machines of a Ray cluster. Ray Train starts lost workers again.

The run's own record and checkpoints stay the truth: a worker that finds them continues. Ray stores nothing of its own.
"""

import argparse
import copy
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data import DataError
from models import ModelError
from train.config.checks import check_flags
from train.config.cli import parse
from train.config.flags import Parser
from train.config.record import is_run
from train.config.schema import Config
from train.distributed.env import check_environment, world_size
from train.errors import ConfigError, LostProcessError, RunError
from train.system import hub
from train.system.console import say
from train.system.exit import ended, explanation
from train.system.signals import Signals

DESCRIPTION = """Train over the workers of a Ray cluster, or of a local one that lasts as long as the run. Other flags
are those of plainloop train. Every machine must reach the data and --output_dir under the same path."""


def main(arguments: list[str]) -> int:
    """Train, and return the exit code: 0 done, 1 the run failed, 2 something it was given cannot be used."""
    return ended(arguments, lambda _: run(arguments))


def run(arguments: list[str]) -> None:
    """Check every flag before any cluster starts, then train on it."""
    values, flags = ray_parser().parse_known_args(arguments)
    check_environment()
    if world_size() > 1:
        raise ConfigError("plainloop ray train: Ray starts the processes; leave torchrun out")
    config = parse(flags)
    _check(values, config)
    check_flags(copy.deepcopy(config))  # a worker notes what it changes
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('plainloop ray needs Ray: pip install -e ".[ray]"')
    _make_paths_absolute(config)
    with connected_to_ray(values):
        fit(values, config)


def ray_parser() -> Parser:
    """The flags that `plainloop train` does not have."""
    parser = Parser(
        prog="plainloop ray train",
        usage="plainloop ray train --num_workers N --output_dir FOLDER [flags of plainloop train]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--num_workers", type=int, default=1, metavar="N", help="Processes that train. Default: 1.")
    parser.add_argument("--use_gpu", action="store_true", help="One GPU for each worker.")
    help = "Times that lost workers are started again, and continue from the newest checkpoint; -1: always. Default: 0."
    parser.add_argument("--max_failures", type=int, default=0, metavar="N", help=help)
    parser.add_argument(
        "--address", metavar="TEXT", help="auto or HOST:PORT of a running cluster. Default: a local one."
    )
    return parser


def _check(values: argparse.Namespace, config: Config) -> None:
    if values.num_workers < 1:
        raise ConfigError(f"--num_workers {values.num_workers}: must be at least 1")
    if values.max_failures < -1:
        raise ConfigError(f"--max_failures {values.max_failures}: must be at least 0, or -1 for no limit")
    if config.run.several or config.run.eval_only:
        raise ConfigError("--seeds, --sweep and --eval_only: leave them out; plainloop ray train trains one run")
    if not config.run.output_dir:
        raise ConfigError(
            "--output_dir: name a folder that every machine reaches, where lost workers find the run again"
        )
    if config.run.fsdp and values.num_workers == 1:
        raise ConfigError("--fsdp true: needs several processes; give --num_workers")


def _make_paths_absolute(config: Config) -> None:
    """Workers have another current folder. What is no file or folder here is a name on the Hub or an address."""
    for section in (config.run, config.data, config.model):
        for name in ("output_dir", "cache_dir", "resume_from_checkpoint", "dataset", "model"):
            value = getattr(section, name, None)
            if value and (name in ("output_dir", "cache_dir") or Path(value).exists()) and value != "auto":
                setattr(section, name, str(Path(value).absolute()))


@contextmanager
def connected_to_ray(values: argparse.Namespace) -> Iterator[None]:
    """A cluster for the length of the block: the one at --address, or a local one that ends with it.

    Raises:
        ConfigError: there is no cluster at that address.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # print() stays as it is
    import ray

    # Ray waits forever for more processors than it counts; torchrun starts as many processes as one likes.
    where = {"address": values.address} if values.address else {"address": "local", "num_cpus": values.num_workers}
    try:
        ray.init(**where)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"--address {values.address}: no cluster can be reached there: {error}") from error
    try:
        _check_size(values, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def _check_size(values: argparse.Namespace, resources: dict[str, float]) -> None:
    """A cluster may still grow, and the machine here does not."""
    kind = "GPU" if values.use_gpu else "CPU"
    found = resources.get(kind, 0)
    if found >= values.num_workers:
        return
    if not values.address:
        raise ConfigError(f"--use_gpu: {values.num_workers} workers need a GPU each, and this machine has {found:g}")
    say(f"warning: {values.num_workers} workers need a {kind} each, and the cluster has {found:g}; waiting for more")


def fit(values: argparse.Namespace, config: Config) -> None:
    """Train in workers, starting them again as often as --max_failures says.

    Raises:
        ConfigError: a worker found that something the run was given cannot be used.
        RunError: the run failed more often than that, or was stopped by a signal, at which the workers do not save.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray wants a folder that all workers reach, though nothing is reported that it would keep there.
    storage = Path(config.run.output_dir).with_name(f".{Path(config.run.output_dir).name}.ray")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=asdict(config),
        scaling_config=ScalingConfig(num_workers=values.num_workers, use_gpu=values.use_gpu),
        torch_config=TorchConfig("cpu:gloo,cuda:nccl" if values.use_gpu else "gloo", timeout_s=config.run.ddp_timeout),
        run_config=RunConfig(
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=values.max_failures),
            callbacks=[_end_at_input_errors()],
            logging_config=LoggingConfig("CRITICAL"),  # the error is raised below; Ray's log files have the rest
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    except SystemExit as stopped:  # Ray's handlers of Ctrl-C and SIGTERM raise it, and it does not say which came
        how = "continue from the newest checkpoint with --resume_from_checkpoint auto"
        raise RunError(f"stopped by a signal; {how}") from stopped
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def train_worker(document: dict[str, Any]) -> None:
    """One process of the run, which Ray has connected with the others; after a restart it continues."""
    from ray.train import report

    from train import main
    from train.distributed.collectives import on_rank_zero
    from train.distributed.process_group import find_siblings, noticing_loss

    config = Config.from_document(document)
    if config.run.cache_dir:
        hub.move_caches(config.run.cache_dir)
    with noticing_loss():
        find_siblings()
        if config.run.resume_from_checkpoint is None and on_rank_zero(lambda: is_run(config.run.output_dir)):
            config.run.resume_from_checkpoint = "auto"
        try:
            main.run(config, Signals(), on_evaluation=report)
        except LostProcessError:
            return  # the one that failed says why


def _end_at_input_errors() -> Any:
    """A callback of Ray's controller, which would start the workers again after every error."""
    from ray.train import ControllerError, UserCallback

    class EndAtInputErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in map(_original, worker_exceptions.values()):
                if isinstance(error, ConfigError | DataError | ModelError):
                    raise ControllerError(ConfigError(str(error)))

    return EndAtInputErrors()


def _cause(error: Exception) -> Exception:
    """What a person should read of an error that Ray raises: the first of a worker that has an explanation."""
    failures = [getattr(error, "controller_failure", error), *getattr(error, "worker_failures", {}).values()]
    for failure in map(_original, failures):
        if explanation(failure) is not None:
            return failure
    return RunError(f"Ray Train gave up: {error}")


def _original(error: Exception) -> Exception:
    return getattr(error, "_base_exc", error)  # Ray wraps what a worker raises
