"""From the documented fields of the configuration to argparse, and a help that one can read."""

import argparse
import difflib
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any, NoReturn

from train.config.presets import PRESETS
from train.config.schema import FLAGS, SECTIONS
from train.errors import ConfigError

DESCRIPTION = """Fine-tune a Vision Transformer for image classification. Flags may also stand in a YAML or JSON file;
flags on the command line override it, and both override the preset. What a preset sets is shown in brackets. The flags
of the Hugging Face Trainer are understood, too."""

SWITCH_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# What timm, fastai and Ultralytics call some flags.
PEERS = {
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "batch": "per_device_train_batch_size",
    "wd": "weight_decay",
    "opt": "optim",
    "sched": "lr_scheduler_type",
    "patience": "early_stopping_patience",
    "workers": "dataloader_num_workers",
    "imgsz": "image_size",
    "img_size": "image_size",
    "data": "dataset",
    "data_dir": "dataset",
    "output": "output_dir",
    "smoothing": "label_smoothing",
    "resume": "resume_from_checkpoint",
}
# Beside numbers that may be left out: none takes back what a preset or a record sets. A folder may have that name.
ACCEPTS_NONE = {
    *("class_weights", "freeze", "lr_scheduler_kwargs", "max_time", "optim_args", "until"),
    *("mixup", "cutmix", "label_smoothing", "logit_adjustment", "random_erasing", "min_steps", "layer_decay"),
}
SWITCHED_ON = {name for name, item in FLAGS.items() if item.default is True}


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line: argparse itself would print all flags and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        text = message.removeprefix("argument ")
        raise ConfigError(text if len(text) < 1000 else f"{text[:100]} ... {text[-100:]}")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.type is not _boolean:
            return super()._format_action_invocation(action)
        return f"--{action.dest}, --no_{action.dest}" if action.dest in SWITCHED_ON else f"--{action.dest}"


def build_parser() -> Parser:
    """One flag for each field of the sections, under the headings that the schema gives."""
    parser = Parser(
        prog="plainloop train",
        usage="plainloop train [CONFIG.yaml] [--flag value ...]",
        description=DESCRIPTION,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    group: Any = parser
    for section in SECTIONS:
        hints = typing.get_type_hints(section)
        for item in fields(section):
            if heading := item.metadata.get("heading"):
                group = parser.add_argument_group(heading)
            _add(group, item, hints[item.name], _help(item))
    return parser


def add_flag(parser: Parser, section: type, item: Field, text: str | None = None) -> None:
    """One flag of a section, for another command; without what a preset sets, which only training has."""
    _add(parser, item, typing.get_type_hints(section)[item.name], (text or item.metadata["help"]).replace("%", "%%"))


def _add(group: Any, item: Field, hint: Any, text: str) -> None:
    options: dict[str, Any] = {"default": item.default, "help": text}
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.Literal["epoch"] in kinds:
        options |= {"type": _count_or_epoch, "metavar": "N|epoch"}
    elif typing.get_origin(hint) is typing.Literal:
        options["choices"] = kinds
        options["metavar"] = "|".join(kinds)
    else:
        kind = kinds[0] if isinstance(hint, types.UnionType) else hint
        options["type"] = _boolean if kind is bool else kind
        options["metavar"] = {bool: "", int: "N", float: "X", str: "TEXT"}[kind]
        if item.name in ACCEPTS_NONE or (isinstance(hint, types.UnionType) and kind in (int, float)):
            options |= {"type": _or_default(kind, item.default), "metavar": f"{options['metavar']}|none"}
    if options.get("type") is _boolean:
        options |= {"nargs": "?", "const": True}
    group.add_argument(f"--{item.name}", **options)


def _help(item: Field) -> str:
    text = item.metadata["help"].replace("%", "%%")
    if item.default is not None and item.default is not False and "efault" not in text:
        text += f" Default: {'on' if item.default is True else item.default}."
    sets = {name: preset[item.name] for name, preset in PRESETS.items() if item.name in preset}
    return text + (f" [{', '.join(f'{name}: {value}' for name, value in sets.items())}]" if sets else "")


def _or_default(kind: type, default: Any) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        return default if text == "none" else kind(text)

    value.__name__ = kind.__name__  # argparse names it where a value is wrong
    return value


def _count_or_epoch(text: str) -> int | str:
    try:
        return text if text == "epoch" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of updates nor epoch") from error


def _boolean(text: str) -> bool:
    if text.lower() not in SWITCH_WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return SWITCH_WORDS[text.lower()]


def no_such_flag(name: str, known: Collection[str] = FLAGS.keys()) -> str:
    """What to say of an unknown flag."""
    close = [PEERS[name]] if PEERS.get(name) in known else difflib.get_close_matches(name, known, n=1)
    return f"no such flag; {f'did you mean --{close[0]}?' if close else '--help lists every flag'}"
