"""API keys, seals and card signatures."""

from uuid import UUID, uuid4

import pytest

from shared.keys import (
    API_KEY_PREFIX,
    CardInvalid,
    SealBroken,
    Sealer,
    agent_key_sealer,
    hash_api_key,
    key_id,
    mint_agent_key,
    mint_api_key,
    public_jwk,
    read_card,
    same_secret,
    sign_card,
    verify_card,
)

MASTER = "m" * 32
OWNER = UUID(int=7)


def test_an_api_key_is_long_and_its_hash_is_not_the_key() -> None:
    keys = {mint_api_key() for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        assert key.startswith(API_KEY_PREFIX)
        assert len(key) - len(API_KEY_PREFIX) >= 43  # 32 bytes in base64
        assert len(hash_api_key(key)) == 32
        assert key.encode() not in hash_api_key(key)


def test_a_secret_that_is_not_set_equals_nothing() -> None:
    assert same_secret("a", "a")
    assert not same_secret("a", "b")
    assert not same_secret("", "")
    assert not same_secret("é", "e")


def test_a_seal_opens_for_its_owner_alone() -> None:
    sealer = agent_key_sealer(MASTER)
    sealed = sealer.seal(b"secret", OWNER)
    assert b"secret" not in sealed
    assert sealer.seal(b"secret", OWNER) != sealed
    assert agent_key_sealer(MASTER).open(sealed, OWNER) == b"secret"
    for other in (agent_key_sealer("n" * 32), Sealer(MASTER, "another purpose")):
        with pytest.raises(SealBroken):
            other.open(sealed, OWNER)
    with pytest.raises(SealBroken):
        sealer.open(sealed, uuid4())


@pytest.mark.parametrize("at", [0, 1, 13, -1])
def test_a_seal_with_a_changed_byte_does_not_open(at: int) -> None:
    sealer = agent_key_sealer(MASTER)
    sealed = bytearray(sealer.seal(b"secret", OWNER))
    sealed[at] ^= 1
    with pytest.raises(SealBroken):
        sealer.open(bytes(sealed), OWNER)


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"x" * 12])
def test_what_is_no_seal_does_not_open(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        agent_key_sealer(MASTER).open(sealed, OWNER)


@pytest.mark.parametrize("short", ["", "m" * 31])
def test_a_short_master_key_is_refused(short: str) -> None:
    with pytest.raises(ValueError, match="AINFERA_MASTER_KEY"):
        agent_key_sealer(short)


def test_a_card_says_what_was_signed_and_by_whom() -> None:
    key = mint_agent_key()
    token, kid = sign_card({"agent_id": "a", "name": "é"}, key.private_pem)
    assert read_card(token) == ({"agent_id": "a", "name": "é"}, kid)
    assert kid == key_id(key.public_pem) == public_jwk(key.public_pem)["kid"]
    verify_card(token, key.public_pem)
    with pytest.raises(CardInvalid):
        verify_card(token, mint_agent_key().public_pem)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "e30.e30.",
        "eyJhbGciOiJub25lIn0.e30.",
        "eyJhbGciOiJIUzI1NiJ9.e30.AAAA",
        "eyJhbGciOiJFZERTQSJ9.W10.AAAA",
    ],
)
def test_a_card_without_a_good_signature_is_invalid(token: str) -> None:
    key = mint_agent_key()
    with pytest.raises(CardInvalid):
        verify_card(token, key.public_pem)


@pytest.mark.parametrize("token", ["", "a.b.c", "eyJhbGciOiJFZERTQSJ9.W10.AAAA", "é"])
def test_what_is_no_card_cannot_be_read(token: str) -> None:
    with pytest.raises(CardInvalid):
        read_card(token)
