"""Whether the Hugging Face Hub or its local cache can be reached, asked once before anything is loaded.

The Hub libraries themselves retry for half a minute when there is no network.
"""

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

PROBE_SECONDS = 3.0


def is_hub_name(name: str | None) -> bool:
    """Whether a --dataset or --model is a name on the Hub: not a local path, an address or built in."""
    return (
        name is not None
        and "://" not in name
        and not name.startswith("builtin:")
        and not Path(name).exists()
        and _is_repo_id(name)
    )


def _is_repo_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_cached(name: str, kind: str, cache_dir: str | None) -> bool:
    """Whether the local cache holds a complete version of a repository; `kind` is "model" or "dataset"."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    if kind == "model":
        files = ("config.json", "preprocessor_config.json", "model.safetensors")
        return all(isinstance(try_to_load_from_cache(name, file, cache_dir), str) for file in files)
    try:
        folder = snapshot_download(name, repo_type=kind, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return any(Path(folder).rglob("*.parquet"))


def is_offline(*names: str | None) -> bool:
    """Whether one of these is a name on the Hub, and the Hub cannot be reached; says so."""
    unreachable = why_unreachable() if any(map(is_hub_name, names)) else None
    if unreachable:
        from train.system.console import say

        say(f"{unreachable}: only what its local cache holds can be loaded")
    return unreachable is not None


def why_unreachable(seconds: float = PROBE_SECONDS) -> str | None:
    """None if the Hub answers within `seconds`, else why not."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []
    # In a thread, because urllib's timeout does not cover a name server that never answers.
    probe = threading.Thread(target=lambda: answer.append(_ask(constants.ENDPOINT, seconds)), daemon=True)
    probe.start()
    probe.join(seconds)
    return answer[0] if answer else f"{constants.ENDPOINT} did not answer in {seconds:g} s"


def _ask(endpoint: str, seconds: float) -> str | None:
    request = urllib.request.Request(f"{endpoint}/api/models?limit=1", headers={"user-agent": "plainloop"})
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        return f"{endpoint} answered {error.code}"
    except OSError as error:
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"


def move_caches(cache_dir: str) -> None:
    """Make the Hub libraries keep everything under `cache_dir`; call it before they are imported."""
    folder = Path(cache_dir).resolve()
    os.environ["HF_HUB_CACHE"] = str(folder)
    os.environ["HF_XET_CACHE"] = str(folder / "xet")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
