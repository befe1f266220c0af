"""The command, as a real process."""

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.running import ROOT
from tests.train.serving.clients import (
    answers,
    connect,
    figure,
    get,
    head,
    picture,
    post,
    process,
    served,
    status,
    wait_until,
)
from train.commands.plainloop import main as plainloop
from train.commands.serve import main
from train.errors import RunError
from train.serving.listener import bind
from train.serving.reading import Limits
from train.serving.server import serve
from train.system.signals import Signals


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with process(run, folder, "--precision", "fp32", "--batch_size", 16) as (started, port):
        yield port
        assert started.poll() is None  # nothing that the tests did has ended it
        assert (folder / "err").read_text() == ""


def test_64_at_once_are_batched_get_what_the_predictor_says_and_a_bad_one_fails_alone(server, predictor):
    images = [picture(seed) for seed in range(64)]
    images[20] = b"no image"
    before = figure(server, "plainloop_batch_size_count"), figure(server, "plainloop_batch_size_sum")
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda data: post(server, data), images))
    calls = figure(server, "plainloop_batch_size_count") - before[0]
    assert figure(server, "plainloop_batch_size_sum") - before[1] == 63 and calls < 63
    assert [code for code, _ in found] == [422 if i == 20 else 200 for i in range(64)]
    for i, data in enumerate(images):
        if i != 20:
            label, probabilities = predictor(data)
            assert found[i][1]["label"] == label
            assert found[i][1]["probabilities"] == pytest.approx(probabilities, abs=1e-5)


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server, timeout=60)
    with contextlib.closing(connection):
        for body, expected in ((picture(0), 200), (b"no image", 422), (picture(1), 200)):
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            assert answer.status == expected and answer.read() and not answer.will_close


def asking(port, data, found, stop):
    """New connections until one is refused; each that was accepted must be answered."""
    while not stop.is_set():
        try:
            connection = connect(port)
        except ConnectionRefusedError:
            return
        with connection:
            try:
                connection.sendall(head(len(data)) + data)
            except ConnectionError:
                found.append(None)
                continue
            found.append(status(connection))


@pytest.mark.slow
def test_sigterm_under_load_answers_every_request_whose_connection_was_accepted(run, tmp_path):
    data, found, stop = picture(0, (400, 300)), [], threading.Event()
    with process(run, tmp_path) as (started, port):
        half, fresh, idle = connect(port), connect(port), connect(port)
        idle.sendall(head(len(data)) + data)
        assert status(idle) == 200
        half.sendall(head(len(data)) + data[:100])
        clients = [threading.Thread(target=asking, args=(port, data, found, stop)) for _ in range(16)]
        for client in clients:
            client.start()
        wait_until(lambda: len(found) > 50)
        started.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        fresh.sendall(head(len(data)) + data)  # connected before, asks after
        time.sleep(1.5)
        half.sendall(data[100:])  # was still sending
        assert (status(fresh), status(half)) == (200, 200)
        while idle.recv(4096):  # the rest of its answer; then the connection ends
            pass
        for client in clients:
            client.join(30)
        stop.set()
        assert started.wait(30) == 0
    assert set(found) == {200}
    assert (tmp_path / "out").read_text().endswith("stopped by SIGTERM; what had arrived was answered\n")
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.reliability
def test_a_second_signal_ends_the_process_at_once(run, tmp_path):
    with process(run, tmp_path) as (started, port), connect(port) as slow:
        slow.sendall(head(1000) + b"x")
        wait_until(lambda: figure(port, "plainloop_in_flight") == 1)
        started.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert started.poll() is None
        started.send_signal(signal.SIGINT)
        assert started.wait(5) == 130


@pytest.mark.slow
def test_health_says_that_the_server_stops_and_connections_end(predictor, monkeypatch):
    monkeypatch.setattr("train.serving.server.LATE_SECONDS", 1)
    signals = Signals()
    with served(predictor, signals=signals) as port:
        open_ones = [connect(port) for _ in range(2)]
        ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        open_ones[0].sendall(ask)
        assert status(open_ones[0]) == 200
        signals.note(signal.SIGTERM)
        time.sleep(0.5)
        open_ones[1].sendall(ask)
        answer = open_ones[1].makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer
        with pytest.raises(ConnectionRefusedError):
            connect(port)


@pytest.mark.slow
def test_what_cannot_be_answered_in_time_gets_503_and_the_command_fails(predictor, monkeypatch):
    monkeypatch.setattr("train.serving.server.LATE_SECONDS", 0.1)
    monkeypatch.setattr("train.serving.server.DRAIN_SECONDS", 1)
    listener, signals = bind("127.0.0.1", 0), Signals()
    port = listener.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, predictor, "a run", listener, 8, Limits(), signals)
        wait_until(lambda: answers(port))
        with connect(port) as slow:
            slow.sendall(head(1000) + b"x")
            wait_until(lambda: figure(port, "plainloop_in_flight") == 1)
            signals.note(signal.SIGTERM)
            answer = slow.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503") and answer.endswith(b'{"error": "the server stops"}')
        with pytest.raises(RunError, match="stopped by SIGTERM; requests not answered within 1 s: 1"):
            serving.result(30)


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "serving" not in said.out
    return said.err


def test_what_cannot_be_used_is_refused_in_one_line_before_a_model_is_loaded(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be used on 127.0.0.1: Address already in use" in refusal(
            capsys, tmp_path / "no run", "--port", port
        )
    assert "--port 70000: is not between" in refusal(capsys, "run", "--port", 70000)
    assert "--host 999.1.1.1: is no address" in refusal(capsys, "run", "--host", "999.1.1.1")
    assert "--batch_size 0: must be from 1 to 4096" in refusal(capsys, "run", "--batch_size", 0)
    assert "required: RUN" in refusal(capsys)
    assert "builtin:debug: has no trained weights" in refusal(capsys, "builtin:debug", "--port", 0)


def test_the_command_is_known_and_its_help_needs_no_heavy_library(capsys):
    with pytest.raises(SystemExit):
        plainloop(["serve", "--help"])
    assert "--max_bytes" in capsys.readouterr().out
    code = "import sys; from train.commands.serve import parse; parse(['run']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == "False\n"


def test_a_missing_library_is_one_line_that_says_how_to_get_it():
    code = "import sys; sys.modules['uvicorn'] = None; from train.commands.serve import main; sys.exit(main(['run']))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 2 and said.stderr.count("\n") == 1
    assert 'pip install -e ".[serve]"' in said.stderr


def test_a_host_that_others_can_reach_is_warned_of(predictor, capsys):
    with served(predictor, host="0.0.0.0") as port:
        assert get(port, "/healthz")[0] == 200
    assert re.search(r"warning: 0\.0\.0\.0 can be reached from other machines", capsys.readouterr().out)
