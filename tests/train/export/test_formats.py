import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from data.reading.decode import decode
from tests.checkpoints import small_checkpoint
from tests.data.reading.test_decode import MODES
from tests.train.export.test_graph import SIZES, noise
from train.errors import ConfigError, RunError
from train.export import formats
from train.inference.predictor import load_predictor, resize_for
from train.precision import Precision

EVIL = ["<script>\x1b[31m", "na\u00efve\n", "x" * 10_000]
ALONE = """
import json, sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
(probabilities,) = session.run(None, {"image": np.load(sys.argv[2])})
print(json.dumps([names, probabilities.tolist(), sorted({"torch", "transformers", "train"} & sys.modules.keys())]))
"""


slow = pytest.mark.slow
FAMILIES = [
    pytest.param("vit", marks=slow),
    pytest.param("deit", marks=slow),
    pytest.param("dinov2", marks=slow),
]  # the last two are cropped


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """A predictor, and its model in all formats."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp(request.param)
    predictor = load_predictor(
        str(small_checkpoint(request.param, folder, EVIL)), Precision("fp32", torch.device("cpu"))
    )
    about = formats.description(predictor.label_names, "run 0, update 1")
    formats.write_onnx(predictor.model, folder / "model.onnx", about)
    formats.write_int8(folder / "model.onnx", folder / "model.int8.onnx")
    formats.write_torch_export(predictor.model, folder / "model.pt2", about)
    return predictor, folder


def pictures():
    return [decode(data, name) for name, (data, _) in MODES.items()] + [noise(*size) for size in SIZES]


@pytest.mark.parametrize(("file", "most"), [("model.onnx", 2e-5), ("model.pt2", 2e-5), ("model.int8.onnx", 0.2)])
def test_files_agree_with_the_predictor_on_odd_sizes_and_modes(made, file, most):
    predictor, folder = made
    run = (formats.run_torch_export if file.endswith(".pt2") else formats.run_onnx)(folder / file)
    resize = resize_for(predictor.model)
    for image in pictures():
        expected = predictor.probabilities(resize(image)[None])[0].numpy()
        found = run(image.permute(1, 2, 0).contiguous().numpy())
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert np.abs(found - expected).max() <= most, image.shape


def test_numpy_and_onnxruntime_alone_reproduce_a_prediction(made, tmp_path):
    predictor, folder = made
    image = noise(77, 130)
    np.save(tmp_path / "image.npy", image.permute(1, 2, 0).numpy())
    found = subprocess.run(
        [sys.executable, "-c", ALONE, folder / "model.onnx", tmp_path / "image.npy"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    names, probabilities, imported = json.loads(found.stdout)
    expected = predictor.probabilities(resize_for(predictor.model)(image)[None])[0]
    assert names == predictor.label_names == EVIL and imported == []
    assert np.abs(np.array(probabilities) - expected.numpy()).max() < 2e-5


def test_every_file_says_what_it_is(made):
    import onnx

    _, folder = made
    extra = dict.fromkeys(formats.description([], ""), "")
    torch.export.load(folder / "model.pt2", extra_files=extra)
    for file in ("model.onnx", "model.int8.onnx"):
        proto = onnx.load(folder / file)
        assert extra.items() <= {entry.key: entry.value for entry in proto.metadata_props}.items()
        assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["image", "probabilities"]
        sides = proto.graph.input[0].type.tensor_type.shape.dim
        assert [side.dim_param or side.dim_value for side in sides] == ["height", "width", 3]
    assert json.loads(extra["class_names"]) == EVIL and extra["model"] == "run 0, update 1"


def test_int8_is_smaller(made):
    _, folder = made
    assert (folder / "model.int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


def test_what_libraries_raise_becomes_one_line(tmp_path):
    (tmp_path / "broken").write_bytes(b"no\nmodel")
    for run in (formats.run_onnx, formats.run_torch_export):
        with pytest.raises(RunError) as caught:
            run(tmp_path / "broken")
        assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


def test_weights_that_no_onnx_file_holds_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ONNX_BYTES", 1000)
    predictor = load_predictor(str(small_checkpoint("vit", tmp_path)), Precision("fp32", torch.device("cpu")))
    with pytest.raises(ConfigError, match="--format torch_export"):
        formats.write_onnx(predictor.model, tmp_path / "model.onnx", {})
    assert not (tmp_path / "model.onnx").exists()
