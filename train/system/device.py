"""On which device to compute, in which precision, with how many threads. Each choice comes with its reason."""

import os

import torch

from data.cores import usable_cores
from train.distributed.env import local_rank, world_size
from train.errors import ConfigError


def choose_device(asked: str) -> torch.device:
    """The device that was asked for; `auto` is the best there is.

    Raises:
        ConfigError: there is no such device here.
    """
    if world_size() > 1 and asked not in ("auto", "cpu"):
        raise ConfigError(f"--device {asked}: torchrun gives each process its own GPU; auto and cpu work with it")
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device).item()  # of `meta`, whose tensors hold nothing, this asks for a number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise ConfigError(f"--device {asked}: cannot be used here: {reason}") from error
    return device


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The precision to compute in, and why.

    Raises:
        ConfigError: the device cannot compute in it; the Trainer would silently train in another.
    """
    if asked == "auto":
        if device.type == "cuda":
            return "fp16", "the recipe's choice on CUDA, with a GradScaler"
        if device.type == "cpu" and (unit := _bf16_unit()):
            return "bf16", f"this processor has {unit}"
        return "fp32", f"{device.type} has no bf16 units" if device.type == "cpu" else f"safe on {device.type}"
    if asked == "fp16" and device.type != "cuda":
        raise ConfigError(f"--precision fp16: needs a CUDA device, and this is {device}; bf16 or fp32 work here")
    if asked == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("--precision bf16: this GPU cannot compute in it; fp16 and fp32 work here")
    if asked == "fp64" and device.type == "mps":
        raise ConfigError("--precision fp64: mps cannot compute in it; use --device cpu")
    if asked == "bf16" and device.type == "cpu" and not _bf16_unit():
        return asked, "as asked; this processor emulates it, which was measured 20 times slower than fp32"
    return asked, "as asked"


def _bf16_unit() -> str | None:
    """The name of the processor's unit for bf16 matrix products, if torch would use it."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AMX"):  # as ATEN_CPU_CAPABILITY allows
        return None
    # Private names, but the ones that torch 2.10 to 2.15 share; the public get_capabilities() is newer.
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None


def choose_attention(device: torch.device, precision: str) -> str:
    """Plain attention for bf16 on a CPU: there, at 65 to 197 tokens, an update takes 0.5 to 0.8 of SDPA's time."""
    return "eager" if device.type == "cpu" and precision == "bf16" else "sdpa"


def set_threads() -> str:
    """One thread per core that this process may use; torch counts the machine's, and a container may have fewer."""
    if "OMP_NUM_THREADS" in os.environ:
        return f"{torch.get_num_threads()} threads, by OMP_NUM_THREADS"
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    return f"{torch.get_num_threads()} threads"
