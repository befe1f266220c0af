"""Seeds as a pure function of where we are in a run, so that no generator state has to be saved or restored."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed from names and numbers, such as `derive_seed(seed, "augment", epoch, index)`.

    blake2b rather than `hash()`, which changes from process to process, and rather than arithmetic on
    the parts, which makes neighbouring seeds collide. 32 bits, because torch's CPU generator (mt19937)
    ignores the rest.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & 0xFFFFFFFF
