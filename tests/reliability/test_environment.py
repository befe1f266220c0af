"""Odd environments, as real processes: the right exit code, one line or none, no traceback, nothing lost."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.reliability.harness import finish, start
from tests.running import ROOT, run_here

RUN = "python -m train.main --preset debug --max_steps 2 --output_dir run"
# Command lines in bash; what they end with; and a part of their error line. Each trains in a folder of its own.
TRAINS = {
    "closed output": (f"{RUN} >&-", 0, None),
    "closed errors": (f"{RUN} 2>&-", 0, None),
    "closed input": (f"{RUN} <&-", 0, None),
    "all closed": (f"{RUN} <&- >&- 2>&-", 0, None),
    "a reader that leaves": (f"{RUN} | head -1; exit ${{PIPESTATUS[0]}}", 0, None),
    "a full disk behind the output": (f"{RUN} > /dev/full", 0, None),
    "ASCII only": (f"PYTHONIOENCODING=ascii {RUN.replace('run', 'Blätter')} && mv Blätter run", 0, None),
    "no home, no terminal": (f"env -u HOME -u HF_HOME -u TERM HF_HUB_CACHE=$PWD/hub {RUN}", 0, None),
    "threads that are no number": (f"OMP_NUM_THREADS=abc {RUN}", 0, None),
    "few open files": (f"ulimit -n 32; {RUN}", 0, None),
    "a screen without columns, an odd zone": (f"COLUMNS=0 LINES=-3 TZ=Mars/Phobos {RUN}", 0, None),
    "no place for temporary files": (f"TMPDIR=/nowhere umask 077; {RUN}", 0, None),
    "caches that cannot be written": (f"HF_HOME=/proc/nowhere {RUN}", 0, None),
    "the rank of no group": (f"RANK=3 LOCAL_RANK=0 {RUN}", 0, None),
}
REFUSED = {
    "not UTF-8": (f"{RUN}$'\\xff'", 2, "is not UTF-8"),
    "POSIX locale": (f"LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {RUN}-Blätter", 2, "is not UTF-8"),
    "no docstrings": (f"PYTHONOPTIMIZE=2 {RUN}", 2, "PYTHONOPTIMIZE=2"),
    "a size that is no number": (f"WORLD_SIZE=foo {RUN}", 2, "WORLD_SIZE='foo'"),
    "a rank that is no number": (f"LOCAL_RANK=x {RUN}", 2, "LOCAL_RANK='x'"),
    "a size of a group without ranks": (f"MASTER_ADDR=h MASTER_PORT=29555 WORLD_SIZE=2 {RUN}", 2, "RANK in the"),
    "a rank beyond the size": (f"MASTER_ADDR=h MASTER_PORT=29555 WORLD_SIZE=2 RANK=2 {RUN}", 2, "RANK=2 in the"),
    "a group of none": (f"MASTER_ADDR=h MASTER_PORT=29555 WORLD_SIZE=0 RANK=0 {RUN}", 2, "WORLD_SIZE=0"),
    "a port that is no number": (f"MASTER_ADDR=h MASTER_PORT=x WORLD_SIZE=2 RANK=0 {RUN}", 2, "MASTER_PORT in the"),
    "a port beyond all": (f"MASTER_ADDR=h MASTER_PORT=99999 WORLD_SIZE=2 RANK=0 {RUN}", 2, "MASTER_PORT=99999"),
    "no memory for the libraries": (f"ulimit -v 700000; OMP_NUM_THREADS=1 {RUN}", 1, "error: "),
    "a folder that cannot be written in": (
        f"{RUN.replace('--output_dir run', '--output_dir /proc/run')}",
        2,
        "/proc/run",
    ),
    "an image cache that cannot be written": (f"{RUN} --cache_dir /proc/x --image_cache disk", 2, "--image_cache disk"),
}


def shell(name: str, command: str, folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a command line."""
    here = folder / name.replace(" ", "-")
    here.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=here, env=environment, capture_output=True, timeout=200, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stderr.decode(errors="replace")


def test_every_condition_ends_as_it_should(tmp_path):
    conditions = TRAINS | REFUSED
    with ThreadPoolExecutor(2) as pool:  # each waits for the disk a while, importing
        jobs = {name: pool.submit(shell, name, command, tmp_path) for name, (command, _, _) in conditions.items()}
    wrong = []
    for name, (_, code, said) in conditions.items():
        found, errors = jobs[name].result()
        lines = [line for line in errors.splitlines() if "error: " in line]
        right = found == code and len(lines) == (said is not None) and (said is None or said in lines[0])
        right &= "Traceback" not in errors and "Exception ignored" not in errors
        right &= code != 0 or (tmp_path / name.replace(" ", "-") / "run" / "model.safetensors").is_file()
        wrong += [] if right else [f"{name}: exit code {found}, {errors[-500:]!r}"]
    assert not wrong, "\n".join(wrong)
    assert len(conditions) >= 25


