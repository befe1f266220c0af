"""From the command line, a YAML or JSON file, or the record of a run being resumed, to a checked `Config`.

Later ones win: defaults, preset, the resumed run's record, file, flags. All go through argparse, so that a value in a
file is checked and converted like one on the command line.
"""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from train.config.flag_file import as_tokens, file_flags, refuse_secrets
from train.config.flags import Parser, build_parser
from train.config.given import FILE, TYPED, Flags, Given, token
from train.config.presets import PRESETS, choose_preset
from train.config.record import check_output_dir, find_run, is_run, read_record
from train.config.schema import (
    DEFAULTS_OF_OLDER_RUNS,
    EARLY_ENDS,
    IMPORTS_CODE,
    OF_THE_START,
    SECTIONS,
    AugmentConfig,
    Config,
)
from train.config.trainer_flags import script_defaults, translate
from train.distributed.env import is_restart, may_restart, world_size
from train.errors import ConfigError
from train.system import hub


def parse(argv: Sequence[str]) -> Config:
    """Everything a run needs to know, from the arguments after the program's name.

    Raises:
        ConfigError: an unknown flag, a wrong value, or a file that cannot be read.
    """
    parser = build_parser()
    flags = read_flags(parser, argv)
    if is_restart() and "resume_from_checkpoint" not in flags.given:
        flags.given["resume_from_checkpoint"] = Given("auto", "resume_from_checkpoint", TYPED)
    _refuse_problems(parser, flags)
    tokens, named = flags.tokens(), set(flags.given)
    asked = parser.parse_args(tokens)  # for the preset and the record, whose values are then the defaults
    if asked.cache_dir is not None:
        hub.move_caches(asked.cache_dir)

    record = find_run(asked.output_dir, asked.resume_from_checkpoint, asked.dataset)
    stored, notes, by_the_script = _stored(parser, record) if record else {}, flags.all_notes(), {}
    if stored and "preset" not in named:
        preset, reason = stored["preset"], f"as recorded in {record.parent}, which is continued"
    elif flags.script and "preset" not in named:
        preset, reason = "trainer", f"the Trainer's defaults, as --{flags.script} is a flag of its script"
        by_the_script = script_defaults(named, notes)
    else:
        preset, reason = choose_preset(asked.preset, named, asked.cache_dir)
    remembered = {name: value for name, value in stored.items() if name not in OF_THE_START}
    parser.set_defaults(**PRESETS[preset] | by_the_script | remembered)
    values = vars(parser.parse_args(tokens))
    _as_long_as_named(values, flags, stored, notes)
    _adjusted_where_possible(values, named, notes)
    _save_as_evaluated(values, named, notes)
    sections = [section(**{f.name: values[f.name] for f in fields(section)}) for section in SECTIONS]
    config = Config(*sections, reason, sorted(named), record is not None, notes)
    config.run.preset = preset
    if record and config.run.output_dir is None:
        config.run.output_dir = str(record.parent)
    _refuse_code(values, flags, record or (argv or [""])[0])
    if config.run.eval_only:
        _refuse_training(flags)
    _check_together(config)
    return config


def recorded(record: Path) -> Config:
    """The flags that a run recorded, each checked and converted like one on the command line.

    Raises:
        ConfigError: the record cannot be used, or the run was started from Python.
    """
    parser = build_parser()
    values = vars(parser.parse_args([])) | _stored(parser, record)
    return Config(*(section(**{f.name: values[f.name] for f in fields(section)}) for section in SECTIONS))


def read_flags(parser: Parser, argv: Sequence[str]) -> Flags:
    """The flags of a command line, and of the file that it may begin with, in our names.

    Raises:
        ConfigError: the file cannot be read, or there is what no flag may hold.
    """
    typed, path = list(argv), None
    if typed and not typed[0].startswith("-"):
        path = typed.pop(0)
    if {"-h", "--help"} & set(typed):
        parser.parse_args(["--help"])  # which exits
    from_file = file_flags(path) if path else {}
    _check_texts([*typed, *as_tokens(from_file)])
    return translate(typed, from_file, path)


