"""Whatever a model is used through, it says the same of the same images: here of all validation images of beans."""

import csv
import http.client
import json
import shutil

import onnxruntime
import pytest
import torch
from transformers import pipeline

from data.reading.decode import decode
from data.sources import load_splits
from tests.conftest import shared
from tests.running import run_here
from tests.train.serving.clients import process
from train.commands.plainloop import main as plainloop
from train.inference.predictor import load_predictor
from train.inference.temperature import divide_head
from train.precision import Precision

pytestmark = pytest.mark.slow
OWN, OTHERS = 1e-5, 5e-3  # largest difference of a probability: between this project's ways; of others' programs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The validation images as files, with their names in the order of the split."""
    split = load_splits(str(shared("beans"))).validation
    folder = tmp_path_factory.mktemp("images")
    for index in range(len(split)):
        (folder / f"{index:03}.jpg").write_bytes(split.read(index))
    return folder


@pytest.fixture(scope="module", params=[1.0, 1.7])
def run(request, tmp_path_factory):
    """A head on deit-tiny's features; once with a temperature."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = ("--dataset", shared("beans"), "--model", shared("deit-tiny"), "--freeze", "backbone")
    assert run_here(*flags, "--precision", "fp32", "--output_dir", folder) == 0
    if request.param != 1.0:
        divide_head(folder, request.param, {})
    return folder


def table(path):
    """path -> (label, probabilities)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["path"].split("/")[-1]: (line["label"], line["probabilities"]) for line in lines}


def assert_equal(found, wanted, tolerance):
    assert found.keys() == wanted.keys() and len(wanted) == 133
    assert [label for label, _ in found.values()] == [label for label, _ in wanted.values()]
    for name, (_, probabilities) in wanted.items():
        assert found[name][1] == pytest.approx(probabilities, abs=tolerance)


@pytest.fixture(scope="module")
def predicted(run, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "predicted.jsonl"
    assert plainloop(["predict", str(run), str(images), "--out", str(out), "--precision", "fp32"]) == 0
    return table(out)


def test_the_predictor_gives_the_same_bits_where_batches_are_cut_alike(run, images, predicted):
    predictor, paths = load_predictor(str(run), Precision("fp32", torch.device("cpu"))), sorted(images.iterdir())
    for first in range(0, len(paths), 32):
        some = paths[first : first + 32]
        rows = predictor.probabilities(torch.stack([predictor.pixels(path.read_bytes(), "") for path in some]))
        for path, row in zip(some, rows.tolist(), strict=True):
            assert [predicted[path.name][1][name] for name in predictor.label_names] == row


def test_evaluate(run, predicted, tmp_path):
    flags = ["--split", "validation", "--precision", "fp32", "--out", str(tmp_path / "out")]
    assert plainloop(["evaluate", str(run), *flags]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, (label, probabilities) in zip(rows, predicted.values(), strict=True):
        assert row["predicted"] == label
        assert float(row["probability"]) == pytest.approx(probabilities[label], abs=OWN)
        assert float(row["label_probability"]) == pytest.approx(probabilities[row["label"]], abs=OWN)


def test_serve(run, images, predicted, tmp_path):
    found = {}
    with process(run, tmp_path, "--precision", "fp32") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for path in sorted(images.iterdir()):
            connection.request("POST", "/predict", path.read_bytes())
            answer = json.loads(connection.getresponse().read())
            found[path.name] = (answer["label"], answer["probabilities"])
    assert_equal(found, predicted, OWN)


def test_the_exported_file_in_onnxruntime(run, images, predicted, tmp_path):
    out = tmp_path / "model.onnx"
    assert plainloop(["export", str(run), "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out)
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    found = {}
    for path in sorted(images.iterdir()):
        pixels = decode(path.read_bytes(), "").permute(1, 2, 0).numpy()
        (row,) = session.run(None, {"image": pixels})
        found[path.name] = (names[row.argmax()], dict(zip(names, row.tolist(), strict=True)))
    assert_equal(found, predicted, OTHERS)


def test_the_pipeline_of_transformers(run, images, predicted):
    classify = pipeline("image-classification", str(run), device="cpu")
    found = {}
    for path in sorted(images.iterdir()):
        answer = classify(str(path))
        found[path.name] = (answer[0]["label"], {row["label"]: row["score"] for row in answer})
    assert_equal(found, predicted, OTHERS)


def test_an_evaluation_alone(run, capsys):
    """`train --eval_only`, of the same folder."""
    capsys.readouterr()
    flags = ("--model", run, "--dataset", shared("beans"), "--eval_only", "--precision", "fp32")
    assert run_here(*flags) == 0
    out = capsys.readouterr().out
    alone = json.loads(out[out.index("{") :])
    assert plainloop(["evaluate", str(run), "--split", "validation", "--precision", "fp32", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)
    assert document["confusion"] == alone["eval_confusion"]


def test_a_pushed_folder_is_enough(run, images, predicted, tmp_path):
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        shutil.copy(run / name, tmp_path / name)
    out = tmp_path / "predicted.jsonl"
    assert plainloop(["predict", str(tmp_path), str(images), "--out", str(out), "--precision", "fp32"]) == 0
    assert table(out) == predicted
