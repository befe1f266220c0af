"""A local Ray, and `plainloop ray train` on it as real processes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.harness import wait_for
from tests.running import ROOT

PLAINLOOP = (sys.executable, "-c", "import sys; from train.commands.plainloop import main; sys.exit(main())")


@dataclass
class Cluster:
    """A Ray of three processors; all of its processes inherit a mark in their environment, by which they are found."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need short names

    address: str | None = None

    def environment(self):
        # Asks the workers ten times as often as by default, which a report of metrics waits for.
        quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_AUTH_MODE": "disabled"}
        own = {"PLAINLOOP_TEST_RAY": self.mark, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        return os.environ | quick | own

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=3"]
        command += [f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        log = Path(self.folder, "start.log")
        with log.open("w") as output:
            self.process = subprocess.Popen(command, env=self.environment(), stdout=output, stderr=output)
        wait_for(lambda: "Ray runtime started" in log.read_text())

    def train(self, *flags, log=None):
        """Start `plainloop ray train` with these flags on two workers: of this cluster, or of one of its own."""
        words = [*PLAINLOOP, "ray", "train", "--num_workers", "2", *map(str, flags)]
        words += ["--address", self.address] if self.address else []
        output = log.open("a") if log else subprocess.PIPE
        return subprocess.Popen(
            words, env=self.environment(), stdout=output, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )

    def attempts(self):
        """How often a group of workers was started, by all commands together."""
        logs = Path(self.folder).rglob("ray-train-sys-controller-*.log")
        return sum(log.read_text().count("Attempting to start training worker group") for log in logs)

    def workers(self):
        """Process ids of the workers that train."""
        return [process for process in self.processes() if "RayTrainWorker" in _read(process, "cmdline")]

    def processes(self):
        """Every living process with the mark, the commands started by `train` among them."""
        found = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        return [process for process in found if self.mark in _read(process, "environ")]

    def stop(self):
        """Kill every process of it, which takes less time than Ray does to end them."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_for(lambda: not self.processes())
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(process, name):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace")
    return ""
