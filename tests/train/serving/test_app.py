"""The interface, over real connections to a server in a thread."""

import asyncio
import json
import socket
import struct
import time
import zlib
from dataclasses import replace

import pytest
import torch

from tests.train.serving.clients import (
    chunked,
    connect,
    figure,
    form,
    get,
    head,
    picture,
    post,
    served,
    status,
    wait_until,
)
from train.serving.app import SCANS, build_app
from train.serving.reading import Limits


def png(width, height):
    """A PNG that claims so many pixels and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((header, 13), (b"IDAT", 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk, size in chunks
    )


def many_scans():
    data = picture(0, progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * (SCANS + 1) + data[-2:]


@pytest.fixture(scope="module")
def port(predictor):
    with served(predictor) as port:
        yield port


def test_bytes_of_any_type_and_forms_get_the_answer_of_the_predictor(port, predictor):
    data = picture(1)
    label, probabilities = predictor(data)
    body, kind = form(data)
    for found in (
        post(port, data),
        post(port, data, Content_Type="image/jpeg"),
        post(port, data, Content_Type="application/x-www-form-urlencoded"),  # curl --data-binary
        post(port, body, Content_Type=kind),
        post(port, chunked(body, 7), Content_Type=kind, Transfer_Encoding="chunked"),
    ):
        assert found == (200, {"label": label, "probabilities": probabilities})
    order = list(found[1]["probabilities"].values())
    assert order == sorted(order, reverse=True) and next(iter(found[1]["probabilities"])) == label
    assert (
        list(post(port, data, "/predict?top=2")[1]["probabilities"].items())
        == list(found[1]["probabilities"].items())[:2]
    )


REFUSED = {
    "words": (b"words", {}, 422, "image: cannot be decoded: not a JPEG"),
    "cut": (picture(0)[:-200], {}, 422, "image: cannot be decoded: "),
    "nothing": (b"", {}, 422, "there are no bytes"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, 422, "not a JPEG"),
    "scans": (many_scans(), {}, 422, "more than 100 scans"),
    "pixels": (png(7000, 7000), {}, 413, "7000 x 7000 is more than 40000000 pixels"),
    "bomb": (png(12000, 12000), {}, 413, "000 pixels"),
    "large bomb": (png(2**31 - 1, 2**31 - 1), {}, 413, "exceeds limit"),
    "bytes": (bytes(20_000_001), {}, 413, "larger than 20000000 bytes"),
    "unannounced": (chunked(bytes(21_000_000)), {"Transfer_Encoding": "chunked"}, 413, "larger than 20000000"),
    "field": (form(picture(0), "photo")[0], {"Content_Type": form(b"")[1]}, 422, "no file named image"),
    "text": (form(b"x", filename=None)[0], {"Content_Type": form(b"")[1]}, 422, "no file named image"),
    "two": (form(picture(0), times=2)[0], {"Content_Type": form(b"")[1]}, 422, "Too many files"),
    "boundary": (form(b"x")[0], {"Content_Type": "multipart/form-data"}, 422, "form cannot be read: Missing boundary"),
    "no form": (b"words", {"Content_Type": form(b"")[1]}, 422, "form cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_classified_gets_its_status_and_one_line(port, kind):
    body, headers, expected, line = REFUSED[kind]
    code, answer = post(port, body, **headers)
    assert code == expected and list(answer) == ["error"] and line in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "expected", "line"),
    [
        ("POST", "/predict?top=0", 422, "top: Input should be greater than or equal to 1"),
        ("POST", "/predict?top=x", 422, "top: Input should be a valid integer"),
        ("GET", "/predict", 405, "Method Not Allowed"),
        ("POST", "/nothing", 404, "Not Found"),
        ("GET", "/docs", 404, "Not Found"),
    ],
)
def test_errors_of_the_framework_have_the_same_shape(port, method, path, expected, line):
    code, answer = post(port, picture(0), path, method)
    assert code == expected and list(answer) == ["error"] and line in answer["error"]


def test_health_interface_and_page_are_there(port):
    assert get(port, "/healthz") == (200, '{"status":"ok"}')
    document = json.loads(get(port, "/openapi.json")[1])
    operation = document["paths"]["/predict"]["post"]
    assert operation["requestBody"]["content"].keys() == {"image/*", "multipart/form-data"}
    assert operation["responses"].keys() == {"200", "408", "413", "422", "503"}
    code, page = get(port, "/")
    assert code == 200 and "://" not in page  # nothing comes from elsewhere


def test_requests_batches_and_seconds_are_counted(port):
    names = (
        'plainloop_requests_total{path="/predict",status="200"}',
        'plainloop_requests_total{path="other",status="404"}',
        'plainloop_request_seconds_count{path="/predict"}',
        "plainloop_batch_size_sum",
    )
    before = [figure(port, name) for name in names]
    assert post(port, picture(0))[0] == 200 and post(port, b"", "/nothing")[0] == 404
    assert [figure(port, name) for name in names] == [value + 1 for value in before]
    assert figure(port, "plainloop_in_flight") == figure(port, "plainloop_image_bytes") == 0


def test_a_slow_body_gets_408_and_one_that_ends_early_is_counted_as_gone(predictor):
    with served(predictor, Limits(body_seconds=0.3)) as port:
        with connect(port) as slow:
            slow.sendall(head(1000) + b"x")
            assert status(slow) == 408
        gone = 'plainloop_requests_total{path="/predict",status="499"}'
        with connect(port) as early:
            early.sendall(head(1000) + b"x")
            early.shutdown(socket.SHUT_WR)
            assert status(early) is None
        wait_until(lambda: figure(port, gone) == 1)
        assert post(port, picture(0))[0] == 200 and figure(port, "plainloop_in_flight") == 0


def test_more_requests_or_bytes_than_the_limits_get_503_and_leave_room_when_they_end(predictor):
    data = picture(0)
    with served(predictor, Limits(requests=3)) as port:
        open_ones = [connect(port) for _ in range(3)]
        for one in open_ones:
            one.sendall(head(len(data)) + data[:-1])
        wait_until(lambda: figure(port, "plainloop_in_flight") == 3)
        with connect(port) as more:
            more.sendall(head(len(data)) + data)
            answer = more.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer and b"busy: 3 requests" in answer
        for one in open_ones:
            one.sendall(data[-1:])
        assert [status(one) for one in open_ones] == [200] * 3
        assert post(port, data)[0] == 200
    with served(predictor, Limits(max_bytes=len(data))) as port:
        open_ones = [connect(port) for _ in range(9)]
        for one in open_ones[:8]:
            one.sendall(head(len(data)) + data[:-1])
        wait_until(lambda: figure(port, "plainloop_image_bytes") == 8 * (len(data) - 1))
        open_ones[8].sendall(head(len(data)) + data[:-1])
        assert status(open_ones[8]) == 503
        for one in open_ones:
            one.close()
        wait_until(lambda: figure(port, "plainloop_image_bytes") == 0)
        assert post(port, data)[0] == 200


def test_a_refused_sender_sees_the_answer_and_an_endless_one_is_cut_off(predictor, monkeypatch):
    monkeypatch.setattr("train.serving.middleware.LINGER_SECONDS", 0.5)
    with served(predictor, Limits(max_bytes=1000)) as port, connect(port) as endless:
        endless.sendall(head(None, "Transfer-Encoding: chunked"))
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + 20:
                endless.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
        assert status(endless) == 413


def test_names_of_classes_may_hold_anything(predictor):
    names = ["<script>alert(1)</script>", "\udcff\n\x1b[31m\u202e", "a" * 10_000]
    with served(replace(predictor, label_names=names)) as port:
        code, answer = post(port, picture(0))
    assert code == 200 and set(answer["probabilities"]) == set(names) and answer["label"] in names


def called(app, data, path="/predict"):
    """(status, JSON) of an ASGI app, without a server."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", str(len(data)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    scope |= {"http_version": "1.1", "root_path": "", "scheme": "http", "server": ("x", 80)}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_the_app_needs_no_server_and_takes_any_way_to_classify(predictor):
    async def classify(pixels):
        return predictor.probabilities(pixels[None])[0]

    label, probabilities = predictor(picture(2))
    one, other = build_app(predictor, classify), build_app(predictor, classify)  # each with its own figures
    for app in (one, other):
        assert called(app, picture(2)) == (200, {"label": label, "probabilities": probabilities})


def test_an_unexpected_error_gets_a_line_without_its_details_which_go_to_the_log(predictor, capsys):
    async def classify(_):
        raise RuntimeError("secret\x1b[31m")

    assert called(build_app(predictor, classify), picture(2)) == (
        500,
        {"error": "the server failed; its log says why"},
    )
    said = capsys.readouterr().err
    assert "RuntimeError: secret\\x1b[31m" in said

    async def nothing(_):
        return torch.tensor([float("nan")] * 3)  # for which JSON has no word

    assert called(build_app(predictor, nothing), picture(2))[0] == 500