def problems(parser: Parser, flags: Flags) -> list[str]:
    """Everything that is wrong with single flags: what was refused, and what argparse says of each."""
    found = flags.problems()
    try:
        parser.parse_args(flags.tokens())
    except ConfigError:  # names the first that is wrong
        for name, given in flags.given.items():
            try:
                parser.parse_args([token(name, given)])
            except ConfigError as error:
                found.append(str(error).replace(f"--{name}", f"--{given.spelled}", 1))
    return found


def _refuse_problems(parser: Parser, flags: Flags) -> None:
    """All of them in one answer, a used folder included."""
    found, output = problems(parser, flags), flags.given.get("output_dir")
    if found and output and "resume_from_checkpoint" not in flags.given:
        try:
            check_output_dir(output.value, resuming=False)
        except ConfigError as error:
            found.append(str(error))
    if found:
        raise ConfigError("; ".join(found))


def _check_texts(tokens: list[str]) -> None:
    if dashes := [token for token in tokens if token == "--" or token.endswith("=--")]:
        raise ConfigError(f"{dashes[0]}: -- has no meaning here")  # argparse would make an empty list of it
    if strange := [token for token in tokens if not _is_utf8(token)]:
        raise ConfigError(f"{strange[0]!a}: is not UTF-8, as this terminal passes it; set PYTHONUTF8=1, or rename it")
    refuse_secrets(tokens)


def _check_together(config: Config) -> None:
    """What no section can check alone, before anything heavy is imported."""
    for name, value in (("dataset", config.data.dataset), ("model", config.model.model)):
        if not value:
            raise ConfigError(f"--{name}: name one; only the presets beans, leaves and debug bring their own")
    if config.data.streaming:
        if config.recipe.max_steps < 1 and not config.run.eval_only:
            raise ConfigError("--streaming true: a stream has no length; name --max_steps")
        if given := [name for name in ("max_train_samples", "max_eval_samples") if getattr(config.data, name)]:
            raise ConfigError(f"--{given[0]}: a subset cannot be drawn from a stream; leave it, or --streaming")
        if config.run.fsdp:
            raise ConfigError("--fsdp true: processes get unequal parts of a stream; leave it, or --streaming")
        augment = config.augment
        balancing = {
            "class_weights": augment.class_weights == "balanced",
            "sampler": augment.sampler == "balanced",
            "logit_adjustment": augment.logit_adjustment,
        }
        if (used := [name for name, on in balancing.items() if on]) and not config.run.eval_only:
            raise ConfigError(
                f"--{used[0]}: a stream does not say how many images a class has; leave it, or --streaming"
            )
        if config.data.skip_bad_images:
            raise ConfigError("--skip_bad_images: a stream is not read beforehand; leave it, or --streaming")
    if config.run.several:
        if world_size() > 1 or may_restart():
            raise ConfigError(
                "--seeds and --sweep: start a process for each run, one after another; leave torchrun out"
            )
        return  # train/recipes/ checks the rest
    if config.recipe.ema is not None and config.run.fsdp:
        raise ConfigError("--ema: does not work with --fsdp, whose weights are spread over the processes")
    resuming = config.run.resume_from_checkpoint is not None
    if may_restart() and not config.run.output_dir:
        raise ConfigError("--output_dir: name one with torchrun --max-restarts, so that a restart finds the run again")
    if config.run.eval_only:
        if given := [
            name for name in ("output_dir", "resume_from_checkpoint", "stop_after") if getattr(config.run, name)
        ]:
            raise ConfigError(f"--eval_only: trains and writes nothing, so --{given[0]} has no meaning beside it")
        if "model" in config.named and not {"dataset", "preset"} & set(config.named):
            raise ConfigError("--eval_only: name the --dataset to evaluate on")  # not the one of the preset
        return
    check_output_dir(config.run.output_dir, resuming and is_run(config.run.output_dir))


