"""Ids are UUIDs of version 7: unique without asking anybody, and sorted by time in an index."""

import os
import time
from uuid import UUID


def mint_id() -> UUID:
    """A new UUIDv7 (RFC 9562): 48 bits of milliseconds, then randomness."""
    value = int.from_bytes(os.urandom(10), "big")
    value &= ~(0xF << 76) & ~(0x3 << 62)
    return UUID(int=(time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | 0x2 << 62 | value)
