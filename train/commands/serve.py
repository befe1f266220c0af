"""`plainloop serve`: a trained model behind HTTP, with a page to try it on."""

import argparse
from collections.abc import Sequence

from train.commands.shared import add_model_flags, check_batch_size, command_parser, load_model_of
from train.errors import ConfigError
from train.system.exit import ended
from train.system.signals import Signals

DESCRIPTION = """POST the bytes of an image, or a form with a file `image`, to /predict; the answer is JSON. Images that
arrive at the same time are classified together."""


def main(arguments: list[str]) -> int:
    """Serve, and return the exit code: 0 if every request that had arrived before a signal was answered."""
    return ended(arguments, lambda signals: run(arguments, signals))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; ConfigError for one that is wrong."""
    parser = command_parser("serve", "RUN [--host 127.0.0.1] [--port 8000] [--flag value ...]", DESCRIPTION)
    add_model_flags(parser)
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--host", default="127.0.0.1", metavar="TEXT", help="Default: 127.0.0.1, this machine only.")
    parser.add_argument("--port", default=8000, **number, help="0 takes a free one. Default: 8000.")
    parser.add_argument("--batch_size", default=32, **number, help="Images classified together, at most. Default: 32.")
    parser.add_argument("--max_bytes", default=20_000_000, **number, help="Of one request. Default: 20000000.")
    parser.add_argument("--max_pixels", default=40_000_000, **number, help="Of one image. Default: 40000000.")
    values = parser.parse_args(list(arguments))
    if not 0 <= values.port <= 65535:
        raise ConfigError(f"--port {values.port}: is not between 0 and 65535")
    check_batch_size(values.batch_size)
    for name in ("max_bytes", "max_pixels"):
        if getattr(values, name) < 1:
            raise ConfigError(f"--{name} {getattr(values, name)}: must be at least 1")
    return values


def run(arguments: Sequence[str], signals: Signals) -> None:
    """Load the model and answer requests until a signal."""
    values = parse(arguments)
    # Imported only now: these take seconds, and a mistyped flag should not.
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        needed = "fastapi, uvicorn, python-multipart and prometheus-client"
        raise ConfigError(f'plainloop serve needs {needed}: pip install -e ".[serve]"') from error
    from train.serving.listener import bind
    from train.serving.reading import Limits
    from train.serving.server import serve

    with bind(values.host, values.port) as listener:
        predictor = load_model_of(values)
        limits = Limits(values.max_bytes, values.max_pixels)
        serve(predictor, values.run, listener, values.batch_size, limits, signals)
