"""Every command line that the README and docs/ show, run as written, and the tutorial.

In a folder that has what they name: images, a finished run, a photo, a module with an optimizer. The Hub is a stand-in
on loopback, with small repositories under the names that the lines use.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from data.reading.leaves import LABEL_NAMES, png, table
from models.loading import load_model
from tests.hub import standing_in
from tests.running import ROOT, run_process
from train.config.presets import BEANS_DATASET, BEANS_MODEL

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a comment on its line says that this machine does not have, so that it is listed here and not run.
ELSEWHERE = ("on a cluster", "with a cloud", "with an account")
LISTED = {
    # Run by .ci/run in a fresh environment, exactly as they stand there.
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && python -m train.main",
    '. .venv/bin/activate && pip install -e ".[test]" && python -m pytest',
}
SERVERS = ("plainloop serve", "tensorboard")  # run until they are stopped


def commands():
    """(page, command) of every line in a block of bash; a backslash at the end joins two."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield page.relative_to(ROOT).as_posix(), line


def runs_here(line):
    command, _, comment = line.partition("#")
    needs_a_server = command.startswith("curl ")  # the test below starts one
    return command.strip() not in LISTED and not needs_a_server and not any(place in comment for place in ELSEWHERE)


HERE = [(page, line) for page, line in commands() if runs_here(line)]


def test_the_lines_that_are_not_run_are_these():
    others = {line.partition("#")[0].strip() for _, line in commands() if not runs_here(line)}
    assert others >= LISTED
    assert sorted(line for line in others - LISTED if not line.startswith("curl ")) == [
        "plainloop push my-run my-leaves --private",
        "plainloop ray train --num_workers 2 --max_failures 3 --preset leaves --output_dir my-run",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that a reader is in: with the names that the lines use."""
    folder = tmp_path_factory.mktemp("reader")
    images = folder / "path" / "to" / "images"
    for split, count in (("train", 300), ("validation", 60), ("test", 60)):
        for index in range(count):
            inside = images / split / LABEL_NAMES[index % 3]
            inside.mkdir(parents=True, exist_ok=True)
            (inside / f"{index}.png").write_bytes(png(len(split), "validation", index))
    shutil.copy(images / "test" / "healthy" / "2.png", folder / "photo.jpg")
    (folder / "my.yaml").write_text("preset: debug\ndataset: builtin:leaves\n")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_module.py").write_text("from torch.optim import AdamW as MyOptimizer\n")
    for name in ("my-run", "my-other-run", "runs/beans-..."):
        # Long enough to know something: of a model that guesses, no temperature is the best.
        recipe = ("--preset", "leaves", "--num_train_epochs", 12, "--eval_steps", "epoch", "--seed", len(name))
        done = run_process(*recipe, "--dataset", images, "--output_dir", folder / name)
        assert done.returncode == 0, done.stderr
    shim = folder / "bin" / "plainloop"
    shim.parent.mkdir()
    shim.write_text(f"#!{sys.executable}\nimport sys\nfrom train.commands.plainloop import main\nsys.exit(main())\n")
    shim.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def hub(place, tmp_path_factory):
    """The Hub on loopback, with the data set and the model of the notebook, both small."""
    model, data = tmp_path_factory.mktemp("vit"), tmp_path_factory.mktemp("beans") / "data"
    load_model("builtin:tiny", ["LABEL_0", "LABEL_1"]).model.save_pretrained(model)
    data.mkdir()
    for split in ("train", "validation"):
        table(split, 42, 30).to_parquet(data / f"{split}-00000-of-00001.parquet")
    with standing_in() as server:
        server.add("models", BEANS_MODEL, model)
        server.add("datasets", BEANS_DATASET, data.parent)
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), HERE, ids=[f"{page}: {line[:60]}" for page, line in HERE])
def test_a_line_runs_as_it_is_shown(page, line, place, hub, tmp_path_factory):
    here = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place / "hub-cache"),
        "HF_HUB_CACHE": str(place / "hub-cache" / "hub"),
        "HF_TOKEN": "hf_of_the_stand_in",
    }
    if "--output_dir my-run" in line and "resume" not in line:  # a new run, which a reader has not got yet
        line = line.replace("my-run", "my-new-run")
    started = subprocess.Popen(
        ["bash", "-c", line],
        cwd=place,
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if line.startswith(SERVERS):
        time.sleep(15)
        assert started.poll() is None, started.stdout.read()
        os.killpg(started.pid, signal.SIGTERM)
    out, _ = started.communicate(timeout=300)
    assert line.startswith(SERVERS) or started.returncode == 0, f"{page}: {line}\n{out}"


@pytest.mark.slow
def test_curl_lines_are_answered(place):
    """The lines with curl, while the server that the page starts before them runs."""
    lines = [line for _, line in commands() if line.startswith("curl ")]
    assert lines
    program = [str(place / "bin" / "plainloop"), "serve", "my-run"]
    server = subprocess.Popen(program, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen("http://127.0.0.1:8000/healthz", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        for line in lines:
            done = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0 and done.stdout.strip(), f"{line}: {done.stderr}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.slow
def test_the_tutorial_runs_as_a_script_and_is_a_notebook(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tutorial.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower().replace("calibration error", ""), done.stderr
    for left in (
        "inspected/inspect.html",
        "runs/adamw/report.html",
        "runs/sign/predictions.csv",
        "runs/adamw/model.onnx",
    ):
        assert (tmp_path / left).is_file(), left
    text = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8")
    cells = re.findall(r"^# %%(.*)$", text, flags=re.MULTILINE)
    assert len(cells) > 12 and {cell.strip() for cell in cells} == {"", "[markdown]"}
