"""Whether a decision explores, and what: drawn from its seed alone, so that it replays.

    digest = SHA-256 of the text `<seed>:explore`
    draw   = its first 8 bytes, as a big-endian integer, over 2^64: a number in [0, 1)
    place  = its next 8 bytes, the same way, modulo the number of alternatives

A decision explores where `draw < share`. The remainder prefers no alternative by more than one
part in 2^60.
"""

import hashlib
from decimal import Decimal

from shared.domain.pricing import NANO, to_nano

_DRAW_BITS = 64


def drawn(seed: str, share: Decimal, alternatives: int) -> int | None:
    """Which of the alternatives, from 0, is tried in place of the first; None: none is.

    `share` is the part of decisions that explore, in 0..1 with at most nine places.
    """
    if share <= 0 or alternatives < 1:
        return None
    digest = hashlib.sha256(f"{seed}:explore".encode()).digest()
    draw = int.from_bytes(digest[:8], "big")
    if draw * NANO >= to_nano(share) << _DRAW_BITS:
        return None
    return int.from_bytes(digest[8:16], "big") % alternatives
