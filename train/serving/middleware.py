"""Around every request: errors in one shape, headers, figures, and an end of the connection that loses no answer."""

import asyncio
import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.addresses import without_secrets
from train.serving.metrics import Metrics
from train.system.streams import printable

GONE = 499  # nginx's number for a client that went away; never sent, only counted
LINGER_SECONDS = 5.0
NOSNIFF = (b"x-content-type-options", b"nosniff")
CLOSE = (b"connection", b"close")


class JSON(Response):
    """Also names with lone surrogates, which file systems have and UTF-8 has not: as escapes."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """ValueError for NaN, which JSON lacks."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def error_answer(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """The one shape of all errors."""
    return JSON({"error": " ".join(line.split())}, status, headers)


class Middleware:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Callable[[], bool]) -> None:
        """`draining` tells whether connections should end with their next answer."""
        self.app, self.metrics, self.draining = app, metrics, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, body = time.perf_counter(), Body(scope, receive)
        status, seconds = 0, None

        async def answer(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - began
                closing = [CLOSE] if self.draining() or not body.ended else []
                await send(message | {"headers": [*message["headers"], NOSNIFF, *closing]})
            elif message.get("more_body") or body.ended:
                await send(message)
            else:
                # To close while bytes arrive would reset the connection, and the client might never see the answer.
                await send(message | {"more_body": True})
                await body.discard()
                await send({"type": "http.response.body", "body": b""})

        try:
            await self.app(scope, body.receive, answer)
        except ClientDisconnect:
            status = status or GONE
        except asyncio.CancelledError:  # the time to drain is over
            if not status:
                await error_answer(503, "the server stops")(scope, receive, answer)
            raise
        except Exception:
            print(printable(without_secrets(traceback.format_exc())), file=sys.stderr)
            if status:
                raise  # halfway through an answer, only the end of the connection tells
            await error_answer(500, "the server failed; its log says why")(scope, receive, answer)
        finally:
            self.metrics.answered(scope["path"], status or GONE, seconds or time.perf_counter() - began)


class Body:
    """The body of one request, and whether it has ended."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        """Nothing has been read yet."""
        headers = dict(scope["headers"])
        self._receive = receive
        self.ended = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers

    async def receive(self) -> Message:
        """ASGI's receive."""
        message = await self._receive()
        self.ended = self.ended or not message.get("more_body", False)  # a disconnect ends it, too
        return message

    async def discard(self) -> None:
        """Read and drop the rest, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.ended:
                    await self.receive()
