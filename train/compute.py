"""What computes, and how: device, precision, threads, memory, attention, compilation. Each decision says why."""

import ctypes
import os
import shutil
import sys
from typing import Any

import torch
from torch import nn

from data.cores import usable_cores
from train import ConfigError, launch
from train.config import RunConfig
from train.precision import Precision, choose_device, choose_precision
from train.tracking import say

# glibc's mallopt: parameters by their numbers in malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4

WORTH_COMPILING = 40_000  # images


def choose_compute(run: RunConfig) -> tuple[Precision, str]:
    """The device and precision to compute in, and why. Threads and memory are set up for it.

    Raises:
        ConfigError: what was asked for cannot be had here.
    """
    device = choose_device(run.device)
    name, reason = choose_precision(run.precision, device)
    if run.fsdp:
        name, reason = _for_shards(name, reason, run)
    if run.tf32 and device.type != "cuda":
        raise ConfigError(f"--tf32 true: is a mode of CUDA's matrix units, and this is {device}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = run.tf32  # torch's own default is yes, for convolutions alone
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else set_threads()
    say(f"computing on {device} ({where}) in {name}: {reason}")
    return Precision(name, device), reason


def _for_shards(name: str, reason: str, run: RunConfig) -> tuple[str, str]:
    if launch.world_size() == 1:
        raise ConfigError("--fsdp true: spreads over several processes; start them with torchrun --nproc-per-node=N")
    if run.torch_compile == "on":
        raise ConfigError("--torch_compile on: is not for a sharded network; leave it, or --fsdp")
    if name != "fp16":
        return name, reason
    if run.precision == "fp16":
        raise ConfigError("--precision fp16: its scaler does not know of shards; bf16 or fp32 work with --fsdp")
    return "bf16", "fp16's scaler does not know of shards"


def set_threads() -> str:
    """One thread a core, once; torch counts the machine's cores, of which a container may have only a few."""
    if "OMP_NUM_THREADS" in os.environ:
        return f"{torch.get_num_threads()} threads, by OMP_NUM_THREADS"
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    return f"{torch.get_num_threads()} threads"


def choose_attention(precision: Precision) -> str:
    """Plain attention for bf16 on a CPU: there, at 65 to 197 tokens, an update takes 0.5 to 0.8 of SDPA's time."""
    return "eager" if precision.device.type == "cpu" and precision.name == "bf16" else "sdpa"


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, so that the next update finds its pages mapped; False where this is no glibc.

    By default glibc gives every block above 32 MiB back to the kernel, which hands out zeroed pages for it again in
    each update: a tenth of a DeiT-Tiny update, measured in docs/performance.md. In the process, not by GLIBC_TUNABLES,
    which would have to be set before it starts.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)))


def choose_compile(asked: str, precision: Precision, images: int) -> tuple[bool, str]:
    """Whether to compile the network, and why, in words. A function of the run alone: a resume decides the same.

    Args:
        asked: auto, on or off.
        precision: with its device.
        images: that the whole run trains on, epochs counted.

    Raises:
        ConfigError: it was asked for, and there is no C++ compiler here.
    """
    device = precision.device.type
    has_compiler = device != "cpu" or any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++") if name)
    if asked == "on" and not has_compiler:
        raise ConfigError("--torch_compile on: needs a C++ compiler, and there is no g++ here")
    if asked != "auto":
        return asked == "on", "as asked"
    if device != "cpu" or precision.name != "bf16":
        return False, f"no gain from it was measured on {device} in {precision.name}"
    if not has_compiler:
        return False, "there is no C++ compiler here"
    enough = images >= WORTH_COMPILING
    return enough, f"{images} images are {'enough' if enough else 'too few'} to pay for a minute of compiling"


def compile_network(network: nn.Module, batch_size: int, device: torch.device, accumulation: int = 1) -> None:
    """Compile `network` in place for training batches of one size; its weights and their names stay as they are.

    A short last batch, and evaluation, run uncompiled: each new shape would be another minute of compiling. On CUDA
    the kernels of an update are recorded as one graph, which at small batches costs less than launching them; not with
    an accumulation window, because the next replay overwrites the memory of the gradients that are to be added to.
    """
    eager: Any = network.forward
    mode = "reduce-overhead" if device.type == "cuda" and accumulation == 1 else "default"
    compiled = torch.compile(eager, dynamic=False, mode=mode)

    def forward(pixel_values: torch.Tensor, **options: Any) -> Any:
        full = network.training and len(pixel_values) == batch_size
        return (compiled if full else eager)(pixel_values, **options)

    network.forward = forward
