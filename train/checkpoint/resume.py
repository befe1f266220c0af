"""Continuing a run: what must be the same, which checkpoint to take, and how to get back to it."""

from pathlib import Path
from typing import Any

from data import files
from data.loading.streaming import Streams
from data.reading.splits import CONTENT, Splits
from train.checkpoint.best import keep_sound_best
from train.checkpoint.folder import newest_sound
from train.checkpoint.manifest import CheckpointError, read_manifest, verify
from train.checkpoint.snapshot import STRANGE, restore
from train.config.record import LOG, RECORD, is_run, read_record
from train.config.schema import EARLY_ENDS, FLAGS, FREE, Config, RunConfig
from train.distributed.process_group import is_lost_peer
from train.errors import ConfigError, is_out_of_memory
from train.state import TrainState
from train.system.console import say
from train.system.lock import Lock


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse to resume with anything that would change the bits of the run.

    A flag that the checkpoint does not mention is younger than it; the run had what is the default now.

    Raises:
        ConfigError: names each difference.
    """
    saved = {name: FLAGS[name].default for name in identity.keys() & FLAGS} | read_manifest(checkpoint)["identity"]
    if saved.get("processes") == identity.get("processes"):
        same = set(identity)
    else:  # with another number of processes, the same images per update need another batch size
        same = identity.keys() - {"processes", "per_device_train_batch_size", "gradient_accumulation_steps", "fsdp"}
    if "dataset_fingerprint" in identity and None in (
        saved.get("dataset_fingerprint"),
        identity["dataset_fingerprint"],
    ):
        say("resume: the data set has no fingerprint, so nobody can tell whether it is still the same")
        same -= {"dataset_fingerprint"}
    different = [name for name in identity if name in same and saved.get(name) != identity[name]]
    if different:
        shown = "; ".join(f"{name} was {saved.get(name)}, is now {identity[name]}" for name in different)
        raise ConfigError(f"cannot resume {checkpoint}: {shown}; start a new run to change that")


# May be raised where the schedule does not depend on it.
LENGTH = {"num_train_epochs", "max_steps", "min_steps"}
# The flag is only a name: what it names is compared instead (fingerprint, weights, precision).
BY_CONTENT = {"dataset", "train_dir", "validation_dir", "test_dir", "model", "model_revision", "device", "precision"}


def identity(config: Config, decided: dict[str, Any], fixed_length: bool) -> dict[str, Any]:
    """Everything that the bits of a run depend on and a resume may not change.

    Args:
        config: its flags.
        decided: what was decided automatically.
        fixed_length: whether the schedule depends on the length of the run.
    """
    recipe = config.recipe
    free = FREE | {*EARLY_ENDS} | BY_CONTENT | (set() if fixed_length else LENGTH)
    flags = {name: value for name, value in config.flat().items() if name not in free}
    images = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * decided["processes"]
    outcome = {name: decided[name] for name in ("dataset_fingerprint", "label_names", "precision", "processes")}
    return flags | outcome | {"images_an_update": images} | decided.get("own", {})


def fingerprint_as_saved(checkpoint: Path | None, splits: Splits | Streams) -> str:
    """Identity of the data, computed as when the run was started: earlier runs looked at the images' ends only."""
    saved = read_manifest(checkpoint)["identity"].get("dataset_fingerprint") if checkpoint else None
    if isinstance(saved, str) and not saved.startswith(CONTENT):
        return splits.old_fingerprint()
    return splits.fingerprint()


def find_checkpoint(run: RunConfig, lock: Lock) -> Path | None:
    """The checkpoint to resume from; None to start at update 0.

    Raises:
        ConfigError: the one that was named is damaged, or the run has some but none that is sound.
    """
    asked, output_dir = run.resume_from_checkpoint, run.output_dir
    if asked is None:
        return None
    if is_run(output_dir):
        _refuse_links(Path(output_dir))
        lock.take(Path(output_dir))
    if asked != "auto":
        named = Path(files.follow(asked))
        try:
            verify(named)
        except CheckpointError as error:
            raise ConfigError(f"--resume_from_checkpoint {error}; auto takes the newest sound one") from error
        return named
    if not is_run(output_dir):
        say("resume: no run to continue yet, so this one starts at update 0")
        return None
    found, notes = newest_sound(Path(output_dir))
    for note in notes:
        say(f"warning: {note}")
    if found is None and notes:
        raise ConfigError(f"--resume_from_checkpoint auto: no checkpoint in {output_dir} is sound; start a new run")
    say(f"resume: from {found}" if found else f"resume: {output_dir} has no checkpoint yet; starting at update 0")
    return found


def _refuse_links(folder: Path) -> None:
    """What is opened for writing must lie in the run's folder; a folder from somebody else may have links instead."""
    for name in (files.LOCK, LOG, "tensorboard", "wandb", "mlruns", "profile", "profile/trace.json"):
        path = folder / name
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise ConfigError(f"{path}: must be a file or folder of the run, and no link; put what it points to there")


def bring_back(
    state: TrainState, checkpoint: Path | None, same: dict[str, Any], total_updates: int, weights_loaded: bool
) -> int:
    """Restore `state` from a checkpoint of the same run, if there is one; returns the length of its log then.

    Args:
        state: at update 0.
        checkpoint: which has been verified; None changes nothing. The best one is verified here.
        same: the identity of the run as it is now.
        total_updates: as planned now.
        weights_loaded: the model was built from `checkpoint`, whose weights need not be read again.

    Raises:
        ConfigError: the checkpoint is of another run; names each difference.
    """
    if checkpoint is None:
        return 0
    check_identity(checkpoint, same)
    planned, manifest = read_record(checkpoint.parent / RECORD)["total_updates"], read_manifest(checkpoint)
    done = manifest["step"]
    if isinstance(done, int) and total_updates < done:  # before the schedule is stepped as often
        raise ConfigError(f"{checkpoint}: {done} updates are done, and now only {total_updates} are asked for")
    try:
        log_bytes = restore(state, checkpoint, weights_loaded)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    # Sound, but not what this program writes.
    except (*STRANGE, RecursionError, RuntimeError) as error:
        if is_out_of_memory(error) or is_lost_peer(error):
            raise
        raise ConfigError(f"{checkpoint}: cannot be understood: {type(error).__name__} {error}") from error
    keep_sound_best(checkpoint.parent, state.best, until=state.step)
    before = manifest["identity"].get("processes")
    if before != same["processes"]:
        say(
            f"resume: {same['processes']} processes instead of {before}: the same samples, but not bit for bit the same"
        )
    if total_updates != planned and state.schedule.depends_on_length and before == same["processes"]:
        raise ConfigError(
            f"cannot resume {checkpoint}: the run had {planned} updates and would have {total_updates} now, which"
            " changes its schedule; start a new run to change that"
        )
    if total_updates != planned:
        say(f"resume: {total_updates} updates instead of {planned}, which this schedule allows: it ignores the length")
    return log_bytes
