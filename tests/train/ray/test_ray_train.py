"""`plainloop ray train` beside torchrun: the same numbers, also after kills; errors once and in one line."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.groups import start_group
from tests.reliability.harness import finish, outcome, wait_for
from tests.running import ROOT, records, same_tensors, weights
from tests.train.ray.cluster import Cluster

SHORT = (
    *("--preset", "debug", "--max_train_samples", 44, "--max_eval_samples", 23, "--logging_steps", 1),
    *("--eval_steps", 10, "--save_steps", 10, "--per_device_train_batch_size", 4, "--max_steps"),
)
KILLS = int(os.environ.get("PLAINLOOP_RAY_KILLS", "3"))


def losses(folder):
    return [line[name] for line in records(folder) for name in ("loss", "eval_loss") if name in line]


# -- without a cluster -------------------------------------------------------------------------------------


def test_help_names_the_commands_and_imports_neither_ray_nor_torch():
    listed = "import sys; from train.commands.plainloop import main; main(sys.argv[1:])"
    checked = f"{listed}; assert not {{'ray', 'torch'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", checked, "ray", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "plainloop ray COMMAND" in done.stdout and "train  " in done.stdout, done.stderr


def test_training_imports_nothing_of_ray(tmp_path):
    code = "import sys; from train.main import main; code = main(sys.argv[1:])"
    code += "; assert 'ray' not in sys.modules; exit(code)"
    flags = ("--preset", "debug", "--max_steps", "1", "--eval_steps", "1", "--output_dir", str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--learning_rat", "1"), "--learning_rat: no such flag"),
        (("--num_workers", "0"), "--num_workers 0"),
        (("--max_failures", "x"), "--max_failures"),
        (("--optim", "adamw", "--optim_args", "momentun=1"), "momentun"),
        (("--seeds", "1,2"), "one run"),
        (("--resume_from_checkpoint", "nothing/checkpoint-1"), "nothing/checkpoint-1"),
        (("--fsdp",), "--num_workers"),
        (("--output_dir", str(ROOT / "tests")), "is not empty"),
    ],
)
def test_what_can_be_seen_at_once_starts_no_cluster(flags, said, tmp_path):
    code = "import sys; from train.commands.plainloop import main; code = main(sys.argv[1:])"
    code += "; assert not {'ray', 'torch'} & sys.modules.keys(); exit(code)"
    words = ("ray", "train", "--max_failures", "3", "--output_dir", str(tmp_path / "run"), "--preset", "debug", *flags)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -- with one ----------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("how", [("--precision", "fp64"), (), ("--precision", "fp64", "--fsdp")], ids=str)
def test_two_workers_train_as_two_processes_of_torchrun(how, cluster, tmp_path):
    ray, torchrun, log = tmp_path / "ray", tmp_path / "torchrun", tmp_path / "log"
    assert finish(start_group((*SHORT, 20, *how, "--output_dir", torchrun))) == 0
    assert cluster.train(*SHORT, 20, *how, "--output_dir", ray, log=log).wait(120) == 0, log.read_text()
    if "--fsdp" in how:
        assert losses(ray) == pytest.approx(losses(torchrun), rel=1e-6) and len(losses(ray)) == 22
    else:
        assert records(ray) == records(torchrun)
        assert same_tensors(weights(ray), weights(torchrun))
    names = [sorted(path.name for path in folder.iterdir()) for folder in (ray, torchrun)]
    assert names[0] == names[1] and sorted(path.name for path in tmp_path.iterdir()) == ["log", "ray", "torchrun"]
    assert json.loads((ray / "run.json").read_text())["processes"] == 2
    assert not cluster.workers()


@pytest.fixture(scope="module")
def bad_image(tmp_path_factory):
    """A folder of images, one of which is none."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("bad")
    for split in ("train", "validation"):
        for name, colour in (("a", "red"), ("b", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), colour).save(folder / split / name / f"{number}.png")
    (folder / "train" / "b" / "2.png").write_bytes(b"no image")
    return folder


@pytest.mark.ray
def test_an_image_that_one_worker_cannot_read_ends_the_run_once(cluster, bad_image, tmp_path):
    before = cluster.attempts()
    flags = ("--max_failures", 3, "--dataset", bad_image, "--image_cache", "none", "--output_dir", tmp_path / "run")
    run = cluster.train(*SHORT, 20, *flags)
    assert "2.png" in the_error(run)
    assert cluster.attempts() - before == 1 and not cluster.workers()


@pytest.mark.ray
def test_a_cluster_of_its_own_ends_with_the_run(tmp_path):
    own = Cluster()
    flags = ("--max_failures", 3, "--dataset", "/no/such/folder", "--output_dir", tmp_path / "run")
    assert "/no/such/folder" in the_error(own.train(*SHORT, 20, *flags))
    assert not own.processes()
    Path(own.folder).rmdir()


def the_error(run):
    """The one line that says what is wrong with the input of a run."""
    text = run.communicate(timeout=120)[0]
    ours = [line for line in text.splitlines() if "(PlacementGroupCleaner " not in line]  # lost between two clusters
    lines = [line for line in ours if line.startswith("error: ")]
    assert run.returncode == 2 and len(lines) == 1 and "Traceback" not in "".join(ours), text
    return lines[0]


@pytest.mark.ray
@pytest.mark.reliability
def test_killed_workers_and_then_a_killed_driver_end_in_the_same_bits(cluster, tmp_path):
    rng, log, out, before = random.Random(20261128), tmp_path / "log", tmp_path / "run", cluster.attempts()
    flags = (*SHORT, 20 * KILLS + 20, "--output_dir")
    command = (*flags, out, "--resume_from_checkpoint", "auto", "--max_failures", KILLS)
    run = cluster.train(*command, log=log)
    for kill in range(KILLS + 1):
        wait_for(lambda step=20 * kill + 10: run.poll() is not None or (out / f"checkpoint-{step}").exists(), 90)
        assert run.poll() is None, log.read_text()
        os.kill(rng.choice(cluster.workers()) if kill < KILLS else run.pid, signal.SIGKILL)
        wait_for(lambda: len(cluster.workers()) < 2)
    run.wait()
    wait_for(lambda: not cluster.workers())  # which end with their driver
    assert cluster.train(*command, log=log).wait(120) == 0, log.read_text()
    assert cluster.attempts() - before == KILLS + 2
    assert finish(start_group((*flags, tmp_path / "unbroken"))) == 0
    assert outcome(out) == outcome(tmp_path / "unbroken")


@pytest.mark.ray
@pytest.mark.reliability
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_driver_ends_all(number, cluster, tmp_path):
    run = cluster.train(*SHORT, 4000, "--output_dir", tmp_path / "run")
    wait_for((tmp_path / "run" / "checkpoint-10").exists, 90)
    run.send_signal(number)
    text = run.communicate(timeout=60)[0]
    assert run.returncode == 1 and "\nerror: stopped by a signal; continue" in text, text
    wait_for(lambda: not cluster.workers())
