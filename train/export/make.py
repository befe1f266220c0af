"""Make a file in one of the formats, say what was found of it, and refuse it if it is not good enough."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from data.cores import usable_cores
from train.export import formats
from train.export.check import (
    Agreement,
    View,
    compare,
    milliseconds,
    refuse_lost_accuracy,
    refuse_other_answers,
)
from train.export.tolerances import OF_A_PROBABILITY
from train.inference.predictor import Predictor
from train.system.console import say

Images = Callable[[], Iterator[View]]  # the same images at each call
TIMED = 8  # images that the speed is measured on


def make_onnx(predictor: Predictor, path: Path, about: dict[str, str], images: Images, tolerance: float) -> None:
    """Write and judge an ONNX file.

    Args:
        predictor: in float32 on the CPU.
        path: of the file.
        about: its metadata.
        images: to judge by.
        tolerance: as for `refuse_other_answers`.

    Raises:
        RunError: it cannot be made, or is refused; the file may be there.
    """
    _timed("ONNX", lambda: formats.write_onnx(predictor.model, path, about))
    refuse_other_answers(_judged(predictor, formats.run_onnx(path), images, tolerance), tolerance)


def make_torch_export(
    predictor: Predictor, path: Path, about: dict[str, str], images: Images, tolerance: float
) -> None:
    """Write and judge a torch.export program; as `make_onnx`."""
    _timed("torch.export", lambda: formats.write_torch_export(predictor.model, path, about))
    refuse_other_answers(_judged(predictor, formats.run_torch_export(path), images, tolerance), tolerance)


def make_int8(predictor: Predictor, path: Path, about: dict[str, str], images: Images, tolerance: float) -> None:
    """Write and judge an ONNX file with 8-bit weights; as `make_onnx`, but with `refuse_lost_accuracy`.

    It is made of a float32 file that has passed, so that nothing but the quantisation can be wrong with it.
    """
    exact = path.with_name(f"{path.name}-exact")
    try:
        make_onnx(predictor, exact, about, images, OF_A_PROBABILITY)
        _timed("int8", lambda: formats.write_int8(exact, path))
        before, after = formats.run_onnx(exact), formats.run_onnx(path)
        size, less = exact.stat().st_size / 1e6, path.stat().st_size / 1e6
    finally:
        exact.unlink(missing_ok=True)
    refuse_lost_accuracy(_judged(predictor, after, images, 0.0), tolerance)
    pictures = [view.pixels.permute(1, 2, 0).contiguous().numpy() for view in islice(images(), TIMED)]
    one, other, times = milliseconds(before, after, pictures)
    say(
        f"float32 -> int8: {size:.1f} -> {less:.1f} MB, {one:.1f} -> {other:.1f} ms an image in onnxruntime on"
        f" {usable_cores()} cores, {times:.2f} times as fast"
    )


MAKERS = {"onnx": make_onnx, "torch_export": make_torch_export, "int8": make_int8}


def _timed(what: str, make: Callable[[], None]) -> None:
    started = time.perf_counter()
    make()
    say(f"{what}: made in {time.perf_counter() - started:.1f} s")


def _judged(predictor: Predictor, run: formats.Run, images: Images, tolerance: float) -> Agreement:
    found = compare(predictor, run, images(), tolerance)
    say(found.line())
    return found
