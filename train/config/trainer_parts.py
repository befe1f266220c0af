"""Flags of the Trainer that say something only together with others: tasks, folders, precision, intervals, Adam."""

import math
import os
from pathlib import Path

from train.config.given import Flags, Given
from train.config.presets import BEANS_MODEL
from train.optimizers.arguments import parse_arguments
from train.optimizers.names import optimizer_parameters

ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def put_together(flags: Flags) -> None:
    """Replace them by ours."""
    for part in (_folders, _task, _precision, _intervals, _adam, _parts_of_the_model):
        part(flags)


def _folders(flags: Flags) -> None:
    """There, --train_dir and --validation_dir are folders of their own; here, they lie inside --dataset."""
    named = [name for name in ("train_dir", "validation_dir", "test_dir") if name in flags.given]
    if not named or "dataset" in flags.given:
        return
    dirs = {name: flags.given[name] for name in named}
    if lost := [given for given in dirs.values() if not given.value or not Path(given.value).is_dir()]:
        if "resume_from_checkpoint" not in flags.given:  # whose record knows the data set
            text = "there is no such folder here; name one, or --dataset and the folder inside it"
            flags.refuse(", ".join(map(str, lost)), text)
        return
    paths = [os.path.normpath(Path(given.value).absolute()) for given in dirs.values()]
    parent = os.path.commonpath(paths) if len({Path(path).anchor for path in paths}) == 1 else ""
    if not parent or parent == Path(parent).anchor:
        text = "have no folder in common; link both into one, and name it as --dataset"
        flags.refuse(" and ".join(map(str, dirs.values())), text)
        return
    first, relative = next(iter(dirs.values())), os.path.relpath(parent)
    all_relative = not any(Path(given.value).is_absolute() for given in dirs.values())
    shown = relative if all_relative and Path(relative).name not in ("", "..") else parent
    flags.put("dataset", first._replace(value=shown))
    flags.script = flags.script or first.spelled
    for (name, given), path in zip(dirs.items(), paths, strict=True):
        flags.given[name] = given._replace(value=Path(os.path.relpath(path, parent)).as_posix())


def _task(flags: Flags) -> None:
    """--do_eval alone evaluates; --do_train trains, which here has evaluations in it."""
    train, evaluation = flags.take("do_train"), flags.take("do_eval")
    if evaluation and evaluation.word == "true" and not (train and train.word == "true"):
        flags.put("eval_only", evaluation._replace(value="true"))
        output = flags.given.get("output_dir")
        if output and output.source <= evaluation.source:
            flags.take("output_dir")
            flags.idle(f"--{output.spelled}", "--do_eval alone prints its metrics as JSON, and writes nothing")
    elif train and train.word == "false":
        flags.refuse(str(train), "leaves nothing to do; --do_eval evaluates", train.source)
    elif train or evaluation:
        if train and "eval_only" in flags.given:
            flags.put("eval_only", train._replace(value="false"))
        strategy = flags.given.get("eval_strategy")
        if not evaluation and not (strategy and strategy.word != "false"):
            flags.notes.append("evaluation is a part of training here, also without --do_eval")


def _precision(flags: Flags) -> None:
    """The words --fp16 and --bf16; when one is switched off and none on, float32."""
    asked = [
        given._replace(value=name if given.word == "true" else "fp32")
        for name in ("fp16", "bf16")
        if (given := flags.take(name))
    ]
    newest = [given for given in asked if given.source == max(item.source for item in asked)]
    for given in [given for given in newest if given.value != "fp32"] or newest[:1]:
        flags.put("precision", given)


def _intervals(flags: Flags) -> None:
    """How often to log, evaluate and save: a strategy, or a number of updates."""
    strategies = {kind: flags.take(f"{kind}_strategy") for kind in ("logging", "eval", "save")}
    if "eval_only" in flags.given and flags.given["eval_only"].word == "true":
        return
    for kind, strategy in strategies.items():
        _whole_number(flags, f"{kind}_steps")
        steps = flags.given.get(f"{kind}_steps")
        if strategy and not (steps and steps.source > strategy.source):
            _strategy(flags, kind, strategy, steps)
    if flags.script or any(strategies.values()):
        _saves_after_evaluations(flags)


WITHOUT = {
    "logging": "metrics.jsonl is written all the same, every --logging_steps",
    "eval": "evaluated all the same, every --eval_steps, to find the best model",
    "save": "saved all the same, every --save_steps; --save_total_limit 1 keeps the fewest",
}


