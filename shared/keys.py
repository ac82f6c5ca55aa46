"""Secrets and signatures: API keys, the sealing of private keys, agent cards.

An API key is shown once and stored as its SHA-256, which is enough because a key is 32 random
bytes: there is nothing to guess. An agent's Ed25519 private key is stored sealed with AES-GCM
under a key derived from the master key (HKDF, RFC 5869), bound to the agent's id. A card is a
compact JWS (RFC 7515) with `alg` EdDSA (RFC 8037); its `kid` is the RFC 7638 thumbprint.
"""

import hashlib
import hmac
import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OKPKey

API_KEY_PREFIX = "ainfera_"
CARD_ALGORITHM = "EdDSA"
SHORTEST_MASTER_KEY = 32

_SEAL_VERSION = b"\x01"
_NONCE_BYTES = 12

# RFC 9864 would rather have "Ed25519" in `alg`; clients of this system expect "EdDSA".
warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)


class SealBroken(Exception):
    """A sealed secret that was not sealed for this owner with this master key."""


class CardInvalid(Exception):
    """A card that does not verify; the message says why."""


def mint_api_key() -> str:
    """A new key: the prefix and 32 random bytes, URL-safe."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def hash_api_key(api_key: str) -> bytes:
    """What is stored of a key: 32 bytes."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).digest()


def same_secret(given: str, expected: str) -> bool:
    """Compared in constant time; a secret that is not set equals nothing."""
    if not expected:
        return False
    return hmac.compare_digest(
        given.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass")
    )


class Sealer:
    """Seals secrets for the database. Raises `ValueError` for a master key that is too short."""

    def __init__(self, master_key: str, purpose: str) -> None:
        if len(master_key) < SHORTEST_MASTER_KEY:
            raise ValueError(
                f"AINFERA_MASTER_KEY must have at least {SHORTEST_MASTER_KEY} characters"
            )
        derive = HKDF(hashes.SHA256(), length=32, salt=None, info=purpose.encode())
        self._cipher = AESGCM(derive.derive(master_key.encode()))

    def seal(self, secret: bytes, owner: UUID) -> bytes:
        """A version byte, the nonce, the ciphertext with its tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return _SEAL_VERSION + nonce + self._cipher.encrypt(nonce, secret, owner.bytes)

    def open(self, sealed: bytes, owner: UUID) -> bytes:
        """The secret. Raises `SealBroken`."""
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if sealed[:1] != _SEAL_VERSION or len(nonce) != _NONCE_BYTES:
            raise SealBroken("not a sealed secret")
        try:
            return self._cipher.decrypt(nonce, ciphertext, owner.bytes)
        except InvalidTag as error:
            raise SealBroken("the seal does not open with this master key") from error


def agent_key_sealer(master_key: str) -> Sealer:
    """The sealer of agents' private keys."""
    return Sealer(master_key, "ainfera agent private keys v1")


def request_sealer(master_key: str) -> Sealer:
    """The sealer of requests and results that are kept; the owner is the inference's id."""
    return Sealer(master_key, "ainfera kept requests v1")


@dataclass(frozen=True, slots=True)
class AgentKey:
    """A fresh Ed25519 key pair: the private key as PKCS 8 PEM, not yet sealed."""

    private_pem: bytes
    public_pem: str


def mint_agent_key() -> AgentKey:
    key = OKPKey.generate_key("Ed25519")
    return AgentKey(key.as_pem(private=True), key.as_pem(private=False).decode("ascii"))


def key_id(public_pem: str) -> str:
    """The `kid` of a public key: its RFC 7638 thumbprint."""
    return OKPKey.import_key(public_pem).thumbprint()


def sign_card(payload: Mapping[str, Any], private_pem: bytes) -> tuple[str, str]:
    """`(compact JWS, kid)` over the payload's JSON."""
    key = OKPKey.import_key(private_pem)
    kid = key.thumbprint()
    token = jws.serialize_compact(
        {"alg": CARD_ALGORITHM, "kid": kid},
        orjson.dumps(payload),
        key,
        algorithms=[CARD_ALGORITHM],
    )
    return token, kid


def read_card(token: str) -> tuple[dict[str, Any], str | None]:
    """`(payload, kid)` as the card claims them, unverified. Raises `CardInvalid`."""
    try:
        card = jws.extract_compact(token.encode("ascii"))
        payload = orjson.loads(card.payload)
    except (JoseError, ValueError) as error:
        raise CardInvalid("not a compact JWS over a JSON object") from error
    if not isinstance(payload, dict):
        raise CardInvalid("not a compact JWS over a JSON object")
    kid = card.headers().get("kid")
    return payload, kid if isinstance(kid, str) else None


def verify_card(token: str, public_pem: str) -> None:
    """Raises `CardInvalid` unless the card was signed with the key's private half."""
    try:
        jws.deserialize_compact(token, OKPKey.import_key(public_pem), algorithms=[CARD_ALGORITHM])
    except (JoseError, ValueError) as error:
        raise CardInvalid("the signature does not match the agent's key") from error


def public_jwk(public_pem: str) -> dict[str, Any]:
    """The public key as a JWK (RFC 7517) for a key set."""
    key = OKPKey.import_key(public_pem)
    return {
        **key.as_dict(private=False),
        "kid": key.thumbprint(),
        "use": "sig",
        "alg": CARD_ALGORITHM,
    }
