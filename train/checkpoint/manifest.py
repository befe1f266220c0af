"""A checkpoint's manifest: size and SHA-256 of every file, sealed with a digest of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

from data import files
from models.preprocessing import PROCESSOR_FILE
from models.saving import WEIGHTS_FILE

MANIFEST, STATE, OPTIMIZER = "manifest.json", "state.json", "optimizer.safetensors"
RAW_WEIGHTS = "raw.safetensors"  # with --ema: what training goes on from; the model's own file has their average
MODEL_FILES = (WEIGHTS_FILE, "config.json", PROCESSOR_FILE)


class CheckpointError(Exception):
    """A checkpoint cannot be trusted or does not fit; the message says which and why."""


def write_manifest(folder: Path, run_id: str, step: int, identity: dict[str, Any]) -> None:
    """Flush every file to the disk, record its size and digest, and flush the record last."""
    listed = {}
    usual = (folder / STATE).stat().st_mode
    for path in sorted(folder.iterdir()):
        path.chmod(usual)  # safetensors writes 0600, which a colleague or a server cannot read
        files.flush(path)
        listed[path.name] = {"size": path.stat().st_size, "sha256": files.sha256(path)}
    manifest = {"format": 1, "run_id": run_id, "step": step, "files": listed, "identity": identity}
    files.write_text(folder / MANIFEST, _sealed(manifest))


def _sealed(manifest: dict[str, Any]) -> str:
    """The text of a manifest with its own digest, so that no bit of it can change unnoticed either."""
    content = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": manifest}, indent=2, sort_keys=True) + "\n"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The content of manifest.json; CheckpointError if it is missing, or not as it was written."""
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)["manifest"]
        if text != _sealed(manifest):
            raise ValueError("it differs from what was saved")
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["identity"], dict):
            raise TypeError("files and identity must be objects")
        _ = manifest["run_id"], manifest["step"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: is incomplete: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint}: its {MANIFEST} is damaged: {error}") from error
    return manifest


def verify(checkpoint: Path) -> dict[str, Any]:
    """Compare every file with the manifest, byte for byte by digest; returns the manifest.

    Raises:
        CheckpointError: a file is missing, or differs from what was saved.
    """
    if checkpoint.is_symlink() and checkpoint.name.startswith("checkpoint-"):  # `best` is a link, and may be named
        raise CheckpointError(f"{checkpoint}: is a link to {checkpoint.readlink()}; no run makes such links")
    manifest = read_manifest(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not isinstance(expected, dict) or expected.keys() != {"size", "sha256"}:
            raise CheckpointError(f"{checkpoint}: its {MANIFEST} does not say what {name} should be")
        if Path(name).name != name:
            raise CheckpointError(f"{checkpoint}: its {MANIFEST} names {name}, outside the folder")
        if not path.is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing")
        if path.stat().st_size != expected["size"] or files.sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{checkpoint}: {name} differs from what was saved")
    if missing := {WEIGHTS_FILE, STATE, OPTIMIZER} - manifest["files"].keys():
        raise CheckpointError(f"{checkpoint}: its {MANIFEST} does not list {', '.join(sorted(missing))}")
    return manifest