def _stored(parser: Parser, record: Path) -> dict[str, Any]:
    """The flags in the record of a run, each checked and converted like one on the command line."""
    stored = DEFAULTS_OF_OLDER_RUNS | {
        name: value for name, value in read_record(record)["config"].items() if value is not None
    }
    preset = stored.pop("preset", None)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{record.parent}: was started from Python; run that program again to continue it")
    if nested := [name for name, value in stored.items() if isinstance(value, list | dict)]:
        raise ConfigError(f"{record}: {nested[0]} is a list or a mapping, which no run writes")
    refuse_secrets(as_tokens(stored))
    try:
        values = vars(parser.parse_args(as_tokens(stored)))
    except ConfigError as error:
        raise ConfigError(f"{record}: {error}") from error
    return {name: values[name] for name in stored} | {"preset": preset}


def _as_long_as_named(values: dict[str, Any], flags: Flags, stored: dict[str, Any], notes: list[str]) -> None:
    """--min_steps of a preset, or of a file, gives way to a length that is named, or typed."""
    least = flags.given.get("min_steps")
    lengths = [
        name
        for name in ("max_steps", "num_train_epochs")
        if (given := flags.given.get(name)) and (least is None or given.source > least.source)
        if values[name] != stored.get(name)  # of a run that is continued
    ]
    if values["min_steps"] and lengths:
        notes.append(f"--min_steps {values['min_steps']}: left out, as you named --{lengths[0]}")
        values["min_steps"] = 0


def _adjusted_where_possible(values: dict[str, Any], named: set[str], notes: list[str]) -> None:
    """The preset's --logit_adjustment gives way where classes are not counted, or are drawn alike."""
    why = None
    if values["sampler"] == "balanced":
        why = "--sampler balanced draws all classes alike"
    elif values["streaming"]:
        why = "a stream does not say how many images a class has"
    if why and values["logit_adjustment"] and "logit_adjustment" not in named and not values["eval_only"]:
        notes.append(f"--logit_adjustment {values['logit_adjustment']:g} of the preset: left out, as {why}")
        values["logit_adjustment"] = 0.0


def _save_as_evaluated(values: dict[str, Any], named: set[str], notes: list[str]) -> None:
    """Where only --eval_steps is named, the preset's --save_steps may not fit it, and follows."""
    saves, evaluations = values["save_steps"], values["eval_steps"]
    counted = isinstance(saves, int) and isinstance(evaluations, int) and evaluations > 0
    if (
        "eval_steps" in named
        and "save_steps" not in named
        and (saves % evaluations if counted else saves != evaluations)
    ):
        values["save_steps"] = evaluations
        notes.append(f"--save_steps {evaluations}: as --eval_steps, so that every saved checkpoint has been evaluated")


def _refuse_training(flags: Flags) -> None:
    """--eval_only would ignore what only training does; a file of flags may hold it all the same."""
    of_training = {item.name for item in fields(AugmentConfig)} | {
        *EARLY_ENDS,
        *("ema", "layer_decay", "freeze", "folds"),
    }
    typed = sorted(name for name, given in flags.given.items() if given.source == TYPED and name in of_training)
    if typed:
        raise ConfigError(f"--eval_only: trains nothing, so --{typed[0]} has no meaning beside it")


def _refuse_code(values: dict[str, Any], flags: Flags, source: Path | str) -> None:
    """A class to import must stand on the command line: a record or a file may come from somebody else."""
    for name in IMPORTS_CODE:
        if ":" in values[name] and (name not in flags.given or flags.given[name].source == FILE):
            flag = shlex.join([f"--{name}", values[name]])
            raise ConfigError(f"{source}: names code to import, {values[name]}; if you trust it, add {flag}")


def _is_utf8(text: str) -> bool:
    """False for a path of other bytes, which Python passes on as lone surrogates and no file of a run could hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
