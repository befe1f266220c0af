"""From the command line, a YAML or JSON file, or the record of a run being resumed, to a checked `Config`.

Later ones win: defaults, preset, the resumed run's record, file, flags. All take the same way through argparse, so
that a value in a file is checked and converted like one on the command line.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from train.config.presets import PRESETS, choose_preset
from train.config.record import check_output_dir, find_run, is_run, read_record
from train.config.schema import FLAGS, OF_THE_START, SECTIONS, Config
from train.distributed.env import is_restart, may_restart
from train.errors import ConfigError
from train.system import hub

USAGE = """python -m train.main [CONFIG.yaml] [--flag value ...]

Fine-tune a Vision Transformer for image classification, with a loop that you can read: train/loop.py."""


def parse(argv: Sequence[str]) -> Config:
    """Everything a run needs to know, from the arguments after the program's name.

    Raises:
        ConfigError: an unknown flag, a value that is none, or a file that cannot be read.
    """
    tokens = _file_tokens(argv[0]) + list(argv[1:]) if argv and not argv[0].startswith("-") else list(argv)
    if dashes := [token for token in tokens if token == "--" or token.endswith("=--")]:
        raise ConfigError(f"{dashes[0]}: -- has no meaning here")  # argparse would make an empty list of it
    named = _named(tokens)
    if is_restart() and "resume_from_checkpoint" not in named:
        tokens.append("--resume_from_checkpoint=auto")
    if "cache_dir" in named:
        hub.move_caches(_value(tokens, "cache_dir"))
    parser = _build_parser()
    run, data, model, _ = _sections(parser, tokens)  # once for the preset, whose values are then the defaults

    record = find_run(run.output_dir, run.resume_from_checkpoint, data.dataset)
    stored = read_record(record)["config"] if record else {}
    if stored and "preset" not in named:
        preset, reason = stored["preset"], f"as recorded in {record.parent}, which goes on"
    else:
        preset, reason = choose_preset(run.preset, named, run.cache_dir)
    remembered = {name: value for name, value in stored.items() if name not in OF_THE_START and value is not None}
    defaults = PRESETS[preset] | remembered
    parser.set_defaults(**defaults)
    run, data, model, recipe = _sections(parser, tokens)
    run.preset = preset
    if record and run.output_dir is None:
        run.output_dir = str(record.parent)
    config = Config(run, data, model, recipe, reason, sorted(named))
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """What no section can check alone, before anything heavy is imported."""
    for name, value in (("dataset", config.data.dataset), ("model", config.model.model)):
        if not value:
            raise ConfigError(f"--{name}: name one; only the presets beans, leaves and debug bring their own")
    if config.data.streaming:
        if config.recipe.max_steps < 1:
            raise ConfigError("--streaming true: a stream has no length; name --max_steps")
        if given := [name for name in ("max_train_samples", "max_eval_samples") if getattr(config.data, name)]:
            raise ConfigError(f"--{given[0]}: a subset cannot be drawn from a stream; leave it, or --streaming")
        if config.run.fsdp:
            raise ConfigError("--fsdp true: processes get unequal parts of a stream; leave it, or --streaming")
        if config.data.skip_bad_images:
            raise ConfigError("--skip_bad_images: a stream is not read beforehand; leave it, or --streaming")
    resuming = config.run.resume_from_checkpoint is not None
    if may_restart() and not config.run.output_dir:
        raise ConfigError("--output_dir: name one with torchrun --max-restarts, so that a restart finds the run again")
    if config.run.eval_only:
        if given := [
            name for name in ("output_dir", "resume_from_checkpoint", "stop_after") if getattr(config.run, name)
        ]:
            raise ConfigError(f"--eval_only: trains and writes nothing, so --{given[0]} has no meaning beside it")
        return
    check_output_dir(config.run.output_dir, resuming and is_run(config.run.output_dir))


def _build_parser() -> Any:
    # Here and not at the top: importing transformers takes most of a second, which `move_caches` must precede.
    from transformers.hf_argparser import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse would print all flags, and exit by itself
            raise ConfigError(message)

    parser = Parser(SECTIONS, usage=USAGE, allow_abbrev=False)
    for action in parser._actions:
        recipes = [f"{name}: {preset[action.dest]}" for name, preset in PRESETS.items() if action.dest in preset]
        if recipes and action.help:
            action.help += f" [{'; '.join(recipes)}]"
    return parser


def _sections(parser: Any, tokens: list[str]) -> tuple[Any, ...]:
    *sections, unknown = parser.parse_args_into_dataclasses(
        tokens, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ConfigError(_unknown(unknown[0]))
    return tuple(sections)


def _unknown(token: str) -> str:
    close = difflib.get_close_matches(token.split("=")[0].lstrip("-").replace("-", "_"), FLAGS, n=1)
    hint = f"did you mean --{close[0]}?" if close and token.startswith("-") else "--help lists every flag"
    return f"{token}: no such flag; {hint}" if token.startswith("-") else f"{token}: belongs to no flag; {hint}"


def _named(tokens: list[str]) -> set[str]:
    """Names of the flags among the tokens, without dashes and values."""
    names = {token[2:].split("=")[0].replace("-", "_") for token in tokens if token.startswith("--")}
    return {name.removeprefix("no_") if name not in FLAGS else name for name in names}


def _value(tokens: list[str], name: str) -> str:
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        flag, _, value = token.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            return value or following
    return ""


def _file_tokens(path: str) -> list[str]:
    """A YAML or JSON file of flag names and values, as command-line tokens."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError for a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path!r}: cannot be read: {reason}; flags begin with --") from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold lines of the form `learning_rate: 3e-5`")
    tokens = []
    for name, value in content.items():
        if name not in FLAGS:
            raise ConfigError(f"{path}: {_unknown(f'--{name}')}")
        if value is not None:  # null is "not given", as in the record of a run
            tokens.append(f"--{name}={_as_text(value)}")
    return tokens


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
