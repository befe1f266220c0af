import pytest
import torch

from tests.running import run_here


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A trained run of three classes."""
    folder = tmp_path_factory.mktemp("serving") / "run"
    assert run_here("--preset", "debug", "--max_steps", 2, "--output_dir", folder) == 0
    return folder


@pytest.fixture(scope="session")
def predictor(run):
    from train.inference.predictor import load_predictor
    from train.precision import Precision

    return load_predictor(str(run), Precision("fp32", torch.device("cpu")))
