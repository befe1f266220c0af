"""Randomness as a pure function of where we are, so that nothing random has to be saved or restored."""

import hashlib


def key(*parts: int | str) -> int:
    """A 32-bit seed from a path of names and numbers, such as `key(seed, "augment", epoch, index)`.

    blake2b rather than `hash()`, which changes from process to process, and rather than arithmetic on
    the parts, which makes neighbouring seeds collide. 32 bits, because torch's CPU generator (mt19937)
    ignores the rest.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & 0xFFFFFFFF
