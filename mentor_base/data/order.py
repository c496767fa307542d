"""The order of a pass through many rows, without writing it down: place -> row, each row once.

A list of three million shuffled numbers takes 100 MB and seconds in every worker and pass. A Feistel network over the
next even number of bits is a permutation that can be asked for one place at a time; places that leave the range walk
on until they are back in it (cycle walking), so that any length has its permutation.
"""

from __future__ import annotations

from hashlib import blake2b

ROUNDS = 6


def shuffled(place: int, length: int, key: str) -> int:
    """The row in [0, length) at ``place`` of the order named ``key``; each place has a row of its own."""
    if not 0 <= place < length:
        raise IndexError(f"expected a place in [0, {length}), found {place}")
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    secret = blake2b(key.encode(), digest_size=32).digest()
    while True:
        place = _permuted(place, half, secret)
        if place < length:
            return place


def _permuted(number: int, half: int, secret: bytes) -> int:
    """A permutation of the numbers below 4^half."""
    mask = (1 << half) - 1
    left, right = number >> half, number & mask
    for step in range(ROUNDS):
        digest = blake2b(b"%d/%d" % (step, right), digest_size=8, key=secret).digest()
        left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
    return left << half | right
