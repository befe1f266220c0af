"""The installed program, run from folders whose names are also those of its packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.running import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("train", "data", "models")
COMMANDS = {"plainloop": ["bin/plainloop", "train"], "python -m": ["bin/python", "-m", "train.main"]}
# Without an __init__ a folder is no package; `python -m`, which looks in the current folder first, passes it by.
HARMLESS = ["empty", "images", "data", "models", "scripts", "tests"]
# Nothing can help `python -m` where the current folder has a module of that name, but `plainloop` does not look there.
MODULES = ["train.py", "models/__init__.py", "data/__init__.py"]
HERE = [(folder, command) for folder in HARMLESS for command in COMMANDS] + [(name, "plainloop") for name in MODULES]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the checkout, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("copy") / "plainloop"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "shared")
    return shutil.copytree(ROOT, copy, ignore=left_out)


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sources)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def editable_install(sources, tmp_path_factory):
    return install(tmp_path_factory.mktemp("editable"), "-e", sources)


@pytest.fixture(scope="module")
def wheel_install(wheel, tmp_path_factory):
    return install(tmp_path_factory.mktemp("from-wheel"), wheel)


@pytest.fixture(params=["editable", "wheel"])
def installed(request):
    """A virtual environment with the program in it."""
    return request.getfixturevalue(f"{request.param}_install")


def install(folder, *what):
    """A new environment in `folder`, with the dependencies of the one that runs the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder}))
    # Python does not read the .pth files of a folder that a .pth file names: the tests' own plainloop stays out. The
    # name comes late in the alphabet, so that what is installed here comes first.
    (site / "zz-dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip(folder / "bin" / "python", "install", "--no-deps", "--no-build-isolation", "--ignore-installed", *what)
    return folder


def pip(python, *arguments):
    run([python, "-m", "pip", "--disable-pip-version-check", *arguments], cwd="/")


def run(command, cwd):
    """What the command prints, as a user's shell runs it: with nothing of the tests' own environment for Python."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=ours,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def make_folder(root, kind):
    """A current folder of that kind."""
    path = root / kind
    if kind == "empty":
        return root
    if kind == "images":
        draw_images(root)
        return root
    if "." in kind:
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('this is the module of the current folder')\n")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    return root


def draw_images(root):
    """Twelve images of two classes in train/, and four in validation/."""
    for split, count in (("train", 6), ("validation", 2)):
        for label, colour in (("dark", 10), ("light", 200)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40), (colour, colour, 10 * number)).save(folder / f"{number}.png")


def start(environment, command):
    program, *rest = COMMANDS[command]
    return [environment / program, *rest]


@pytest.mark.parametrize(("folder", "command"), HERE)
def test_the_program_starts_in_any_folder(installed, folder, command, tmp_path):
    cwd = make_folder(tmp_path, folder)
    assert "--max_steps" in run([*start(installed, command), "--help"], cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_trains_where_the_images_lie_in_a_folder_called_train(installed, command, tmp_path):
    cwd = make_folder(tmp_path / "here", "images")
    flags = ["--preset", "debug", "--dataset", ".", "--max_steps", 2, "--output_dir", tmp_path / "run"]
    assert "verified: reloaded from disk" in run([*start(installed, command), *flags], cwd)
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").exists()
    assert {path.name for path in cwd.iterdir()} == {"train", "validation"}


def test_what_runs_is_what_was_installed(editable_install, wheel_install, sources, tmp_path):
    """Not folders of these names here, nor the checkout, which the environment of the tests may have installed, too."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    ask = "import data, models, train; print(data.__file__, models.__file__, train.__file__)"
    for environment, home in ((editable_install, sources), (wheel_install, wheel_install)):
        files = run([environment / "bin" / "python", "-c", ask], tmp_path).split()
        assert len(files) == 3 and all(Path(file).is_relative_to(home) for file in files)


def test_a_wheel_has_every_file_of_the_three_packages_and_nothing_else(wheel):
    kinds = (".py", ".j2", ".html")  # templates and the server's page belong to the packages
    below = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in kinds)
    ours = {path.relative_to(ROOT).as_posix() for path in below}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == ours and {"train/commands/__init__.py", "data/reading/__init__.py"} <= found
