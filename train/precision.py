"""Autocast, the GradScaler and the refusal of NaN and infinity, so that the loop has one path for all precisions."""

import contextlib
from dataclasses import dataclass, field

import torch

from train.config.schema import RunConfig
from train.distributed.env import world_size
from train.distributed.parallel import is_sharded
from train.errors import ConfigError, NonFiniteError
from train.system.console import say
from train.system.device import choose_device, choose_precision, set_threads

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Precision:
    """How numbers are computed on one device. Parameters stay `dtype`; autocast narrows what can be narrowed.

    Whether an update was finite is recorded on the device, because reading it at once would make the CPU wait for the
    GPU. After the first bad update every later one is skipped too, so that the weights are still those from before it
    when `raise_if_not_finite` reports it.
    """

    name: str  # fp32, bf16, fp16 or fp64
    device: torch.device
    reason: str = ""  # why this precision
    scaler: torch.amp.GradScaler = field(init=False)
    refused: torch.Tensor = field(init=False)  # number of updates refused: the first bad one and all after it
    first_bad: torch.Tensor = field(init=False)  # loss and gradient norm of the first bad one
    _known_scale: float | None = field(default=None, init=False)  # cached: get_scale() waits for the GPU

    def __post_init__(self) -> None:
        """Scale the loss in fp16 only, whose smallest gradients would become zero. A disabled scaler does nothing."""
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
        self.refused = torch.zeros((), dtype=torch.int64, device=self.device)
        self.first_bad = torch.zeros(2, dtype=self.dtype, device=self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, gradients and optimizer state."""
        return torch.float64 if self.name == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager:
        """For the forward pass, in training and evaluation alike."""
        if self.name not in AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.name])

    @property
    def checks_every_update(self) -> bool:
        """Whether each update is checked at once: cheap but on CUDA, and in fp16 the schedule depends on it."""
        return self.device.type != "cuda" or self.scaler.is_enabled()

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Update the weights, unless the loss or the gradient norm is NaN or infinite.

        Returns:
            False if the scaler skipped the update because fp16 gradients overflowed, which is normal. An update refused
            for NaN or infinity is not reported here but by `raise_if_not_finite`.
        """
        if not self.scaler.is_enabled():
            self._record(loss, grad_norm)
            self._step_unless_refused(optimizer)
            return True
        self._record(loss, torch.zeros_like(loss))  # inf gradients are normal here, and the scaler skips them
        scale = self._known_scale or self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        self._known_scale = self.scaler.get_scale()  # the one wait for the GPU in an fp16 update
        return self._known_scale >= scale  # the scale goes down after an overflow, and only then

    def raise_if_not_finite(self, update: int) -> None:
        """Read from the device whether the first `update` updates were finite.

        Raises:
            NonFiniteError: one was not; says which was the first.
        """
        if count := int(self.refused):
            loss, grad_norm = self.first_bad
            name, value = ("loss", loss) if not torch.isfinite(loss) else ("gradient norm", grad_norm)
            first = update - count + 1  # every update after the first bad one was refused too
            raise NonFiniteError(f"the {name} is {value.item()}", first)

    def _record(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        numbers = torch.stack([loss, grad_norm])
        self.first_bad = torch.where(self.refused > 0, self.first_bad, numbers)
        self.refused += (self.refused > 0) | ~torch.isfinite(numbers).all()

    def _step_unless_refused(self, optimizer: torch.optim.Optimizer) -> None:
        if not can_skip_on_device(optimizer):
            if not self.refused:
                optimizer.step()
            return
        # The two attributes through which torch's GradScaler tells a fused kernel to leave everything as it is.
        optimizer.grad_scale, optimizer.found_inf = None, (self.refused > 0).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's kernel can leave out a step by itself: torch's fused ones on CUDA, unless sharded."""
    first = optimizer.param_groups[0]["params"][0]
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return fused and first.is_cuda and not is_sharded(first)


def choose_compute(run: RunConfig) -> Precision:
    """The device and precision to compute in. Sets up threads and TF32.

    Raises:
        ConfigError: what was asked for is not available here.
    """
    device = choose_device(run.device)
    name, reason = choose_precision(run.precision, device)
    if run.fsdp:
        name, reason = _for_shards(name, reason, run)
    if run.tf32 and device.type != "cuda":
        raise ConfigError(f"--tf32 true: needs a CUDA device; this is {device}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = run.tf32  # torch's own default is yes, for convolutions only
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else set_threads()
    say(f"device: {device} ({where}), {name}: {reason}")
    return Precision(name, device, reason)


def _for_shards(name: str, reason: str, run: RunConfig) -> tuple[str, str]:
    if world_size() == 1:
        raise ConfigError("--fsdp true: needs several processes; start them with torchrun --nproc-per-node=N")
    if run.torch_compile == "on":
        raise ConfigError("--torch_compile on: does not work with --fsdp; leave out one of them")
    if name != "fp16":
        return name, reason
    if run.precision == "fp16":
        raise ConfigError("--precision fp16: its scaler does not support shards; bf16 or fp32 work with --fsdp")
    return "bf16", "the scaler of fp16 does not support shards"
