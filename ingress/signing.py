"""Receipts are signed when they are read.

What is signed follows from rows that never change (an outcome, its audit event, a catalogue), and
an Ed25519 signature from what is signed: read twice, a receipt has the same signature twice. So
nothing is signed on a call's way, and nothing has to be stored. Not signed is the proof that the
event is in the audit log, which proves itself and grows with the log.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ingress.audit import prove
from shared.log_key import LogKey
from shared.models import AuditEventRow
from shared.receipt_verifier import canonical


def signed(receipt: Mapping[str, Any], key: LogKey) -> dict[str, Any]:
    """The receipt with its `signature`, a detached JWS over its canonical JSON."""
    return {**receipt, "signature": key.sign_receipt(canonical(receipt).encode())}


async def logged(s: AsyncSession, event: AuditEventRow | None) -> dict[str, Any] | None:
    """That a receipt's event is under the newest checkpoint; None while it is not yet.

    `s` sees everyone's leaves, as in `prove`.
    """
    if event is None:
        return None
    found = await prove(s, event)
    if not found.logged:
        return None
    return {
        "leaf_index": found.leaf_index,
        "proof": found.proof,
        "checkpoint": found.checkpoint,
    }
