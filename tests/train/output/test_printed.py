"""What a run prints for pasting can be pasted, and what others wrote shows as they wrote it."""

import re
import shlex

import datasets
import pytest
from PIL import Image

from tests.running import ROOT, run_here
from train.config.schema import RecipeConfig
from train.output.model_card import as_code, as_text
from train.output.results import resume_command

NAMES = ["a\nerror: b", "<script>x</script>", "\x1b[2Jc", "`d` *e* | [f](http://g) ![h](i)", "\u202eevil"]


@pytest.fixture
def strange(tmp_path):
    """A folder of tables with classes whose names steer terminals, break tables and hold markup."""
    folder = tmp_path / "set `x` <b>"
    folder.mkdir()
    pictures = [Image.new("RGB", (32, 32), (40 * number, 90, 7)) for number in range(len(NAMES))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for split in ("train", "validation"):
        rows = {"image": pictures, "label": list(range(len(NAMES)))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def pasted(printed: str, lead: str) -> list[str]:
    """The words of the one printed command that follows `lead`."""
    (line,) = [line for line in printed.splitlines() if lead in line]
    return shlex.split(line.split(lead)[1])


def test_commands_can_be_pasted_and_names_of_others_show_as_text(strange, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "it's $HOME; a b"
    flags = ("--preset", "debug", "--dataset", strange, "--max_steps", 2, "--output_dir", out)
    assert run_here(*flags, "--stop_after", 1) == 0
    words = pasted(capfd.readouterr().out, "to continue: ")
    assert words[:2] == ["plainloop", "train"] and out in words
    assert run_here(*words[2:]) == 0
    printed = capfd.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", printed)
    assert not [line for line in printed.splitlines() if line.startswith("error: ")]
    assert pasted(printed, "tensorboard --logdir ") == [out]
    words = pasted(printed, "next: ")
    assert run_here(*words[2:]) == 0
    card = (tmp_path / out / "README.md").read_text()
    body = card.split("---", 2)[2].split("## Use")[0]
    text = re.sub(r"(`+) .*? \1", "", body)  # code shows as it is
    assert "<script" not in text and "<b>" not in text and "\x1b" not in card and "\u202e" not in card
    assert not re.search(r"(?<!\\)\[f|(?<!\\)`d|(?<!\\)\*e", text)
    assert len([line for line in body.splitlines() if line.count("|") - line.count("\\|") == 5]) == 2 + len(NAMES)


def test_an_error_names_a_folder_that_can_be_pasted(tmp_path, capsys):
    recipe = RecipeConfig(optim="a b:C")
    for folder in ("it's $HOME; a b", "-x", "$(reboot)", "a\\b", "*"):
        words = shlex.split(resume_command(folder, recipe))
        assert words[:2] == ["plainloop", "train"] and {folder, f"--output_dir={folder}"} & set(words)
        assert words[-2:] == ["--optim", "a b:C"]
    (tmp_path / "f.yaml").write_text("optim: 'a b; reboot:C'\n")
    assert run_here(tmp_path / "f.yaml", "--preset", "debug") == 2
    assert "add --optim 'a b; reboot:C'" in capsys.readouterr().err


def test_every_command_that_the_program_prints_is_quoted():
    """A command put together by an f-string would be one with a blank, a quote or a $ in it some day."""
    for path in [*(ROOT / "train").rglob("*.py"), *(ROOT / "data").rglob("*.py"), *(ROOT / "models").rglob("*.py")]:
        for line in path.read_text().splitlines():
            if re.search(r"(plainloop train|train\.main|tensorboard|torchrun) --?\w+", line) and "{" in line:
                assert "shlex" in line, f"{path}: {line}"


def test_markdown_of_others_is_text():
    assert as_text("<i>a</i> | `b` *c* _d_ [e](f) ~g~ \x1b\n# h") == (
        r"&lt;i&gt;a&lt;/i&gt; \| \`b\` \*c\* \_d\_ \[e\](f) \~g\~ \\x1b \# h"
    )
    assert as_code("a") == "`a`" and as_code("a`b``c") == "``` a`b``c ```"
