"""--seeds and --sweep: from their text to the flags of every run, which are checked before the first one starts."""

import hashlib
import itertools
import re
from dataclasses import dataclass
from typing import Any

from train.config.checks import check_flags
from train.config.cli import parse, read_flags
from train.config.flag_file import as_tokens
from train.config.flags import build_parser, no_such_flag
from train.config.given import TYPED, Flags, split
from train.config.schema import EARLY_ENDS, FLAGS, FREE, Config
from train.errors import ConfigError
from train.recipes.runs import OF_THE_DATA

LONGEST_NAME = 150  # of a folder, in characters; file systems take 255 bytes
# A list of arguments has commas itself.
LISTS = {"optim_args", "lr_scheduler_kwargs"}


@dataclass(frozen=True)
class Start:
    """One run of a series."""

    name: str  # of its folder
    tokens: list[str]  # of its command line, but the folder
    flags: dict[str, Any]  # every flag that the weights depend on, as it was asked for


def make_grid(arguments: list[str], config: Config) -> list[Start]:
    """Every combination with every seed, in the order in which they are named.

    Args:
        arguments: of the command line.
        config: made of them.

    Raises:
        ConfigError: a value cannot be used in one of the runs, or flags do not go together.
    """
    flags = read_flags(build_parser(), arguments)
    _check_given(flags, config)
    for name in ("seeds", "sweep"):
        if sum(flag == name for flag, _ in split(arguments)) > 1:
            raise ConfigError(f"--{name}: is there twice; name all values in one, separated by commas")
    common = _without(arguments, {"seeds", "sweep", "output_dir", "resume_from_checkpoint"})
    if not flags.script:  # whose flags mean more if no preset is named
        common.append(f"--preset={config.run.preset}")  # chosen once, for all of them
    seeds, sweep = parse_seeds(config.run.seeds), parse_sweep(config.run.sweep)
    for name, values in sweep.items():
        if name in flags.given and flags.given[name].source == TYPED:
            raise ConfigError(f"--{name}: is swept as well; name it once")
        if "auto" in values and len(values) > 1:
            raise ConfigError(f"--sweep {name}: auto chooses one of the others; leave it out")
    if seeds and config.data.split_seed is None:
        common.append(f"--split_seed={FLAGS['seed'].default}")  # or each seed would be judged on other images
    starts: dict[str, Start] = {}
    for values in itertools.product(*sweep.values()):
        for seed in seeds or [None]:
            swept = dict(zip(sweep, values, strict=True))
            start = _start(swept, seed, common)
            if start.name in starts or any(start.flags == other.flags for other in starts.values()):
                raise ConfigError(f"{start.name}: is there twice; name each value once")
            starts[start.name] = start
    return list(starts.values())


def _start(swept: dict[str, str], seed: int | None, common: list[str]) -> Start:
    name = _folder_name(
        [*(f"{flag}={value}" for flag, value in swept.items()), *([f"seed-{seed}"] if seed is not None else [])]
    )
    tokens = [*common, *as_tokens(swept | {"seed": seed})]
    try:
        config = parse(tokens)
        flags = {flag: value for flag, value in config.flat().items() if flag not in FREE}
        check_flags(config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return Start(name, tokens, flags)


def parse_seeds(text: str | None) -> list[int]:
    """`42,43,44` -> [42, 43, 44].

    Raises:
        ConfigError: something else than different whole numbers.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]+", part) for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise ConfigError(f"--seeds {text}: must be different whole numbers, such as 42,43,44")
    return list(map(int, parts))


def parse_sweep(text: str | None) -> dict[str, list[str]]:
    """`learning_rate=1e-4,2e-4,weight_decay=0` -> {"learning_rate": ["1e-4", "2e-4"], "weight_decay": ["0"]}.

    Raises:
        ConfigError: it has another form, or names a flag that does not exist or that no comparison can be made of.
    """
    found: dict[str, list[str]] = {}
    name = None
    for part in text.split(",") if text is not None else []:
        before, equals, value = part.partition("=")
        if equals:
            name = before.strip().removeprefix("--").replace("-", "_")
            if name in found:
                raise ConfigError(f"--sweep {text}: names {name} twice")
            _check_swept(name)
            found[name] = []
        if name is None or not (value if equals else part).strip():
            raise ConfigError(f"--sweep {text}: must look like learning_rate=1e-4,2e-4,weight_decay=0,0.01")
        found[name].append((value if equals else part).strip())
    return found


def _check_swept(name: str) -> None:
    if name not in FLAGS:
        raise ConfigError(f"--sweep {name}: {no_such_flag(name)}; values that have commas cannot be swept")
    if name == "seed":
        raise ConfigError("--sweep seed: name the seeds in --seeds, which makes one recipe of them")
    if name in LISTS:
        raise ConfigError(f"--sweep {name}: its values have commas; start one run for each, and plainloop compare")
    if name in OF_THE_DATA:
        raise ConfigError(f"--sweep {name}: the runs would be judged on different images, and cannot be compared")
    if name == "preset" or name in EARLY_ENDS:
        raise ConfigError(f"--sweep {name}: cannot be swept; start one run for each, and plainloop compare them")
    if name in FREE | {"device"}:
        raise ConfigError(f"--sweep {name}: changes no recipe, so there would be nothing to compare")


def _check_given(flags: Flags, config: Config) -> None:
    run, names = config.run, {name for name, given in flags.given.items() if given.source == TYPED}
    asked = [name for name in ("seeds", "sweep") if getattr(run, name) is not None]
    for name in asked:
        if name not in names:
            raise ConfigError(f"--{name}: belongs on the command line; a file holds the flags of one run")
    if run.seeds is not None and "seed" in names:
        raise ConfigError(f"--seed {run.seed}: leave it out, or name it in --seeds")
    if "output_dir" not in names:
        raise ConfigError(f"--output_dir: name one beside --{asked[0]}, for the folders of the runs")
    if run.eval_only or run.stop_after:
        other = "eval_only" if run.eval_only else "stop_after"
        raise ConfigError(f"--{other}: has no meaning with --{asked[0]}, which trains every run to its end")
    resume = run.resume_from_checkpoint
    if resume is not None and not (resume == "auto" and "resume_from_checkpoint" in names):
        raise ConfigError(f"--resume_from_checkpoint: leave it out; --{asked[0]} continues what is not finished")


def _without(arguments: list[str], names: set[str]) -> list[str]:
    """The arguments without these flags."""
    kept: list[str] = []
    for name, values in split(arguments):
        if name is None:
            kept += values
        elif name.replace("-", "_") not in names:
            kept += [f"--{name}={values[0]}", *values[1:]] if values else [f"--{name}"]
    return kept


def _folder_name(parts: list[str]) -> str:
    """`learning_rate=1e-4,seed-42`, of characters and a length that every file system takes."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", ",".join(parts)).rstrip(" .")
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