def _strategy(flags: Flags, kind: str, strategy: Given, steps: Given | None) -> None:
    if strategy.word == "epoch":
        if steps and steps.word != "epoch":
            flags.idle(f"--{steps.spelled}", f"{strategy} takes its place")
        flags.given[f"{kind}_steps"] = strategy._replace(value="epoch")
    elif strategy.word == "best":
        flags.notes.append(f"{strategy}: a new best is saved at once, and another checkpoint every --save_steps")
    elif strategy.word != "steps":  # no
        flags.notes.append(f"{strategy}: {WITHOUT[kind]}")
    elif kind == "eval" and not steps and "preset" not in flags.given:  # as the Trainer does
        logging = flags.given.get("logging_steps")
        number = logging.value if logging and logging.number else "500"
        flags.given["eval_steps"] = strategy._replace(value=number)


def _whole_number(flags: Flags, name: str) -> None:
    """There, a number of updates may be written 10.0, and one below 1 is a share of all."""
    given, total = flags.given.get(name), flags.given.get("max_steps")
    number = given.number if given else None
    if number is None:
        return
    if 0 < number < 1:
        if not total or not total.number or total.number < 1:
            text = "is a share of all updates, which needs --max_steps beside it; or name a number, or epoch"
            flags.refuse(str(flags.take(name)), text, given.source)
            return
        number = math.ceil(total.number * number)
        every = flags.given.get("eval_steps")
        if name == "save_steps" and every and every.number:  # 0.1 and 0.2 of 995 updates: 100 and 200
            number = math.ceil(number / every.number) * every.number
    if number == int(number):
        flags.given[name] = given._replace(value=str(int(number)))


def _saves_after_evaluations(flags: Flags) -> None:
    """Every checkpoint that is saved here has been evaluated: of the two, what is not given follows what is."""
    evaluations, saves = flags.given.get("eval_steps"), flags.given.get("save_steps")
    every, save = evaluations and evaluations.number, saves and saves.number
    if evaluations and saves:
        if save % every if every and save else evaluations.word != saves.word:
            how = f"{saves.value} must be a multiple of the latter" if every and save else "say epoch for both"
            text = f"a checkpoint is evaluated before it is saved, so {how}"
            flags.refuse(f"{saves} and {evaluations}", text, saves.source)
    elif evaluations:
        _follow(flags, "save_steps", evaluations, math.ceil(500 / every) * every if every else None)
    elif saves:
        _follow(flags, "eval_steps", saves, 500 if save and save % 500 == 0 else save)


def _follow(flags: Flags, name: str, leader: Given, number: float | None) -> None:
    value = str(int(number)) if number else leader.value
    flags.given[name] = leader._replace(value=value)
    if value != "500":
        flags.notes.append(f"--{name} {value}: a checkpoint is evaluated before it is saved")


def _adam(flags: Flags) -> None:
    """`--adam_beta2 0.98` -> `--optim_args betas=(0.9, 0.98)`, for an optimizer that has betas."""
    asked = {name: given for name in ADAM if (given := flags.take(name))}
    for given in asked.values():
        if given.number is None:
            flags.refuse(str(given), "must be a number", given.source)
    changed = [item for item, given in asked.items() if given.number not in (None, ADAM[item])]
    optim = flags.given.get("optim")
    name = optim.value if optim else "adamw"
    if not changed or not name:
        return
    names = ", ".join(f"--{item}" for item in changed)
    if ":" in name:
        flags.refuse(names, "say it in --optim_args, for a class of your own")
        return
    takes = optimizer_parameters(name)[1]
    numbers = ADAM | {item: asked[item].number for item in changed}
    options = {"betas": (numbers["adam_beta1"], numbers["adam_beta2"]), "eps": numbers["adam_epsilon"]}
    wanted = {"eps" if item == "adam_epsilon" else "betas" for item in changed}
    if absent := sorted(wanted - takes.keys()):
        flags.idle(names, f"--optim {name} has no {' and no '.join(absent)}")
    before = flags.given.get("optim_args")
    others = parse_arguments("optim_args", before.value if before else None)
    if twice := sorted(wanted & others.keys()):
        flags.refuse(f"{names} and {before}", f"set {twice[0]} twice; leave one out")
    if options := {key: value for key, value in options.items() if key in wanted & takes.keys()} | others:
        text = ",".join(f"{key}={value!r}" for key, value in options.items())
        flags.given["optim_args"] = asked[changed[0]]._replace(value=text)


def _parts_of_the_model(flags: Flags) -> None:
    """A configuration or preprocessing of its own, where it is not that of the model."""
    model = flags.given.get("model")
    for name in ("config_name", "image_processor_name", "feature_extractor_name"):
        given = flags.take(name)
        if given and given.value != (model.value if model else BEANS_MODEL):
            text = "a model is read with the configuration and preprocessing that lie with it; leave it out"
            flags.refuse(f"--{given.spelled}", text, given.source)
