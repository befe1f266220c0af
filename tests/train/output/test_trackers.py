"""--report_to, with the real clients: MLflow on a folder, Weights & Biases offline."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch

from tests.running import ROOT, records, run_here
from tests.train.checkpoint.test_checkpoint import make_state
from train.checkpoint.folder import CheckpointFolder
from train.config.cli import parse
from train.config.record import read_log
from train.config.reporting import TRACKERS, check_installed
from train.config.schema import RunConfig
from train.errors import ConfigError
from train.output.run_output import RunOutput
from train.output.trackers import open_trackers
from train.system.lock import Lock

DEBUG = ("--preset", "debug", "--max_steps", 12, "--eval_steps", 6)
OF_TRACKERS = ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    for name in OF_TRACKERS:  # so that what the program sets is gone afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was stopped at update 6, lost its checkpoint's time since update 6, and was finished."""
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    out = tmp_path_factory.mktemp("trackers") / "run"
    flags = (*DEBUG, "--report_to", "wandb,mlflow", "--output_dir", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert run_here(*flags, "--stop_after", 9) == 0
        shutil.rmtree(out / "checkpoint-9")  # as a kill between two saves leaves it
        assert run_here("--output_dir", out, "--resume_from_checkpoint", "auto") == 0
    return out


def mlflow_runs(folder):
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("plainloop")
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.slow
def test_mlflow_has_one_run_with_every_update_once(resumed):
    client, runs = mlflow_runs(resumed)
    (run,) = runs
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/loss")}
    count = len(client.get_metric_history(run.info.run_id, "train/loss"))
    assert history == {line["step"]: line["loss"] for line in records(resumed) if "loss" in line}
    assert count == len(history) == 6
    evaluated = client.get_metric_history(run.info.run_id, "eval/f1/healthy")
    assert [metric.step for metric in evaluated] == [6, 12]
    assert run.data.params["learning_rate"] == "0.001" and run.data.params["dataset"] == "builtin:leaves"
    final = json.loads((resumed / "eval_results.json").read_text())["eval_accuracy"]
    assert run.data.metrics["final/accuracy"] == final
    pictures = client.list_artifacts(run.info.run_id, "validation")
    assert {item.path for item in pictures} == {"validation/confusion.png", "validation/predictions.png"}


def wandb_records(path):
    """The records of a .wandb file: a log in LevelDB's format, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + length
        parts += content[position - length : position]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb_offline_has_the_values_of_both_starts_under_one_id(resumed):
    starts = [list(wandb_records(path)) for path in sorted(resumed.glob("wandb/offline-run-*/*.wandb"))]
    run_id = json.loads((resumed / "run.json").read_text())["run_id"]
    ids = {record.run.run_id for start in starts for record in start if record.HasField("run")}
    assert len(starts) == 2 and ids == {run_id}
    losses = []
    for record in starts[1]:
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        losses += [(row["_step"], row["train/loss"])] if "train/loss" in row else []
    logged = [(line["step"], line["loss"]) for line in records(resumed) if line.get("loss") and line["step"] > 6]
    assert losses == logged
    config = {item.key: item.value_json for record in starts[0] for item in record.run.config.update}
    assert config["learning_rate"] == "0.001"


@pytest.mark.slow
def test_nothing_is_imported_or_written_unless_asked(tmp_path):
    code = (
        "import sys; from tests.running import run_here; assert run_here(*sys.argv[1:]) == 0;"
        "print([n for n in ('torch.utils.tensorboard', 'tensorboard', 'wandb', 'mlflow') if n in sys.modules])"
    )
    flags = ("--preset", "debug", "--max_steps", "2", "--report_to", "none", "--output_dir", str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "tensorboard --logdir" not in done.stdout
    assert not {"tensorboard", "wandb", "mlruns"} & {path.name for path in (tmp_path / "run").iterdir()}


def log_updates(output, state, steps):
    for step in steps:
        state.count_update(torch.tensor(float(step)), True)
        output.log_training(state, step / 2, state.take_logged_loss(), 1.0, 0.1)


def test_a_store_that_fails_in_the_middle_does_not_end_the_run(tmp_path, capsys):
    pytest.importorskip("mlflow")
    trackers = open_trackers(["tensorboard", "mlflow"], tmp_path, "abc", {"seed": 1}, 0)
    state = make_state()
    with RunOutput(CheckpointFolder(tmp_path, "abc", {}, keep=None), Lock(), 10, trackers=trackers) as output:
        log_updates(output, state, [1, 2])
        shutil.rmtree(tmp_path / "mlruns")
        (tmp_path / "mlruns").write_text("")
        log_updates(output, state, [3, 4])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and warnings[0].startswith("warning: mlflow is turned off for the rest of this run")
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_server_that_is_not_there_costs_a_warning(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert open_trackers(["mlflow"], tmp_path, "abc", {}, 0) == {}
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "warning: mlflow is turned off" in printed
    assert not (tmp_path / "mlruns").exists()


def test_class_names_of_others_reach_mlflow(tmp_path):
    pytest.importorskip("mlflow")
    tracker = open_trackers(["mlflow"], tmp_path, "abc", {"dataset": "https://u:hunter2@host/x"}, 0)["mlflow"]
    tracker.log(1, {"eval/loss": 1.0, "eval/f1/<b>|?*": 0.5})
    tracker.close()
    (run,) = mlflow_runs(tmp_path)[1]
    assert run.data.metrics == {"eval/loss": 1.0, "eval/f1/_b____": 0.5} and run.info.status == "KILLED"
    assert "hunter2" not in run.data.params["dataset"]


def test_names_of_trackers():
    assert RunConfig().trackers == ["tensorboard"] and RunConfig(report_to="none").trackers == []
    assert RunConfig(report_to="wandb, mlflow,wandb").trackers == ["wandb", "mlflow"]
    assert "tensorboard" in RunConfig(report_to="all").trackers
    for wrong in ("comet_ml", "none,wandb", "", ",", "all,x"):
        with pytest.raises(ConfigError, match="the trackers are tensorboard, wandb, mlflow"):
            RunConfig(report_to=wrong)
    for typed in (["tensorboard", "mlflow"], ["tensorboard,mlflow"], ["['tensorboard', 'mlflow']"]):
        assert parse(["--preset", "debug", "--report_to", *typed]).run.report_to == "tensorboard,mlflow"


def test_a_missing_package_is_an_error_at_once(monkeypatch):
    monkeypatch.setitem(TRACKERS, "no_such_package", '-e ".[x]"')
    with pytest.raises(ConfigError, match=r'--report_to no_such_package: needs the package: pip install -e ".\[x'):
        check_installed(["tensorboard", "no_such_package"])
