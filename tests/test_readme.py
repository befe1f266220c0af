"""What the README shows, run as written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import ToDtype

from tests.running import ROOT, records, run_here, same_tensors, weights
from train.checkpoint.folder import list_checkpoints
from train.config.schema import RecipeConfig, RunConfig
from train.errors import ConfigError
from train.loop import fit
from train.setup.own import own_run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)[0].strip().split("\n\n")


class LightAndDark(torch.utils.data.Dataset):
    """Grey images of two brightnesses, with a little noise that depends on the generator."""

    def __init__(self, size, fingerprint=None):
        self.size = size
        if fingerprint:
            self.fingerprint = lambda: fingerprint

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        noise = torch.randint(0, 40, (3, 32, 32), dtype=torch.uint8)
        return noise + 180 * (index % 2), index % 2


def from_python(folder, monkeypatch, **changes):
    """Run the example in `folder`, with parts of its text replaced."""
    example = README.split("<!-- from-python -->")[1].split("```python\n")[1].split("```")[0]
    assert len(example.strip().splitlines()) <= 15
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    monkeypatch.chdir(folder)
    torch.manual_seed(1)  # the weights of the ResNet
    names = {"train_set": LightAndDark(36, "v1"), "validation_set": LightAndDark(8)}
    exec(example, names)
    return names


def test_the_python_example_trains_saves_and_keeps_the_best(tmp_path, monkeypatch):
    state = from_python(tmp_path, monkeypatch)["state"]
    out = tmp_path / "runs" / "mine"
    assert [step for step, _ in list_checkpoints(out)] == [10, 8, 4]
    assert [line["step"] for line in records(out) if "eval_loss" in line] == [4, 8, 10]
    assert (out / "best").resolve().name == f"checkpoint-{state.best.step}"
    assert same_tensors(weights(out / "checkpoint-10"), state.raw_model.state_dict())


@pytest.mark.slow
def test_the_python_example_continues_to_the_same_bits(tmp_path, monkeypatch):
    """BatchNorm's statistics, momentum and the noise of the data set included."""
    (tmp_path / "whole").mkdir()
    whole = from_python(tmp_path / "whole", monkeypatch)["state"]
    stop = {'resume_from_checkpoint="auto"': 'resume_from_checkpoint="auto", stop_after=5'}
    first = from_python(tmp_path, monkeypatch, **stop)["state"]
    assert first.step == 5
    again = from_python(tmp_path, monkeypatch)["state"]
    assert again.step == 10 and same_tensors(again.raw_model.state_dict(), whole.raw_model.state_dict())
    assert records(tmp_path / "runs" / "mine") == records(tmp_path / "whole" / "runs" / "mine")


def test_a_resume_notices_other_data_and_says_where_it_cannot_tell(tmp_path, capsys):
    def start(fingerprint, **changes):
        model = torch.nn.Sequential(ToDtype(torch.float32, scale=True), torch.nn.Flatten(), torch.nn.Linear(3072, 2))
        run = RunConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint="auto", precision="fp32", **changes)
        sets, optimizer = (LightAndDark(16, fingerprint), LightAndDark(8)), torch.optim.SGD(model.parameters())
        state, data, output = own_run(model, optimizer, *sets, ["dark", "light"], run, RecipeConfig(max_steps=4))
        with output:
            fit(state, data, RecipeConfig(max_steps=4), output)

    start("v1", stop_after=1)
    with pytest.raises(ConfigError, match="dataset_fingerprint was v1, is now v2"):
        start("v2", stop_after=2)
    capsys.readouterr()
    start(None, stop_after=3)
    assert "the data set has no fingerprint" in capsys.readouterr().out
    start("v1")


def edit(checkout: Path, block: str) -> None:
    """Apply one of the README's diffs."""
    title, *lines = block.splitlines()
    file = checkout / re.match(r"# (\S+),", title)[1]
    text = file.read_text(encoding="utf-8")
    old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
    assert text.count(old) == 1 and len(lines) <= 4
    file.write_text(text.replace(old, new), encoding="utf-8")


RUNS = """
import sys
from train.main import main
common = ["--preset", "debug", "--output_dir"]
resume = ["--resume_from_checkpoint", "auto"]
codes = main([*common, "whole"]), main([*common, "broken", "--stop_after", "5"]), main([*common, "broken", *resume])
sys.exit(max(codes))
"""


@pytest.mark.slow
def test_parts_swapped_by_the_edits_train_and_resume_exactly(tmp_path):
    for package in ("train", "data", "models"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for block in BLOCKS:
        edit(tmp_path, block)
    done = subprocess.run([sys.executable, "-c", RUNS], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert run_here("--preset", "debug", "--output_dir", tmp_path / "plain") == 0
    plain, whole, broken = (weights(tmp_path / name) for name in ("plain", "whole", "broken"))
    assert same_tensors(broken, whole) and not same_tensors(plain, whole)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
