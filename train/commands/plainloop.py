"""The command `plainloop`: a first word that names a command, and the rest for that command."""

import sys
from collections.abc import Callable, Sequence

from train.commands.compare import main as compare
from train.commands.inspect import main as inspect
from train.main import main as train

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "fine-tune a Vision Transformer; the same as python -m train.main"),
    "inspect": (inspect, "look at a data set before training: counts, broken images, duplicates, doubtful labels"),
    "compare": (compare, "tell which of several runs has the better recipe, and whether that is luck"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 2 if there is no such command."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: {name}: no such command; the commands are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.path.append("")  # as for python -m, so that --optim my_module:MyOptimizer is found here; last, to hide nothing
    command, _ = COMMANDS[name]
    return command(rest)


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: plainloop COMMAND [...]", "", *lines, "", "plainloop COMMAND --help lists its flags"])
