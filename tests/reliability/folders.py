"""Run folders made by an enemy, every manifest sealed anew: nothing of them runs or writes outside, all is one line."""

import contextlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.reliability.harness import Report
from tests.reliability.hostile import _bomb
from tests.running import run_here
from train.checkpoint.manifest import MANIFEST, OPTIMIZER, STATE, read_manifest, write_manifest

Attack = Callable[[Path], None]
NEWEST, LONGEST = "checkpoint-3", 20  # seconds that one attack may take
RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate", "open")


class Watch:
    """An audit hook for a block: what runs code of the folder, or changes anything outside it, is an alarm."""

    def __init__(self, inside: list[Path]) -> None:
        """`inside` are the folders that may be written in."""
        self.inside, self.armed, self.alarms = [str(path.resolve()) for path in inside], False, []
        sys.addaudithook(self._hook)  # for good: Python has no way to remove one

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Watch while the block runs."""
        self.armed, self.alarms = True, []
        try:
            yield
        finally:
            self.armed = False

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        self.armed = False  # what follows has events of its own
        try:
            named = {"import": str(arguments[0]), "compile": str(arguments[0])} if arguments else {}
            named["exec"] = getattr(arguments[0], "co_filename", "") if arguments else ""
            if event in RUNS_CODE or "evil" in named.get(event, ""):
                self.alarms.append(f"{event} {arguments}"[:200])
            elif event in CHANGES and not (event == "open" and not _writes(arguments)):
                self._check_place(event, arguments)
        finally:
            self.armed = True

    def _check_place(self, event: str, arguments: tuple) -> None:
        if isinstance(arguments[0], int):  # opened before
            return
        folder = Path.cwd()
        if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] not in (-1, None):
            folder = Path(f"/proc/self/fd/{arguments[-1]}").readlink()
        path = folder / os.fsdecode(arguments[1 if event in ("os.symlink", "os.link") else 0])
        place = str(path.resolve() if event == "open" else path.parent.resolve() / path.name)
        if not place.startswith((*self.inside, "/dev/null", "/proc/self", f"/proc/{os.getpid()}")):
            self.alarms.append(f"{event} {place}")


def _writes(arguments: tuple) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# -- attacks: each changes a copy of a stopped run ---------------------------------------------------------------------


def record(**changes: Any) -> Attack:
    """Values in run.json's flags, and in config.yaml."""

    def change(run: Path) -> None:
        document = json.loads((run / "run.json").read_text())
        document["config"] |= changes
        (run / "run.json").write_text(json.dumps(document))
        (run / "config.yaml").write_text(json.dumps({"preset": "debug"} | changes))

    return change


def text(name: str, content: str | bytes) -> Attack:
    """A file with other content."""
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None


def sealed(change: Callable[[Path], object]) -> Attack:
    """A change of the newest checkpoint, whose manifest then agrees with it."""

    def apply(run: Path) -> None:
        checkpoint = run / NEWEST
        manifest = read_manifest(checkpoint)
        change(checkpoint)
        (checkpoint / MANIFEST).unlink()
        write_manifest(checkpoint, manifest["run_id"], manifest["step"], manifest["identity"])

    return apply


def state(change: Callable[[dict], object]) -> Attack:
    """A change of state.json."""

    def apply(checkpoint: Path) -> None:
        document = json.loads((checkpoint / STATE).read_text())
        change(document)
        (checkpoint / STATE).write_text(json.dumps(document))

    return sealed(apply)


def tensors(name: str, change: Callable[[dict], object]) -> Attack:
    """A change of a safetensors file."""

    def apply(checkpoint: Path) -> None:
        found = {key: value.clone() for key, value in load_file(checkpoint / name).items()}
        change(found)
        save_file(found, checkpoint / name, metadata={"format": "pt"})

    return sealed(apply)


def settings(name: str, **changes: Any) -> Attack:
    """Values in config.json or preprocessor_config.json."""

    def apply(checkpoint: Path) -> None:
        document = json.loads((checkpoint / name).read_text()) | changes
        (checkpoint / name).write_text(json.dumps(document))

    return sealed(apply)


def link(name: str, target: str) -> Attack:
    """A link out of the folder in place of one of its files or folders; `target` is beside the run."""

    def apply(run: Path) -> None:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(run.parent / "outside" / target)

    return apply


def moved_out(run: Path) -> None:
    """The checkpoint lies elsewhere, and a link to it in the run's folder."""
    shutil.move(run / NEWEST, run.parent / "outside" / NEWEST)
    (run / NEWEST).symlink_to(run.parent / "outside" / NEWEST)


def first(found: dict[str, torch.Tensor], ending: str) -> str:
    """A tensor by the end of its name."""
    return next(name for name in found if name.endswith(ending))


