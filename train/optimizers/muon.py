"""Muon takes matrices only; a ViT also has biases, a convolution and embeddings. Those go to AdamW beside it.

Muon: K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/, which keeps the input embedding and the
head on AdamW as well; torch.optim.Muon.
"""

from typing import Any

import torch
from torch import nn

from train.errors import ConfigError


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon for the matrices inside the encoder, AdamW for all other parameters, as one optimizer."""

    def __init__(
        self, model: nn.Module, groups: list[dict[str, Any]], learning_rate: float, options: dict[str, Any]
    ) -> None:
        """`options` are Muon's. Its steps are scaled to AdamW's size, so that one learning rate serves both.

        Raises:
            ConfigError: Muon refuses an option.
        """
        hidden = {
            parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and "classifier" not in name.split(".")
        }
        inner = _part(groups, lambda parameter: parameter in hidden)
        outer = _part(groups, lambda parameter: parameter not in hidden)
        if not inner:
            raise ConfigError(
                "--optim muon: is for matrices inside the encoder, all of which --freeze keeps; try adamw"
            )
        try:
            self.muon = torch.optim.Muon(inner, lr=learning_rate, **({"adjust_lr_fn": "match_rms_adamw"} | options))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"--optim muon: {error}") from error
        self.adamw = torch.optim.AdamW(outer, lr=learning_rate, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {"lr": learning_rate})
        self._share()

    def _share(self) -> None:
        """Both halves work on this optimizer's groups and state, so a schedule or a checkpoint sees one optimizer."""
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any optimizer; it replaces groups and state, so they are shared again."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; a closure is not supported."""
        self.muon.step()
        self.adamw.step()


def _part(groups: list[dict[str, Any]], wanted: Any) -> list[dict[str, Any]]:
    parts = [group | {"params": [parameter for parameter in group["params"] if wanted(parameter)]} for group in groups]
    return [part for part in parts if part["params"]]
