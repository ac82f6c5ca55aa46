"""The key that signs the audit log's checkpoints, and receipts: made once, sealed with the master
key.

Its name is the log's origin: the address that clients are told when the key is made, without its
scheme. A log keeps its origin for life, wherever it is served from later.
"""

import base64
import re
from urllib.parse import quote
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.audit_log import AuditLogKeyRow
from shared.config import Settings
from shared.domain.audit import canonical_json
from shared.domain.checkpoint import Checkpoint, VerifierKey, note
from shared.keys import CARD_ALGORITHM, Sealer, key_id

_PURPOSE = "ainfera audit log key v1"
RECEIPT_TYPE = "ainfera-receipt"
_OWNER = UUID(int=0)
_PATH = "/v1/audit"
_RAW = serialization.Encoding.Raw
_PEM = serialization.Encoding.PEM

# of two that make it at the same moment, one writes it and both read it
_WRITE = text(
    """
INSERT INTO audit_log_keys (name, public_key, private_key_sealed)
VALUES (:name, :public_key, :private_key_sealed) ON CONFLICT DO NOTHING
"""
)


class LogKey:
    """The private half, opened; `verifier` is what the world knows of it."""

    def __init__(self, name: str, private: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        public = self._private.public_key()
        raw = public.public_bytes(_RAW, serialization.PublicFormat.Raw)
        self.verifier = VerifierKey(name, raw)
        kid = key_id(public_pem(self.verifier))
        header = {"alg": CARD_ALGORITHM, "kid": kid, "typ": RECEIPT_TYPE}
        self._jws_header = _base64url(canonical_json(header).encode())

    def sign(self, size: int, root: bytes) -> str:
        """The signed note that says: the first `size` leaves of the log have this root."""
        checkpoint = Checkpoint(self.verifier.name, size, root)
        signature = self._private.sign(checkpoint.text().encode())
        return note(checkpoint, self.verifier, signature)

    def sign_receipt(self, payload: bytes) -> str:
        """A detached JWS (RFC 7515 appendix F) over `payload`: `header..signature`.

        What a JWS signs has no line breaks and a checkpoint has three: neither passes for the
        other, though one key signs both. The same payload has the same signature (RFC 8032).
        """
        signed = f"{self._jws_header}.{_base64url(payload)}".encode()
        return f"{self._jws_header}..{_base64url(self._private.sign(signed))}"


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def check_signature(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature (RFC 8032) is the key's; `public` is its 32 bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_pem(key: VerifierKey) -> str:
    """The public key as PEM, for a key set."""
    public = Ed25519PublicKey.from_public_bytes(key.public)
    return public.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(
        "ascii"
    )


def origin(settings: Settings) -> str:
    """`api.example.com/v1/audit`: what a log is called that is made with these settings."""
    address = re.sub(r"^[a-z]+://", "", settings.base_url)
    return quote(address, safe="/:[]@") + _PATH


async def log_key(session: AsyncSession, settings: Settings) -> LogKey:
    """The log's key, made if there is none yet; the caller commits.

    Raises `SealBroken` where it was sealed with another master key.
    """
    sealer = Sealer(settings.master_key.get_secret_value(), _PURPOSE)
    row = await session.scalar(select(AuditLogKeyRow))
    if row is None:
        fresh = Ed25519PrivateKey.generate().private_bytes_raw()
        made = LogKey(origin(settings), fresh).verifier
        await session.execute(
            _WRITE,
            {
                "name": made.name,
                "public_key": made.public,
                "private_key_sealed": sealer.seal(fresh, _OWNER),
            },
        )
        row = (await session.scalars(select(AuditLogKeyRow))).one()
    return LogKey(row.name, sealer.open(row.private_key_sealed, _OWNER))


class OpenedKey:
    """The log's key for a process that signs often: looked up and opened once."""

    def __init__(self) -> None:
        self._key: LogKey | None = None

    async def get(self, session: AsyncSession, settings: Settings) -> LogKey:
        """As `log_key`, and what it made is committed."""
        if self._key is None:
            self._key = await log_key(session, settings)
            await session.commit()
        return self._key
