"""`plainloop ray`: the commands that run on a Ray cluster. Nothing else of this project imports Ray."""

from train.commands.plainloop import call

COMMANDS = {"train": ("train.commands.ray_train", "fine-tune with Ray Train, which starts lost workers again")}


def main(arguments: list[str]) -> int:
    """Run one of them and return its exit code."""
    return call("plainloop ray", COMMANDS, arguments)