def test_shared_memory_that_is_full_is_said_with_what_to_do(tmp_path):
    """In a mount namespace of its own, with 16 kB of /dev/shm."""
    small = "mount -t tmpfs -o size=16k tmpfs /dev/shm"
    if (made := subprocess.run(["unshare", "-m", "bash", "-c", small], capture_output=True, text=True)).returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")
    for workers, code in (("2", 1), ("auto", 0)):
        command = f"unshare -m bash -c '{small} && {RUN} --image_cache none --dataloader_num_workers {workers}'"
        found, errors = shell(workers, command, tmp_path)
        assert found == code and "Traceback" not in errors, errors
        lines = errors.splitlines()
        assert not lines if code == 0 else len(lines) == 1 and "/dev/shm" in lines[0] and "--shm-size" in lines[0]


class Limit:
    """Run in the child: so much more address space than now, and no more."""

    def __init__(self, more: int):
        self.more = more

    def __call__(self):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + self.more, used + self.more))


@pytest.mark.parametrize("batch", [4096, 100_000])
def test_memory_that_runs_out_is_one_line_and_costs_nothing(batch, tmp_path):
    size = ("--per_device_train_batch_size", batch, "--max_train_samples", 2700, "--dataset", "builtin:leaves")
    flags = ("--preset", "debug", "--model", "builtin:small", *size, "--max_steps", 2, "--output_dir", tmp_path / "run")
    log = tmp_path / "log"
    assert finish(start(flags, Limit(400 * 2**20), log), seconds=200) == 1, log.read_text()
    lines = [line for line in log.read_text().splitlines() if "error: " in line]
    assert len(lines) == 1 and "out of memory" in lines[0] and "Traceback" not in log.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_at_any_moment_of_the_start_ends_the_program_without_a_traceback(number, code, tmp_path):
    """From our first line on: before it, the interpreter starts, and knows no handlers but its own."""
    wrong = []
    for delay in (0, 0.02, 0.05, 0.1, 0.3, 0.8, 2.0):
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", *RUN.split()[1:-1], str(delay)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what it runs in the background with Ctrl-C ignored, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        errors = []
        for line in process.stderr:  # the package's own line comes once it has been imported
            errors.append(line)
            if line.split("|")[-1].strip() == "train":
                break
        rest = threading.Thread(target=lambda errors=errors, stream=process.stderr: errors.extend(stream))
        rest.start()
        time.sleep(delay)
        process.send_signal(number)
        found = process.wait(60)
        rest.join()
        said = [line for line in errors if not line.startswith("import time:")]
        if found != code or "Traceback" in "".join(said) or len(said) > 1:
            wrong.append(f"after {delay} s: exit code {found}, {said}")
    assert not wrong, "\n".join(wrong)


TRAINED = "preset: debug\nmax_steps: 1\nmax_train_samples: 6\nmax_eval_samples: 3\n"
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
FILES = {
    "a mark of the byte order": ("\ufeff" + TRAINED, 0),
    "words that YAML takes for others": (TRAINED + "torch_compile: off\nfsdp: no\n", 0),
    "line ends of Windows": (TRAINED.replace("\n", "\r\n"), 0),
    "duplicate keys": (TRAINED + "seed: 1\nseed: 2\n", 2),
    "a recursive alias": ("&a [*a]\n", 2),
    "an alias of itself": ("lr_scheduler_kwargs: &a {b: *a}\n", 2),
    "a bomb": (BOMB, 2),
    "a date": (TRAINED + "seed: 2026-01-01\n", 2),
    "5,000 digits": (TRAINED.replace("max_steps: 1", "max_steps: " + "9" * 5000), 2),
    "400 digits": (TRAINED.replace("max_steps: 1", "max_steps: " + "9" * 400), 2),
    "tabs": ("preset:\tdebug\n\tseed: 1\n", 2),
    "UTF-16": (TRAINED.encode("utf-16"), 2),
    "Latin-1": ("dataset: Bl\xe4tter\n".encode("latin-1"), 2),
    "nothing": ("", 2),
    "a comment": ("# nothing\n", 2),
    "a list at the top": ("- preset: debug\n", 2),
    "a word at the top": ("debug\n", 2),
    "a merge": ("<<: {seed: 1}\n", 2),
    "a tag": ("optim: !!python/name:os.system\n", 2),
    "a binary tag": ("optim: !!binary aGk=\n", 2),
    "two documents": (TRAINED + "---\n" + TRAINED, 2),
    "a zero byte": (b"preset: debug\x00\n", 2),
    "nested deeply": ("lr_scheduler_kwargs: " + "{a: " * 3000 + "\n", 2),
    "JSON cut short": ('{"preset": "debug"', 2),
}


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_of_flags_trains_or_is_one_line(name, tmp_path, capsys):
    content, code = FILES[name]
    (tmp_path / "flags.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run_here(tmp_path / "flags.yaml", "--output_dir", tmp_path / "run") == code
    error = capsys.readouterr().err
    assert error == "" if code == 0 else error.startswith("error: ") and error.count("\n") == 1 and len(error) < 2000
    assert (tmp_path / "run").exists() == (code == 0)
