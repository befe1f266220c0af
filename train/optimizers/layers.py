"""Learning rates that fall from the head of a transformer to its embeddings."""

from typing import Any

from torch import nn

from train.errors import ConfigError


def by_layer(
    model: nn.Module, groups: list[dict[str, Any]], learning_rate: float, decay: float
) -> list[dict[str, Any]]:
    """Parameter groups split by layer, each with its own `lr`.

    The head and the last norm have the learning rate itself, block i of n (from 0) decay**(n - i) of it, and the
    embeddings decay**(n + 1) (Bao et al., BEiT, 2021; timm's layer decay).

    Args:
        model: with its transformer blocks in `blocks`.
        groups: of all parameters.
        learning_rate: of the head.
        decay: of one layer to the one below it.

    Raises:
        ConfigError: the model has no `blocks`.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ConfigError(f"--layer_decay {decay}: {type(model).__name__} has no attribute `blocks` with its layers")
    below = {parameter: len(blocks) - i for i, block in enumerate(blocks) for parameter in block.parameters()}
    embeddings = {parameter for name, parameter in model.named_parameters() if "embeddings" in name.split(".")}
    below |= dict.fromkeys(embeddings, len(blocks) + 1)
    split = []
    for group in groups:
        for number in sorted({below.get(parameter, 0) for parameter in group["params"]}):
            params = [parameter for parameter in group["params"] if below.get(parameter, 0) == number]
            split.append(group | {"params": params, "lr": learning_rate * decay**number})
    return split
