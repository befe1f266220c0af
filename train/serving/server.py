"""The process that serves: a socket, uvicorn, and an end that leaves no request unanswered."""

import asyncio
import contextlib
import logging
import select
import socket
import warnings
from collections.abc import Iterator

import torch
import uvicorn
from fastapi import FastAPI

from train.errors import RunError
from train.inference.predictor import Predictor
from train.serving.app import build_app
from train.serving.batching import Batcher
from train.serving.listener import BACKLOG, address_of, is_loopback, listen, stop_accepting
from train.serving.metrics import Metrics
from train.serving.reading import Limits
from train.system.console import say
from train.system.signals import Interrupted, Signals

LATE_SECONDS = 0.25  # for what is on its way: connections, and then requests on them
DRAIN_SECONDS = 25  # longer than a body may take, and shorter than the 30 s after which Kubernetes kills


def serve(
    predictor: Predictor, name: str, listener: socket.socket, batch_size: int, limits: Limits, signals: Signals
) -> None:
    """Answer requests until a signal, then those that have arrived. A second signal ends the process at once.

    Raises:
        ConfigError: another process has taken the port meanwhile.
        RunError: some could not be answered in time.
    """
    _keep_log_short()
    metrics = Metrics()
    batcher = Batcher(predictor.probabilities, batch_size, metrics.batch_size.observe)
    app = build_app(predictor, batcher.classify, limits, metrics)
    server = Server(app, signals)

    async def main() -> None:
        batches = asyncio.create_task(batcher.run())
        size = predictor.model.preprocessing
        blank = torch.zeros(3, size.height, size.width, dtype=torch.uint8)
        # What the first and the largest batch take, they take before anybody waits for them.
        await asyncio.gather(*(batcher.classify(blank) for _ in range(1 + batch_size)))
        listen(listener)
        _say_ready(listener, name)
        await server.serve(sockets=[listener])
        batches.cancel()

    with signals.deferred():
        asyncio.run(main())
    by = Interrupted(signals.number)
    if server.unanswered:
        raise RunError(f"stopped by {by}; requests not answered within {DRAIN_SECONDS} s: {server.unanswered}")
    say(f"stopped by {by}; what had arrived was answered")


def _keep_log_short() -> None:
    """A broken image or form is its sender's matter, who gets a line; libraries would fill the log with it."""
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    for library in ("PIL", "python_multipart"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _say_ready(listener: socket.socket, name: str) -> None:
    if not is_loopback(listener):
        host = listener.getsockname()[0]
        say(f"warning: {host} can be reached from other machines, and nobody has to log in; put a proxy before it")
    pages = "(page: /, API: /openapi.json, metrics: /metrics)"
    say(f"serving {name} at {address_of(listener)}  {pages}; Ctrl-C or SIGTERM: answers what has arrived, then stops")


class Server(uvicorn.Server):
    """uvicorn's, with this project's signals, and patience for requests that are on their way when it stops."""

    def __init__(self, app: FastAPI, signals: Signals) -> None:
        """It stops when a signal was received."""
        quiet = {"log_config": None, "log_level": "critical", "access_log": False}
        config = uvicorn.Config(
            app,
            **quiet,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        super().__init__(config)
        self.unanswered = 0
        self._app, self._signals = app, signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to `Signals`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        return await super().on_tick(counter) or self._signals.received()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept and answer what has arrived; what arrives later finds the port closed.

        uvicorn alone would reset connections that it has not accepted yet, or whose request it has not read yet.
        """
        self._app.state.draining = True
        listeners = sockets or []
        for listener in listeners:
            stop_accepting(listener)
        await asyncio.sleep(LATE_SECONDS)  # connections that were being made
        while select.select(listeners, [], [], 0)[0]:
            await asyncio.sleep(0)  # the loop accepts them
        for server in self.servers:
            server.close()
        await asyncio.sleep(LATE_SECONDS)  # requests that are on their way
        await super().shutdown(sockets)
        self.unanswered = len(self.server_state.tasks)
