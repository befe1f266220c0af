"""R7: checkpoints made by an enemy. Nothing of them may run, or reach outside its folder."""

import contextlib
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.reliability.harness import Report
from tests.running import run_here
from train.checkpoint.manifest import MANIFEST, STATE, _sealed

_alarms: list[str] = []
_armed = [False]
RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class")


def _watch(event: str, arguments: tuple) -> None:
    if _armed[0] and event in RUNS_CODE:
        _alarms.append(f"{event}{arguments}"[:200])


sys.addaudithook(_watch)


class Bomb:
    """What unpickling would run."""

    def __reduce__(self) -> tuple:
        import os

        return os.system, ("touch /tmp/plainloop-was-here",)


def _bomb() -> bytes:
    file = io.BytesIO()
    pickle.dump(Bomb(), file)
    return file.getvalue()


def _json(name: str, **changes: object) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        path = checkpoint / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).write_bytes(content) and None


def _python(name: str) -> Callable[[Path], None]:
    code = "import os; os.system('touch /tmp/plainloop-was-here')\n"

    def change(checkpoint: Path) -> None:
        (checkpoint / "evil.py").write_text(code)
        _json(name, auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil"))(checkpoint)

    return change


def _manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        manifest = json.loads((checkpoint / MANIFEST).read_text())["manifest"]
        change(manifest)
        (checkpoint / MANIFEST).write_text(_sealed(manifest))

    return apply


def _link(name: str, target: str) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        (checkpoint / name).unlink()
        (checkpoint / name).symlink_to(target)

    return change


GIANT_HEADER = (1 << 62).to_bytes(8, "little") + b"{}"
ATTACKS: dict[str, Callable[[Path], None]] = {
    **{f"pickle as {name}": _bytes(name, _bomb()) for name in ("model.safetensors", "optimizer.safetensors", STATE)},
    **{f"pickle as {name}": _bytes(name, _bomb()) for name in ("config.json", "preprocessor_config.json", MANIFEST)},
    "pytorch_model.bin beside": _bytes("pytorch_model.bin", _bomb()),
    "training_args.bin beside": _bytes("training_args.bin", _bomb()),
    "only pytorch_model.bin": lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin") and None,
    "giant header in the weights": _bytes("model.safetensors", GIANT_HEADER),
    "giant header in the optimizer": _bytes("optimizer.safetensors", GIANT_HEADER),
    "auto_map in config.json": _python("config.json"),
    "auto_map in preprocessor_config.json": _python("preprocessor_config.json"),
    "another architecture": _json("config.json", model_type="bert", architectures=["BertModel"]),
    "trust_remote_code": _json("config.json", trust_remote_code=True, custom_pipelines={"x": {"impl": "evil.Evil"}}),
    "deep JSON": _bytes(STATE, b"[" * 100_000),
    "deep JSON in the manifest": _bytes(MANIFEST, b"[" * 100_000),
    "../ in the manifest": _manifest(lambda manifest: manifest["files"].update({"../../x": {"size": 0, "sha256": ""}})),
    "absolute path in the manifest": _manifest(lambda m: m["files"].update({"/etc/passwd": {"size": 0, "sha256": ""}})),
    "no files in the manifest": _manifest(lambda manifest: manifest.update(files={})),
    "files that are a list": _manifest(lambda manifest: manifest.update(files=["model.safetensors"])),
    "a size that is a word": _manifest(lambda manifest: manifest["files"]["config.json"].update(size="big")),
    "a file without a digest": _manifest(lambda manifest: manifest["files"]["config.json"].pop("sha256")),
    "weights that are a link": _link("model.safetensors", "/dev/zero"),
    "a state that is a link": _link(STATE, "/etc/passwd"),
}


def hostile_checkpoints(folder: Path) -> Report:
    """Each attack twice: named to be resumed from, and given as --model. Only exit code 2 with a line, or harmless."""
    report = Report("R7 hostile checkpoints")
    marker = Path("/tmp/plainloop-was-here")
    marker.unlink(missing_ok=True)
    sound = folder / "sound"
    assert run_here("--preset", "debug", "--stop_after", 2, "--output_dir", sound) == 0
    for name, attack in ATTACKS.items():
        run = folder / "run"
        shutil.copytree(sound, run, symlinks=True)
        attack(run / "checkpoint-2")
        _armed[0] = True
        for flags in (
            ("--resume_from_checkpoint", run / "checkpoint-2", "--stop_after", 3),
            ("--preset", "debug", "--model", run / "checkpoint-2", "--eval_only"),
        ):
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    code: object = run_here(*flags)
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"[:200]
            right = code in (0, 2) and not _alarms and not marker.exists()
            report.check(right, f"{name}: {flags[0]}: {code}, {_alarms}")
            _alarms.clear()
        _armed[0] = False
        shutil.rmtree(run)
    return report
