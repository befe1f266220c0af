"""Requests that no honest client sends: each gets a 4xx or a closed connection, and the server lives on."""

import contextlib
import random
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.train.serving.clients import chunked, connect, figure, form, head, picture, post, process, status
from tests.train.serving.test_app import many_scans, png

MEGABYTE = 1_000_000
ANSWERS = {400, 408, 413, 422, 503}
FORM = f"Content-Type: {form(b'')[1]}"
OTHERS = (
    b"<svg/>",
    b"<html><script>1</script>",
    b"PK\x03\x04" + bytes(100),
    b"%PDF-1.7",
    b"\x7fELF",
    b"GIF89a",
    b"RIFF",
)


def whole(body, *lines):
    return head(len(body), *lines) + body


def cut(choice):
    kind = choice.choice(("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"))
    data = picture(choice.randrange(99), kind=kind)
    return data[: choice.randrange(1, len(data) // 2)]


def flipped(choice):
    data = bytearray(cut(choice) + bytes(10))
    for _ in range(20):
        data[choice.randrange(len(data))] = choice.randrange(256)
    return bytes(data)


def bad_form(choice):
    data = picture(0)
    body, kind = form(data)
    lines = [f"Content-Disposition: form-data; name={i}\r\n\r\n" for i in range(1000)]
    return choice.choice(
        (
            whole(body[:-40], f"Content-Type: {kind}"),
            whole(body, "Content-Type: multipart/form-data; boundary="),
            whole(body, f"Content-Type: multipart/form-data; boundary={'x' * 300}"),
            whole(body, "Content-Type: multipart/form-data; boundary=other"),
            whole(form(data, "im\x00age")[0], FORM),
            whole(form(data, times=500)[0], FORM),
            whole(form(data, filename=None)[0], FORM),
            whole("".join(f"--cut\r\n{line}x\r\n" for line in lines).encode() + b"--cut--\r\n", FORM),
            whole(b"--cut\r\n" + b"A: b\r\n" * 10_000, FORM),
            whole(b"\r\n--" * 100_000, FORM),
        )
    )


def bad_http(choice):
    data = picture(0)
    return choice.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # of TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"hello\r\n\r\n",
            b"POST /predict HTTP/1.1\r\n\r\n" + data,  # no Host
            head(None, "Content-Length: -1") + data,
            head(None, "Content-Length: ten") + data,
            head(None, f"Content-Length: {'9' * 5000}") + data,
            head(len(data), "Content-Length: 5") + data,
            head(None, "Transfer-Encoding: chunked") + b"zz\r\n" + data,
            head(None, "Transfer-Encoding: chunked") + b"fffffffffffffffffffff\r\n" + data,
            head(None, "Transfer-Encoding: gzip") + data,
            head(len(data), "X: " + "y" * 100_000) + data,
            head(len(data), *(f"X{i}: y" for i in range(5000))) + data,
            head(5) + b"\xff\xd8" + data,  # longer than announced: the rest is no request
            head(len(data), path="/predict?top=" + "9" * 30) + b"x" * len(data),
            head(None, "Upgrade: websocket", "Connection: Upgrade") + data,
        )
    )


KINDS = {
    "noise": lambda choice: whole(choice.randbytes(choice.randrange(1, 50_000))),
    "other": lambda choice: whole(choice.choice(OTHERS), "Content-Type: image/jpeg"),
    "cut": lambda choice: whole(cut(choice)),
    "flipped": lambda choice: whole(flipped(choice)),
    "bomb": lambda choice: whole(png(choice.randrange(7000, 2**31), choice.randrange(7000, 2**31))),
    "scans": lambda choice: whole(many_scans()),
    "form": bad_form,
    "http": bad_http,
    "large": lambda choice: whole(bytes(60 * MEGABYTE)),
    "large and unannounced": lambda choice: head(None, "Transfer-Encoding: chunked") + chunked(bytes(60 * MEGABYTE)),
    "large form": lambda choice: whole(form(bytes(60 * MEGABYTE))[0], FORM),
    "short": lambda choice: head(100_000) + picture(0),  # and then nothing more is sent
    "gone": lambda choice: head(100_000) + picture(0),
}


def ask(port, kind, seed):
    """The status that one hostile request got; None for a closed connection."""
    raw = KINDS[kind](random.Random(f"{kind} {seed}"))
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
            if kind == "gone":
                return None
            if kind == "short":
                connection.shutdown(socket.SHUT_WR)
        return status(connection)


def peak_memory(pid):
    """In bytes, since the process started."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def assault(port, requests):
    """Statuses by kind, of so many requests, 16 at a time, among which honest ones are answered."""
    kinds = list(KINDS)
    large = [kind for kind in kinds if "large" in kind]
    todo = [(kinds[i % len(kinds)], i) for i in range(requests)]
    todo = [(kind if kind not in large or i < 26 else "cut", i) for kind, i in todo]  # 60 MB each takes its time
    random.Random(0).shuffle(todo)
    found = {}
    with ThreadPoolExecutor(16) as pool:
        for (kind, _), code in zip(todo, pool.map(lambda one: ask(port, *one), todo), strict=True):
            found.setdefault(kind, []).append(code)
            if sum(map(len, found.values())) % 20 == 0:
                assert post(port, picture(0))[0] == 200
    return found


def check(found):
    for kind in set(KINDS) - {"short", "gone", "http", "form", "flipped"}:
        assert set(found[kind]) <= ANSWERS, (kind, found[kind])
    assert set(found["large"] + found["bomb"] + found["large form"]) == {413}
    assert set(found["form"]) <= ANSWERS
    assert set(found["short"]) == set(found["gone"]) == {None}
    assert set(found["http"]) <= ANSWERS | {None, 404, 200}  # 200 for what is honest but for what follows it
    assert set(found["flipped"]) <= ANSWERS | {200}


@pytest.mark.slow
@pytest.mark.parametrize("requests", [65, 1000])
def test_hostile_requests_get_4xx_memory_is_bounded_and_the_server_lives_on(run, tmp_path, requests):
    with process(run, tmp_path) as (started, port):
        expected = post(port, picture(3))
        before = peak_memory(started.pid) if sys.platform == "linux" else 0
        slow = [connect(port) for _ in range(10)]
        for one in slow:
            one.sendall(head(MEGABYTE) + b"x")
        began = time.monotonic()
        check(assault(port, requests))
        if sys.platform == "linux":
            assert peak_memory(started.pid) - before < 400 * MEGABYTE
        if requests > 100:
            assert [status(one) for one in slow] == [408] * 10 and time.monotonic() - began > 15
        for one in slow:
            one.close()
        assert post(port, picture(3)) == expected and started.poll() is None
        assert figure(port, "plainloop_image_bytes") == 0
    assert (tmp_path / "err").read_text() == ""
