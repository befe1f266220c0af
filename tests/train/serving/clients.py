"""A server in a thread or as a process, and requests to it on plain sockets."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.running import ROOT
from train.serving.listener import bind
from train.serving.reading import Limits
from train.serving.server import serve
from train.system.signals import Signals

START = "import sys; from train.commands.plainloop import main; sys.exit(main())"


def picture(seed=0, size=(60, 50), kind="JPEG", **options) -> bytes:
    """The bytes of an image file; another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(file, kind, **options)
    return file.getvalue()


@contextlib.contextmanager
def served(predictor, limits=None, batch_size=8, host="127.0.0.1", signals=None):
    """The port of a server in a thread of this process."""
    listener, signals = bind(host, 0), signals or Signals()
    port = listener.getsockname()[1]
    arguments = (predictor, "a run", listener, batch_size, limits or Limits(), signals)
    thread = threading.Thread(target=serve, args=arguments)
    thread.start()
    try:
        wait_until(lambda: answers(port))
        yield port
    finally:
        signals.note(signal.SIGTERM)
        thread.join(60)
        assert not thread.is_alive()


def answers(port):
    with contextlib.suppress(OSError):
        return get(port, "/healthz")[0] == 200
    return False


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@contextlib.contextmanager
def process(run, folder: Path, *flags):
    """(process, port) of `plainloop serve`, ready. What it prints lies in folder/out and folder/err."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        command = [sys.executable, "-c", START, "serve", str(run), "--port", "0", *map(str, flags)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started = subprocess.Popen(command, stdout=out, stderr=err, env=environment, stdin=subprocess.DEVNULL)
    ready = re.compile(r"serving .* at http://127\.0\.0\.1:(\d+)")
    try:
        wait_until(lambda: started.poll() is not None or ready.search((folder / "out").read_text()))
        assert started.poll() is None, (folder / "err").read_text()
        yield started, int(ready.search((folder / "out").read_text())[1])
    finally:
        started.kill()
        started.wait()


def get(port, path):
    """(status, text)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def post(port, body, path="/predict", method="POST", **headers):
    """(status, JSON)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def form(data: bytes, field="image", filename: str | None = "x.jpg", times=1):
    """(body, content type) of a form."""
    name = f'name="{field}"' + (f'; filename="{filename}"' if filename else "")
    part = f"--cut\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + data + b"\r\n"
    return part * times + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def head(length: int | None, *lines: str, path="/predict") -> bytes:
    """The header of a request."""
    lengths = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lengths, *lines, "", ""]).encode()


def chunked(data: bytes, size=65536) -> bytes:
    """In HTTP's chunks."""
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def status(connection: socket.socket) -> int | None:
    """Of the next answer; None if the connection ended without one."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in received and (more := connection.recv(65536)):
            received += more
    found = re.match(rb"HTTP/1\.1 (\d+)", received)
    return int(found[1]) if found else None


def figure(port, name) -> float:
    """A line of /metrics; 0 if it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", get(port, "/metrics")[1], re.M)
    return float(found[1]) if found else 0.0
