"""Requests a second and their durations: `plainloop serve` against a bare server with one model call per request.

    python scripts/measure/serve.py runs/leaves [--seconds 20] [--clients 1 8 64] [--image photo.jpg]

Both serve at the same time, and are asked in turn. The clients are one process of their own, on plain sockets; each
sends its next request when it has its answer. The bare server is FastAPI on uvicorn, whose endpoint calls the same
`Predictor` in FastAPI's threads.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
URL = re.compile(r"http://127\.0\.0\.1:(\d+)")


def photo() -> bytes:
    """A JPEG of 500 x 500 pixels, about as large as a photo of that size."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 500), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def bare(run: str) -> None:
    """Serve until killed."""
    import uvicorn
    from fastapi import Body, FastAPI

    from train.config.schema import RunConfig
    from train.inference.predictor import load_predictor
    from train.precision import choose_compute
    from train.serving.listener import address_of, bind

    predictor = load_predictor(run, choose_compute(RunConfig()))
    app = FastAPI()

    @app.post("/predict")
    def predict(data: bytes = Body(media_type="image/jpeg")) -> dict:
        label, probabilities = predictor(data)
        return {"label": label, "probabilities": probabilities}

    listener = bind("127.0.0.1", 0)
    listener.listen(2048)
    print("bare at", address_of(listener), flush=True)
    config = uvicorn.Config(app, http="h11", loop="asyncio", log_level="critical", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def ask(port: int, clients: int, seconds: float, image: Path) -> None:
    """Print, as JSON, the duration of each request in seconds."""
    data = image.read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    took: list[float] = []

    async def client(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < until:
            writer.write(head.encode() + data)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise SystemExit(f"answered {answer!r}")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))
            took.append(time.perf_counter() - began)
        writer.close()

    async def all_clients() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(until) for _ in range(clients)))

    asyncio.run(all_clients())
    print(json.dumps(took))


def started(*command: object) -> tuple[subprocess.Popen, int]:
    """A server's process and port, when it is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    for line in process.stdout:
        if found := URL.search(line):
            return process, int(found[1])
    raise SystemExit(f"{command[-1]}: no server")


def measured(port: int, clients: int, seconds: float, image: Path) -> str:
    """Requests a second, and percentiles in milliseconds, as cells of a table."""
    command = [sys.executable, __file__, "ask", port, clients, seconds, image]
    took = json.loads(
        subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    )
    cuts = statistics.quantiles(took, n=100)
    return f"{len(took) / seconds:.1f} | {1000 * cuts[49]:.0f} | {1000 * cuts[98]:.0f}"


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--image", type=Path)
    asked = parser.parse_args()
    plainloop = "import sys; from train.commands.plainloop import main; sys.exit(main())"
    servers = {
        "plainloop serve": started("-c", plainloop, "serve", Path(asked.run).resolve(), "--port", 0),
        "bare uvicorn": started(__file__, "bare", Path(asked.run).resolve()),
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        for process, _ in servers.values():
            ends.callback(process.wait)
            ends.callback(process.terminate)
        image = asked.image or Path(folder) / "photo.jpg"
        if not asked.image:
            image.write_bytes(photo())
        print("| clients | server | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
        for clients in asked.clients:
            for name, (_, port) in servers.items():
                print(f"| {clients} | {name} | {measured(port, clients, asked.seconds, image)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare(sys.argv[2])
    elif sys.argv[1:2] == ["ask"]:
        ask(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
