"""From a request to the bytes of one image, within limits that bound the memory of all requests together."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FIELD = "image"  # of a form
BUFFERED = 8  # times max_bytes may be held for all requests together


@dataclass(frozen=True)
class Limits:
    """What one request, and all at a time, may ask for."""

    max_bytes: int = 20_000_000  # of a request's body
    max_pixels: int = 40_000_000
    requests: int = 256  # being read or waiting
    body_seconds: float = 20.0  # for sending the body


class Load:
    """What requests hold at the moment."""

    def __init__(self, limits: Limits) -> None:
        """Nothing yet."""
        self.limits = limits
        self.requests = self.bytes = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request while the block runs; HTTPException 503 if there are too many."""
        if self.requests >= self.limits.requests:
            raise _busy(f"{self.requests} requests are being answered")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @asynccontextmanager
    async def image(self, request: Request) -> AsyncIterator[bytes]:
        """The bytes of the image in a body or form; they count until the block ends.

        Raises:
            HTTPException: 408, 413, 422 or 503, with a line that says why.
            ClientDisconnect: nobody waits for the answer any more.
        """
        taken = 0

        async def body() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for chunk in request.stream():
                taken += len(chunk)
                self.bytes += len(chunk)
                self._check(taken)
                yield chunk

        try:
            self._check_declared(request)
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    data = await (_of_form(request, body()) if _is_form(request) else _joined(body()))
            except TimeoutError as error:
                raise HTTPException(408, f"the image did not arrive within {self.limits.body_seconds:g} s") from error
            if not data:
                raise HTTPException(422, "there are no bytes; send those of an image")
            yield data
        finally:
            self.bytes -= taken

    def _check_declared(self, request: Request) -> None:
        """Refuse at once what says that it is too large; what lies is refused while it is read."""
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.limits.max_bytes:
            raise self._too_large()

    def _check(self, taken: int) -> None:
        if taken > self.limits.max_bytes:
            raise self._too_large()
        if self.bytes > BUFFERED * self.limits.max_bytes:
            raise _busy(f"{self.bytes} bytes of images are being read")

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self.limits.max_bytes} bytes")


def _busy(why: str) -> HTTPException:
    return HTTPException(503, f"busy: {why}; try again", {"Retry-After": "1"})


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def _joined(body: AsyncGenerator[bytes, None]) -> bytes:
    data = bytearray()  # a list of a million tiny chunks would take far more
    async for chunk in body:
        data += chunk
    return bytes(data)


async def _of_form(request: Request, body: AsyncGenerator[bytes, None]) -> bytes:
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=8)
    parser.spool_max_size = 2**62  # keep it in memory, which is bounded here, and off the disk
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise HTTPException(422, f"the form cannot be read: {getattr(error, 'message', error)}") from error
    file = form.get(FIELD)
    if not isinstance(file, UploadFile):
        raise HTTPException(422, f"the form has no file named {FIELD}")
    with file.file:
        return await file.read()
