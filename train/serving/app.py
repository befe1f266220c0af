"""The HTTP interface to a model, as an ASGI app that any server can run."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Annotated, Any

import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from data import DataError
from data.cores import usable_cores
from data.reading.decode import TooLargeError, read_header
from train.inference.predictor import Predictor, ranked
from train.serving.metrics import Metrics
from train.serving.middleware import JSON, Middleware, error_answer
from train.serving.page import page_answer
from train.serving.reading import FIELD, Limits, Load

Classify = Callable[[torch.Tensor], Awaitable[torch.Tensor]]
DECODERS = 8  # threads at most, each of which may fill a gigabyte; one event loop feeds no more
SCANS = 100  # of a JPEG; encoders write about ten. Each passes over all pixels and can take as little as 65 bytes


class Prediction(BaseModel):
    """What a model says of one image."""

    label: str = Field(description="The most probable class.")
    probabilities: dict[str, float] = Field(description="Of each class, the most probable first.")


class Failure(BaseModel):
    """Every answer but 200."""

    error: str = Field(description="One line: what is wrong.")


WHY = {
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    422: "Not an image, or a damaged one; or a wrong parameter.",
    503: "Too many requests at a time; try again after the seconds of Retry-After.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text} for status, text in WHY.items()
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: BINARY["schema"]}}}
BODY = {"required": True, "content": {"image/*": BINARY, "multipart/form-data": FORM}}


def build_app(
    predictor: Predictor, classify: Classify, limits: Limits | None = None, metrics: Metrics | None = None
) -> FastAPI:
    """The app. It knows nothing of the server that runs it, nor of how `classify` makes batches.

    Set `app.state.draining` before the end: each connection then closes with its next answer.

    Args:
        predictor: decodes, and names the classes.
        classify: uint8 [3, height, width] -> probabilities [classes].
        limits: what requests may ask for.
        metrics: where to count; default: its own.
    """
    limits, metrics = limits or Limits(), metrics or Metrics()
    app = FastAPI(title="plainloop serve", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.state.draining = False
    app.add_middleware(Middleware, metrics=metrics, draining=lambda: app.state.draining)
    app.add_exception_handler(AnyHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_predict(app, predictor, classify, Load(limits), metrics)
    app.add_api_route("/", page_answer, include_in_schema=False)

    @app.get("/healthz", responses={503: {"model": Failure, "description": "It is about to stop."}})
    async def healthz() -> dict[str, str]:
        if app.state.draining:
            raise HTTPException(503, "the server stops")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def figures() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_predict(app: FastAPI, predictor: Predictor, classify: Classify, load: Load, metrics: Metrics) -> None:
    threads = min(usable_cores(), DECODERS)
    pool = ThreadPoolExecutor(threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
    free = asyncio.Semaphore(threads)  # what waits here can still be dropped
    metrics.in_flight.set_function(lambda: load.requests)
    metrics.bytes.set_function(lambda: load.bytes)

    async def pixels_of(request: Request) -> torch.Tensor:
        async with load.image(request) as data, free:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(pool, open_image, predictor, data, load.limits.max_pixels)
            except TooLargeError as error:
                raise HTTPException(413, str(error)) from error
            except DataError as error:
                raise HTTPException(422, str(error)) from error

    @app.post("/predict", responses={200: {"model": Prediction}, **ERRORS}, openapi_extra={"requestBody": BODY})
    async def predict(
        request: Request, top: Annotated[int | None, Query(ge=1, description="Name only so many classes.")] = None
    ) -> Response:
        """Classify the image in the body, of any content type, or in the field `image` of a form."""
        with load.request():
            row = await classify(await pixels_of(request))
        return JSON(prediction(row, predictor.label_names, top))


def open_image(predictor: Predictor, data: bytes, max_pixels: int) -> torch.Tensor:
    """Decode what a stranger sent: uint8 [3, height, width].

    Raises:
        TooLargeError: more pixels than `max_pixels`, by its header.
        DataError: it cannot be decoded, or only at a cost that no picture needs.
    """
    if header := read_header(data):
        if header.width * header.height > max_pixels:
            raise TooLargeError(f"{FIELD}: {header.width} x {header.height} is more than {max_pixels} pixels")
        if header.format == "JPEG" and data.count(b"\xff\xda") > SCANS:
            raise DataError(f"{FIELD}: cannot be decoded: a JPEG of more than {SCANS} scans")
    return predictor.pixels(data, FIELD)


def prediction(row: torch.Tensor, label_names: list[str], top: int | None = None) -> dict[str, Any]:
    """The answer for one image: probabilities [classes] -> label, and classes with the most probable first."""
    ranking = ranked(row, label_names, top)
    return {"label": ranking[0][0], "probabilities": dict(ranking)}


async def _http_error(_: Request, error: AnyHTTPException) -> Response:
    line = error.detail
    if line == HTTPStatus(error.status_code).phrase:  # the framework's own
        line += "; POST an image to /predict"
    return error_answer(error.status_code, line, error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    return error_answer(422, "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors()))
