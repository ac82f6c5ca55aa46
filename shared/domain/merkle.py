"""The Merkle tree of a log: hashes, growth, and proofs of inclusion and of consistency.

RFC 9162 section 2.1 (the tree of RFC 6962, with SHA-256): a leaf hashes as `0x00 || entry`, a
node as `0x01 || left || right`, and a tree of n > 1 leaves splits at the largest power of two
smaller than n. Hashes are 32 bytes; sizes and indexes count leaves.

Only complete subtrees are ever stored, each at its `Place`: `(level, index)` is the subtree over
the leaves `index << level` up to, not including, `(index + 1) << level`; level 0 is the leaves.
They never change once they are there. What a proof or a root needs of an incomplete part is
folded from a few of them.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

Place = tuple[int, int]
Range = tuple[int, int]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


# -- which subtrees, and how they fold --------------------------------------------------------


def cover(begin: int, end: int) -> list[Place]:
    """The complete subtrees that make up the leaves from `begin` to `end`, left to right.

    `begin` has to be where a subtree of that many leaves may begin, as it is in every proof.
    """
    places = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        places.append((level, begin >> level))
        begin += 1 << level
    return places


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash over adjacent subtrees, as `cover` orders them; of none, that of the empty tree."""
    if not hashes:
        return EMPTY_ROOT
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded


def places_of(ranges: Iterable[Range]) -> set[Place]:
    """All that has to be looked up to `assemble` these ranges."""
    return {place for begin, end in ranges for place in cover(begin, end)}


def assemble(ranges: Iterable[Range], stored: Mapping[Place, bytes]) -> list[bytes]:
    """The hash of each range. Raises `KeyError` for a subtree that is not there."""
    return [fold([stored[place] for place in cover(*each)]) for each in ranges]


def grow(
    size: int, edge: Mapping[Place, bytes], leaves: Iterable[bytes]
) -> tuple[int, dict[Place, bytes]]:
    """Append leaf hashes to a tree of `size`; `(new size, all subtrees that became complete)`.

    `edge` has at least the subtrees of `cover(0, size)`. The result has the leaves too.
    """
    grown: dict[Place, bytes] = {}
    known = dict(edge)
    for leaf in leaves:
        level, index, hashed = 0, size, leaf
        known[level, index] = grown[level, index] = hashed
        while index & 1:
            hashed = node_hash(known[level, index - 1], hashed)
            level, index = level + 1, index >> 1
            known[level, index] = grown[level, index] = hashed
        size += 1
    return size, grown


class Growing:
    """A tree that is only ever appended to and asked for its root; it keeps O(log n) hashes."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[tuple[int, bytes]] = []

    def append(self, leaf: bytes) -> None:
        level, hashed = 0, leaf
        while self._edge and self._edge[-1][0] == level:
            hashed = node_hash(self._edge.pop()[1], hashed)
            level += 1
        self._edge.append((level, hashed))
        self.size += 1

    def root(self) -> bytes:
        return fold([hashed for _, hashed in self._edge])


# -- proofs ------------------------------------------------------------------------------------


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """What the proof that leaf `index` is in the tree of `size` consists of, in its order.

    PATH(m, D_n), RFC 9162 section 2.1.3.1. Raises `ValueError` for a leaf that is not in it.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    ranges: list[Range] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """What the proof that the tree of `old` leaves is a prefix of that of `new` consists of.

    PROOF(m, D_n), RFC 9162 section 2.1.4.1. Of equal sizes, and from the empty tree, it is empty.
    Raises `ValueError` for sizes that cannot be.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} is no part of one of {new}")
    if old in (0, new):
        return []
    ranges: list[Range] = []
    begin, end = 0, new
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    if begin:
        ranges.append((begin, end))
    return ranges[::-1]


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> bool:
    """RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size:
        return False
    node, last, hashed = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            return False
        if node & 1 or node == last:
            hashed = node_hash(sibling, hashed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            hashed = node_hash(hashed, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and hashed == root


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """RFC 9162 section 2.1.4.2. The empty tree is a prefix of every tree."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if any(len(each) != HASH_BYTES for each in proof):
        return False
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root