def reshaped(ending: str, *shape: int, dtype: torch.dtype = torch.float32) -> Attack:
    """One tensor of the optimizer, of another shape or type."""
    return tensors(OPTIMIZER, lambda found: found.update({first(found, ending): torch.zeros(shape, dtype=dtype)}))


def group(**changes: Any) -> Attack:
    """Values of the optimizer's first group."""
    return state(lambda document: document["optimizer"]["groups"][0].update(changes))


EVIL = "evil_module:Evil"
DEEP = "[" * 100_000
OUTSIDE = {
    "metrics.jsonl elsewhere": link("metrics.jsonl", "metrics.jsonl"),
    "tensorboard elsewhere": link("tensorboard", "folder"),
    "run.json elsewhere": link("run.json", "run.json"),
    "README.md elsewhere": link("README.md", "file"),
    "model.safetensors elsewhere": link("model.safetensors", "file"),
    "trainer_state.json elsewhere": link("trainer_state.json", "file"),
    "best elsewhere": link("best", "folder"),
    "the next checkpoint elsewhere": link("checkpoint-12", "folder"),
    "an older checkpoint elsewhere": link("checkpoint-1", "folder"),
    "the lock elsewhere": link(".lock", "file"),
    "a leftover elsewhere": link(".tmp-x", "folder"),
    "checkpoint elsewhere": moved_out,
    "a state elsewhere": link(f"{NEWEST}/state.json", "file"),
}
ATTACKS: dict[str, Attack] = {
    "optim names code": record(optim=EVIL),
    "schedule names code": record(lr_scheduler_type=EVIL),
    "optim names os:system": record(optim="os:system"),
    "dataset names code": record(dataset=EVIL),
    "a flag is a list": record(seed=[1]),
    "a flag is a mapping": record(model={"a": 1}),
    "a flag is true": record(learning_rate=True),
    "a flag is NaN": record(learning_rate=math.nan),
    "a huge seed": record(seed=10**400),
    "a huge batch": record(per_device_train_batch_size=10**12),
    "a million workers": record(dataloader_num_workers="1000000"),
    "a device that holds nothing": record(device="meta"),
    "arguments nested deeply": record(optim_args='{"a": ' + DEEP),
    "arguments in brackets": record(optim_args="betas=" + "(" * 5000),
    "a huge number as argument": record(optim_args='{"eps": ' + "9" * 5000 + "}"),
    "an unknown flag": record(evil=1),
    "tags in config.yaml": text("config.yaml", "optim: !!python/object/apply:os.system [touch evil]\n"),
    "deep run.json": text("run.json", DEEP),
    "run.json is a list": text("run.json", "[]"),
    "a pickle as run.json": text("run.json", _bomb()),
    "no log": lambda run: (run / "metrics.jsonl").unlink(),
    "deep log": text("metrics.jsonl", DEEP + "\n"),
    "a huge metric in the log": text("metrics.jsonl", '{"step": 3, "eval_loss": ' + "9" * 400 + "}\n"),
    "state of a huge count": state(lambda document: document.update(step=10**15, scheduler={"steps": 10**15})),
    "state of another step": state(lambda document: document.update(step=2, scheduler={"steps": 2})),
    "more losses than a float holds": state(lambda document: document.update(loss_total=1e300)),
    "a huge best value": state(lambda document: document.update(best={"value": 10**400, "step": 3})),
    "a NaN best value": state(lambda document: document.update(best={"value": math.nan, "step": 3})),
    "seconds of evil": state(lambda document: document["seconds"].update({"\x1b[2J": 1.0})),
    "negative seconds": state(lambda document: document.update(seconds={"data": -1e9})),
    "memory of another schedule": state(lambda document: document["scheduler"].update(memory={"step": 1})),
    "a learning rate of text": group(lr="x"),
    "a learning rate without end": group(lr=10**400),
    "betas of text": group(betas=["a", "b"]),
    "three betas": group(betas=[0.9, 0.99, 0.999]),
    "parameters counted anew": group(params=[5, 4, 3, 2, 1, 0]),
    "eps is a list": group(eps=[1]),
    "a moment too small": reshaped(".exp_avg", 1),
    "a moment too large": reshaped(".exp_avg_sq", 4096, 64),
    "an empty moment": reshaped(".exp_avg", 0),
    "a moment of integers": reshaped(".exp_avg", 64, 3, 8, 8, dtype=torch.int64),
    "a step of many numbers": reshaped(".step", 1000),
    "a moment missing": tensors(OPTIMIZER, lambda found: found.pop(first(found, ".exp_avg"))),
    "all moments missing": tensors(OPTIMIZER, lambda found: found.clear()),
    "a parameter's moments missing": tensors(
        OPTIMIZER, lambda found: [found.pop(f"0.{name}") for name in ("step", "exp_avg", "exp_avg_sq")]
    ),
    "a tensor too many": tensors(OPTIMIZER, lambda found: found.update({"0.evil": torch.zeros(1)})),
    "a tensor of no parameter": tensors(OPTIMIZER, lambda found: found.update({"900.exp_avg": torch.zeros(1)})),
    "a tensor of parameter -1": tensors(OPTIMIZER, lambda found: found.update({"-1.exp_avg": torch.zeros(1)})),
    "a tensor named nan": tensors(OPTIMIZER, lambda found: found.update({"nan": torch.zeros(1)})),
    "a weight too small": tensors(
        "model.safetensors", lambda found: found.update({first(found, "layernorm.weight"): torch.zeros(1)})
    ),
    "a weight missing": tensors("model.safetensors", lambda found: found.pop(first(found, "layernorm.weight"))),
    "a weight too many": tensors("model.safetensors", lambda found: found.update({"\x1b[2Jevil": torch.zeros(1)})),
    "a head for other classes": settings("config.json", id2label={"0": "evil", "1": "b", "2": "c"}),
    "classes that are a list": settings("config.json", id2label=["a", "b", "c"]),
    "a huge model": settings("config.json", hidden_size=2**16),
    "endless layers": settings("config.json", num_hidden_layers=10**9),
    "a size that is a word": settings("config.json", hidden_size="big"),
    "a huge picture": settings("config.json", image_size=10**7),
    "a huge standard deviation": settings("preprocessor_config.json", image_std=[10**400, 1, 1]),
    "auto_map in config.json": settings("config.json", auto_map={"AutoModel": "evil_module.Evil", "AutoConfig": EVIL}),
    "auto_map in preprocessor_config.json": settings("preprocessor_config.json", auto_map={"AutoProcessor": EVIL}),
    "a pickle as optimizer": sealed(lambda checkpoint: (checkpoint / OPTIMIZER).write_bytes(_bomb())),
    "a pickle as weights": sealed(lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(_bomb())),
    **OUTSIDE,
}

