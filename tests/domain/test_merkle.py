"""The tree against the known vectors, against the definition, and its proofs over all sizes."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.merkle import (
    EMPTY_ROOT,
    Growing,
    Place,
    assemble,
    consistency_ranges,
    cover,
    fold,
    grow,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The vectors that implementations of Certificate Transparency share (github.com/transparency-dev
# /merkle, proof/verify_test.go): eight entries, the root of each prefix, and some proofs.
ENTRIES = [
    bytes.fromhex(entry)
    for entry in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (leaf, size): how the hashes of its proof begin
INCLUSION = {
    (0, 1): (),
    (0, 8): ("96a296d2", "5f083f0a", "6b47aaf2"),
    (5, 8): ("bc1a0643", "ca854ea1", "d37ee418"),
    (2, 3): ("fac54203",),
    (1, 5): ("6e340b9c", "5f083f0a", "bc1a0643"),
}
CONSISTENCY = {
    (1, 1): (),
    (1, 8): ("96a296d2", "5f083f0a", "6b47aaf2"),
    (6, 8): ("0ebc5d34", "ca854ea1", "d37ee418"),
    (2, 5): ("5f083f0a", "bc1a0643"),
    (6, 7): ("0ebc5d34", "b08693ec", "d37ee418"),
}
MOST = 200
LEAVES = [leaf_hash(bytes([n])) for n in range(MOST)]
_, KNOWN = grow(0, {}, [leaf_hash(entry) for entry in ENTRIES])
_, TREE = grow(0, {}, LEAVES)


def root(tree: dict[Place, bytes], size: int) -> bytes:
    return fold([tree[place] for place in cover(0, size)])


def by_definition(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(by_definition(leaves[:k]), by_definition(leaves[k:]))


def test_the_known_vectors() -> None:
    assert [root(KNOWN, size).hex() for size in range(1, 9)] == ROOTS
    for (index, size), begins in INCLUSION.items():
        proof = assemble(inclusion_ranges(index, size), KNOWN)
        assert tuple(each.hex()[:8] for each in proof) == begins
    for (old, new), begins in CONSISTENCY.items():
        proof = assemble(consistency_ranges(old, new), KNOWN)
        assert tuple(each.hex()[:8] for each in proof) == begins


def test_every_root_is_that_of_the_definition() -> None:
    growing = Growing()
    assert growing.root() == root(TREE, 0) == EMPTY_ROOT
    for size in range(1, MOST + 1):
        growing.append(LEAVES[size - 1])
        assert growing.root() == root(TREE, size) == by_definition(LEAVES[:size])
    assert growing.size == MOST


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_growing_in_steps_is_growing_at_once(first: int, second: int) -> None:
    first, second = sorted((first, second))
    size, grown = grow(0, {}, LEAVES[:first])
    edge = {place: grown[place] for place in cover(0, size)}
    size, more = grow(size, edge, LEAVES[first:second])
    assert size == second
    assert not grown.keys() & more.keys()
    _, at_once = grow(0, {}, LEAVES[:second])
    assert grown | more == at_once


def test_every_leaf_of_every_tree_is_proven_and_no_other() -> None:
    for size in range(1, MOST + 1):
        whole = root(TREE, size)
        for index in range(size):
            proof = assemble(inclusion_ranges(index, size), TREE)
            assert verify_inclusion(index, size, LEAVES[index], proof, whole)
            if index % 8 == 1:
                assert not verify_inclusion(index, size, LEAVES[index - 1], proof, whole)


def test_every_tree_is_proven_to_be_a_prefix_of_every_larger_one() -> None:
    roots = [root(TREE, size) for size in range(MOST + 1)]
    for new in range(MOST + 1):
        for old in range(new + 1):
            proof = assemble(consistency_ranges(old, new), TREE)
            assert verify_consistency(old, new, proof, roots[old], roots[new])
            if old % 8 == 1 and old < new:
                assert not verify_consistency(old, new, proof, roots[new], roots[new])
                assert not verify_consistency(old, new, proof, roots[old], roots[old])


@given(st.data())
def test_a_proof_that_was_touched_proves_nothing(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, MOST), "size")
    index = data.draw(st.integers(0, size - 1), "index")
    old = data.draw(st.integers(1, size - 1), "old")
    whole, before = root(TREE, size), root(TREE, old)

    def included(proof: Sequence[bytes]) -> bool:
        return verify_inclusion(index, size, LEAVES[index], proof, whole)

    def consistent(proof: Sequence[bytes]) -> bool:
        return verify_consistency(old, size, proof, before, whole)

    for ranges, holds in (
        (inclusion_ranges(index, size), included),
        (consistency_ranges(old, size), consistent),
    ):
        proof = assemble(ranges, TREE)
        assert holds(proof)
        place = data.draw(st.integers(0, len(proof) - 1), "place")
        wrong = proof[place][:-1] + bytes([proof[place][-1] ^ 1])
        assert not holds([*proof[:place], wrong, *proof[place + 1 :]])
        assert not holds(proof[:-1])
        assert not holds([*proof, proof[-1]])
        assert not holds([b"", *proof])
        assert not holds([*proof[:place], proof[place][:-1], *proof[place + 1 :]])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 3), (8, 8)])
def test_what_is_not_in_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_ranges(index, size)
    assert not verify_inclusion(index, size, LEAVES[0], [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(2, 1), (-1, 1)])
def test_a_tree_is_no_prefix_of_a_smaller_one(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no part"):
        consistency_ranges(old, new)
    assert not verify_consistency(old, new, [], LEAVES[0], LEAVES[0])


def test_equal_trees_and_the_empty_one_need_no_proof() -> None:
    assert verify_consistency(3, 3, [], LEAVES[0], LEAVES[0])
    assert not verify_consistency(3, 3, [], LEAVES[0], LEAVES[1])
    assert not verify_consistency(3, 3, [LEAVES[0]], LEAVES[0], LEAVES[0])
    assert verify_consistency(0, 3, [], EMPTY_ROOT, LEAVES[1])
    assert not verify_consistency(0, 3, [], LEAVES[0], LEAVES[1])
    assert not verify_consistency(1, 3, [], LEAVES[0], LEAVES[1])
