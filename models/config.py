"""What a checkpoint's config.json says of the network: its shape, checked before memory is taken for it."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS

from models import ModelError

# The largest whole number that makes sense: the largest ViT published has 22 billion parameters in 48 layers.
COUNTS = {
    "hidden_size": 16_384,
    "num_hidden_layers": 512,
    "num_attention_heads": 1_024,
    "intermediate_size": 131_072,
    "mlp_ratio": 64,  # of DINOv2: intermediate_size / hidden_size
    "num_channels": 1_024,
    "num_register_tokens": 1_024,
}
SIDES = {"image_size": 8_192, "patch_size": 8_192}  # pixels: one number, or height and width
MOST_PARAMETERS = 30_000_000_000
BELOW = {
    "hidden_dropout_prob": 1,
    "attention_probs_dropout_prob": 1,
    "drop_path_rate": 1,
    "layer_norm_eps": 1,
    "initializer_range": 100,
    "layerscale_value": 100,
}
SWITCHES = ("qkv_bias", "use_swiglu_ffn", "use_mask_token")
ACTIVATIONS = ACT2CLS.keys() - {"xielu"}  # which imports a package of its own
# Entries that would change what the network returns or what code runs, with the value at which they do nothing.
UNUSED = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "torchscript": False,
    "auto_map": None,
    "trust_remote_code": None,
}


def read_shape(config: dict[str, Any], default: PreTrainedConfig) -> dict[str, Any]:
    """The arguments of a family's config without its classes. All other entries are left out, whatever they would do.

    Args:
        config: the content of a config.json.
        default: what the library has for all that it does not mention; also says which entries the family has.

    Raises:
        ModelError: names the entry that cannot be used, and its value.
    """
    names = [name for name in (*COUNTS, *SIDES, *BELOW, *SWITCHES, "hidden_act") if hasattr(default, name)]
    shape = {name: config.get(name, getattr(default, name)) for name in names}
    for name, value in shape.items():
        if name in COUNTS:
            _refuse_unless(_is_count(value, COUNTS[name]), name, value, f"a whole number from 1 to {COUNTS[name]}")
        elif name in SIDES:
            most = SIDES[name]
            fits = all(_is_count(side, most) for side in sides(value)) and len(sides(value)) == 2
            _refuse_unless(fits, name, value, f"a whole number of pixels from 1 to {most}, or two of them")
        elif name in BELOW:
            fits = type(value) in (int, float) and 0 <= value < BELOW[name]  # not so for NaN
            _refuse_unless(fits, name, value, f"a number from 0 to less than {BELOW[name]}")
            shape[name] = float(value)
        elif name in SWITCHES:
            _refuse_unless(isinstance(value, bool), name, value, "true or false")
    known = isinstance(shape["hidden_act"], str) and shape["hidden_act"] in ACTIVATIONS
    _refuse_unless(known, "hidden_act", shape["hidden_act"], f"one of {', '.join(sorted(ACTIVATIONS))}")
    quantized = config.get("quantization_config")
    _refuse_unless(quantized is None, "quantization_config", quantized, "weights that are not quantized")
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    _refuse_unless(width % heads == 0, "hidden_size", width, f"a multiple of num_attention_heads {heads}")
    small_enough = all(p <= i for p, i in zip(sides(shape["patch_size"]), sides(shape["image_size"]), strict=True))
    _refuse_unless(small_enough, "patch_size", shape["patch_size"], f"at most image_size {shape['image_size']}")
    return shape


def check_parameters(shape: dict[str, Any], stored: int | None) -> None:
    """Refuse a network that is far larger than its weights, before memory is taken for it.

    Args:
        shape: of `read_shape`.
        stored: bytes of the files with the weights; None if that is not known yet.

    Raises:
        ModelError: names the number of parameters and the entries that ask for so many.
    """
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    inner = shape["intermediate_size"] if "intermediate_size" in shape else width * shape["mlp_ratio"]
    (height, across), (patch_height, patch_across) = sides(shape["image_size"]), sides(shape["patch_size"])
    patches = (height // patch_height) * (across // patch_across)
    layer = 4 * width * width + 2 * width * inner
    total = layers * layer + width * (patches + shape["num_channels"] * patch_height * patch_across)
    # Of no format does a parameter take less than a byte.
    if total > (most := MOST_PARAMETERS if stored is None else min(MOST_PARAMETERS, stored)):
        sizes = ", ".join(f"{name} {value}" for name, value in shape.items() if name in COUNTS | SIDES)
        why = f"its weights are {stored} bytes" if most == stored else f"the most is {most}"
        raise ModelError(f"{sizes} make {total} parameters, but {why}")


def sides(size: Any) -> list[Any]:
    """`224` and `[224, 224]` -> height and width."""
    return list(size) if isinstance(size, list | tuple) else [size, size]


def notes_on(config: dict[str, Any]) -> list[str]:
    """What a config.json asks for and does not get, for people to read."""
    unused = [name for name, harmless in UNUSED.items() if config.get(name, harmless) not in (harmless, None)]
    notes = [f"config.json's {', '.join(unused)} not used"] if unused else []
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):  # pipelines would apply sigmoid, or nothing, to the logits
        notes.append(f"problem_type {shown(problem)} dropped: each image has one class here")
    return notes


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # a bool is an int, too


def _refuse_unless(fits: bool, name: str, value: Any, expected: str) -> None:
    if not fits:
        raise ModelError(f"{name} is {shown(value)}, expected {expected}")


def shown(value: Any) -> str:
    """A value of a file as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