HARMLESS = {*OUTSIDE, "tags in config.yaml", "memory of another schedule"}
HARMLESS |= {"auto_map in config.json", "auto_map in preprocessor_config.json"}  # ViT's own classes are used


def hostile_folders(folder: Path) -> Report:
    """Each attack: the run resumed; what was changed also evaluated as a model, or given as a file of flags.

    Right is: 0, or 2 or 1 with a single `error:` line; no alarm; everything outside the folder as before.
    """
    report = Report("folders: hostile run folders")
    sound, run, outside = folder / "sound", folder / "run", folder / "outside"
    assert run_here("--preset", "debug", "--stop_after", 3, "--output_dir", sound) == 0
    code = "import pathlib, torch\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil(torch.optim.SGD): pass\n"
    (folder / "evil_module.py").write_text(code)
    sys.path.insert(0, str(folder))
    watch = Watch([run, Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser(), folder / "new"])
    for name, attack in ATTACKS.items():
        _prepare(sound, run, outside)
        attack(run)
        before = _content(outside)
        commands = [("--output_dir", run, "--resume_from_checkpoint", "auto")]
        if _content(run / NEWEST) != _content(sound / NEWEST):
            commands.append(("--preset", "debug", "--model", run / NEWEST, "--eval_only"))
        if (run / "config.yaml").read_bytes() != (sound / "config.yaml").read_bytes():
            commands.append((run / "config.yaml", "--stop_after", 1, "--output_dir", folder / "new"))
        for flags in commands:
            code, what = _one(flags, watch)
            untouched = _content(outside) == before and not (folder / "ran").exists()
            # A resume that goes on as if nothing had happened would have to be one that nothing can happen to.
            right = code != "wrong" and untouched and (code or flags[0] != "--output_dir" or name in HARMLESS)
            report.check(right, f"{name}: {flags[0]}: {what}, {'un' * untouched}touched")
            shutil.rmtree(folder / "new", ignore_errors=True)
    sys.path.remove(str(folder))
    return report


def _prepare(sound: Path, run: Path, outside: Path) -> None:
    for path in (run, outside):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, run, symlinks=True)
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("precious\n")
    for name in ("metrics.jsonl", "run.json"):
        shutil.copy(sound / name, outside)


def _one(flags: tuple, watch: Watch) -> tuple[int | str, str]:
    """The exit code, or "wrong" if there was an exception, an alarm, more than a line, or no end; and all that was."""
    errors, started = io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), watch.block():
            code = run_here(*flags)
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"[:300]
    said, seconds = errors.getvalue(), time.monotonic() - started
    one_line = said.startswith("error: ") and said.count("\n") == 1 and "\x1b" not in said if code else not said
    right = code in (0, 1, 2) and one_line and not watch.alarms and seconds < LONGEST
    return code if right else "wrong", f"exit code {code} after {seconds:.1f} s, {said[:300]!r}, {watch.alarms}"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
