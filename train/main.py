"""Fine-tune a Vision Transformer: the outline of a run. The loop itself is `fit` in train/loop.py."""

import gc
import sys
from collections.abc import Sequence

from data import DataError
from models import ModelError
from train import ConfigError, LostProcessError, RunError
from train.config import Config
from train.launch import configured, rank
from train.signals import Interrupted, Signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code.

    0: done. 1: the run failed on the way. 2: something given to it is not usable. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with Signals() as signals:
        try:
            from train.cli import parse

            with configured(lambda: parse(arguments)) as config:
                run(config, signals)
        except LostProcessError:
            return 1  # the process that failed has said why
        except (ConfigError, DataError, ModelError, RunError, OSError) as error:
            if "--debug" in arguments:
                raise
            who = f"rank {rank()}: error:" if rank() else "error:"
            print(who, " ".join(str(error).split()), file=sys.stderr)  # one line, whatever a library's text has
            return 1 if isinstance(error, RunError) else 2
        except Interrupted as interrupted:
            print(f"stopped by {interrupted}", file=sys.stderr)
            return interrupted.exit_code
    return 0


def run(config: Config, signals: Signals) -> None:
    """Build what the configuration asks for, train, and report."""
    # Imported here, so that --help and a mistyped flag do not wait seconds for torch; and with the garbage collector
    # off, which else looks again and again through a million objects that all stay: a second or more of eight.
    gc.disable()
    import torch

    from train import distributed, failures, report, resume, rundir, setup
    from train.checkpoint import CheckpointFolder
    from train.compute import choose_compute
    from train.feed import prepare
    from train.loop import fit
    from train.profiling import profiled
    from train.tracking import Tracker, say

    gc.enable()

    say(f"preset {config.run.preset}: {config.preset_reason}")
    precision, why = choose_compute(config.run)
    offline = setup.is_offline(config.data, config.model)
    splits = setup.load_data(config.data, config.run, offline)

    with rundir.Lock() as lock:
        checkpoint = distributed.from_first(lambda: resume.find_checkpoint(config.run, lock, say))
        torch.manual_seed(config.run.seed)  # before the model is built: the new head is drawn from it
        loaded = setup.load_network(
            str(checkpoint or config.model.model), splits.label_names, precision, config.run, offline
        )
        splits, feed = prepare(splits, loaded.processor, precision, config.data, config.train, config.run)
        if config.run.eval_only:
            report.print_evaluation(loaded, feed)
            return
        plan = setup.plan_for(splits, config.train, config.run.seed, config.data.dataloader_drop_last)
        state = setup.build_state(loaded.network, config.train, precision, plan.total_updates, splits.label_names)
        speed = setup.tune(config.run, loaded.network, precision, plan, state.optimizer, feed)

        decided = setup.describe(config.run.preset, config.preset_reason, precision, why, splits, plan, speed)
        identity = resume.identity(config, decided)
        log_bytes = resume.bring_back(state, checkpoint, identity, plan.total_updates, say)
        folder, run_id = distributed.from_first(
            lambda: rundir.open_run(config.run.output_dir, config.flat(), decided, lock)
        )
        checkpoints = CheckpointFolder(
            folder, run_id, identity, loaded.processor, config.train.save_total_limit, config.run.async_save, not rank()
        )

        def stop_asked() -> bool:  # of any process, by any signal
            return signals.note(distributed.highest(signals.number))

        if config.run.torch_profiler:
            feed = profiled(feed, folder)
        with Tracker(folder, plan.total_updates, state.step, log_bytes) as tracker:
            with failures.explained(state, plan, splits.train, folder), signals.deferred(), checkpoints:
                fit(state, plan, feed, config.train, checkpoints, tracker, config.run.stop_after, stop_asked)
            report.finish(folder, config, decided, state, plan, feed, tracker, stop=stop_asked())
        signals.raise_received()


if __name__ == "__main__":
    sys.exit(main())
