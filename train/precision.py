"""Autocast and the GradScaler as one object that is always there, so that the loop has one path for all precisions."""

import contextlib
from dataclasses import dataclass, field

import torch

from train import ConfigError, launch
from train.health import Health

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Precision:
    """How numbers are computed on one device. Parameters stay `dtype`; autocast narrows what can be narrowed."""

    name: str  # fp32, bf16, fp16 or fp64
    device: torch.device
    scaler: torch.amp.GradScaler = field(init=False)
    health: Health = field(init=False)
    _known_scale: float | None = field(default=None, init=False)  # as last read, so that it is read once an update

    def __post_init__(self) -> None:
        """Only fp16 needs scaling: its smallest gradients would become zero. Disabled, the scaler does nothing."""
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
        self.health = Health(self.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, gradients, optimizer state, and pixels before autocast."""
        return torch.float64 if self.name == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager:
        """For the forward pass, in training and evaluation alike."""
        if self.name not in AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.name])

    @property
    def waits(self) -> bool:
        """Whether the host knows after each update how it went: on a CPU for nothing, in fp16 for the schedule."""
        return self.device.type != "cuda" or self.scaler.is_enabled()

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Update the weights, unless `loss` or `grad_norm` is no number; what is refused, `health.check` raises.

        Returns:
            False if the scaler skipped the update because fp16 gradients overflowed, which is its normal business.
        """
        if not self.scaler.is_enabled():
            self.health.judge(loss, grad_norm)
            self.health.step(optimizer)
            return True
        self.health.judge(loss, torch.zeros_like(loss))
        scale = self._known_scale or self.scaler.get_scale()
        self.scaler.step(optimizer)  # a loss that is no number has such gradients, too
        self.scaler.update()
        self._known_scale = self.scaler.get_scale()  # the one wait for the device in an update
        return self._known_scale >= scale  # it is lowered after an overflow, and only then


def choose_device(asked: str) -> torch.device:
    """`auto` is the best there is; anything else must exist.

    Raises:
        ConfigError: there is no such device here.
    """
    if launch.world_size() > 1 and asked not in ("auto", "cpu"):
        raise ConfigError(f"--device {asked}: torchrun gives each process its own GPU; auto and cpu work with it")
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", launch.local_rank())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise ConfigError(f"--device {asked}: cannot be used here: {reason}") from error
    return device


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The precision to take, and why, in words.

    Raises:
        ConfigError: the device cannot compute in it; the Trainer would train in another without a word.
    """
    if asked == "auto":
        if device.type == "cuda":
            return "fp16", "the recipe's choice on CUDA, with a GradScaler"
        if device.type == "cpu" and (unit := _bf16_unit()):
            return "bf16", f"this processor has {unit}"
        return (
            "fp32",
            f"{device.type} has no units for bf16" if device.type == "cpu" else f"safe on {device.type}",
        )
    if asked == "fp16" and device.type != "cuda":
        raise ConfigError(f"--precision fp16: needs a CUDA device, and this is {device}; bf16 or fp32 work here")
    if asked == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("--precision bf16: this GPU cannot; fp16 and fp32 work here")
    if asked == "fp64" and device.type == "mps":
        raise ConfigError("--precision fp64: mps cannot; use --device cpu")
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
