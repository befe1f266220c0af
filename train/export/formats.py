"""Write a `Graph` in each format, and run what was written as whoever deploys it does."""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.cores import usable_cores
from models.classifier import Classifier
from train.errors import ConfigError, RunError
from train.export.graph import Graph

Run = Callable[[np.ndarray], np.ndarray]  # uint8 [height, width, 3] -> float32 [classes]
INPUT, OUTPUT = "image", "probabilities"
ONNX_BYTES = 2**31 - 2**20  # a protobuf holds 2 GiB; the rest is for all but the weights
SIDES = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(("height", "width"))}
EXAMPLE = (301, 203)  # height and width with which the graph is traced; no size that it could be specialised to


def description(label_names: list[str], model: str) -> dict[str, str]:
    """What every file says of itself: `metadata_props` of ONNX, `extra_files` of torch.export.

    Args:
        label_names: by the index of the class.
        model: which model this is.
    """
    return {
        "class_names": json.dumps(label_names),
        "model": model,
        "input": f"{INPUT}: uint8 [height, width, 3], RGB, upright, of any size",
        "output": f"{OUTPUT}: float32 [classes], in the order of class_names",
        "made_by": "plainloop export",
    }


def write_torch_export(classifier: Classifier, path: Path, about: dict[str, str]) -> None:
    """Write a torch.export program (.pt2).

    Raises:
        RunError: the exporter failed.
    """
    with _explained("torch.export"):
        program = _program(classifier)
        with path.open("wb") as file:  # by a path, not every name would do
            torch.export.save(program, file, extra_files=dict(about))


def write_onnx(classifier: Classifier, path: Path, about: dict[str, str]) -> None:
    """Write one ONNX file, weights included.

    Raises:
        ConfigError: the weights are more than a file of that format holds.
        RunError: the exporter failed.
    """
    size = 4 * sum(parameter.numel() for parameter in classifier.parameters())
    if size > ONNX_BYTES:
        raise ConfigError(f"{size / 1e9:.1f} GB of weights: one ONNX file holds 2.1 GB; --format torch_export has room")
    with _explained("the ONNX exporter"):
        names = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": {"image": SIDES}}
        options = {"dynamo": True, "external_data": False, "verbose": False}
        made = torch.onnx.export(_program(classifier), **names, **options)
        proto = made.model_proto
        _describe(proto, about)
        path.write_bytes(proto.SerializeToString())


def write_int8(source: Path, path: Path) -> None:
    """Quantise the matrix products with weights of an ONNX file, by onnxruntime's own quantiser.

    Dynamic: the range of each activation is taken from the image at hand. Static quantisation, calibrated on 64
    training images, was neither faster nor closer to the model. The resize, attention's own products and the first
    convolution stay in float32.

    Raises:
        RunError: the quantiser failed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _explained("onnxruntime's quantiser"):
        graph = onnx.load(source).graph
        weights = {tensor.name for tensor in graph.initializer}
        products = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
        # 7 bits: with 8, processors without VNNI overflow where two products are added, and silently answer otherwise.
        options = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
        quantize_dynamic(source, path, nodes_to_quantize=products, **options)


def run_onnx(path: Path) -> Run:
    """What computes an ONNX file, on all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = usable_cores(), 3  # errors only
    with _explained("onnxruntime"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run([OUTPUT], {INPUT: image})[0]


def run_torch_export(path: Path) -> Run:
    """What computes a torch.export program."""
    with _explained("torch.export.load"):
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(image: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(image)).numpy()

    return run


def _program(classifier: Classifier) -> torch.export.ExportedProgram:
    example = torch.zeros(*EXAMPLE, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(Graph(classifier).eval(), (example,), dynamic_shapes={"image": SIDES})


def _describe(proto: Any, about: dict[str, str]) -> None:
    del proto.metadata_props[:]
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Without what libraries print and warn of on the way; whatever they raise becomes one line."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ConfigError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"{what} failed: {reason}") from error
    finally:
        logging.disable(logging.NOTSET)
