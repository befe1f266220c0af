"""The command `plainloop`: a first word that names a command, and the rest for that command."""

import importlib
import sys
from collections.abc import Sequence

# Module and summary. A module is imported only when its command is called.
COMMANDS = {
    "train": ("train.main", "fine-tune a Vision Transformer; the same as python -m train.main"),
    "inspect": (
        "train.commands.inspect",
        "look at a data set before training: counts, broken images, duplicates, doubtful labels",
    ),
    "compare": (
        "train.commands.compare",
        "tell which of several runs has the better recipe, and whether that is luck",
    ),
    "predict": ("train.commands.predict", "classify images: files, or whole folders"),
    "evaluate": ("train.commands.evaluate", "evaluate a model on a split: accuracy, calibration, each image"),
    "report": ("train.commands.report", "write a page about one run or several, with its mistakes as pictures"),
    "export": ("train.commands.export", "turn a model into ONNX or torch.export, preprocessing included, and check it"),
    "serve": ("train.commands.serve", "answer HTTP requests with a model, and show a page to try it"),
    "ray": ("train.commands.ray_commands", "train on the machines of a Ray cluster"),
    "push": ("train.commands.push", "upload a model and its card to the Hugging Face Hub"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 2 if there is no such command."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    sys.path.append("")  # as for python -m, so that --optim my_module:MyOptimizer is found here; last, to hide nothing
    return call("plainloop", COMMANDS, arguments)


def call(program: str, commands: dict[str, tuple[str, str]], arguments: list[str]) -> int:
    """Call the command that the first argument names with the others; its exit code, or 2 if there is no such one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(program, commands))
        return 0
    name, *rest = arguments
    if name not in commands:
        print(f"error: {name}: no such command; the commands are: {', '.join(commands)}", file=sys.stderr)
        return 2
    module, _ = commands[name]
    return importlib.import_module(module).main(rest)


def _usage(program: str, commands: dict[str, tuple[str, str]]) -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in commands.items()]
    return "\n".join([f"usage: {program} COMMAND [...]", "", *lines, "", f"{program} COMMAND --help lists its flags"])
