"""What a verification of the audit trail finds, and what an auditor brings to it."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Fault(StrEnum):
    """By what a fault was found."""

    CHAIN = "chain"
    HEAD = "head"
    LEAF = "leaf"
    CHECKPOINT = "checkpoint"
    EXPORTED = "exported checkpoint"
    KEY = "key"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class Finding:
    fault: Fault
    what: str


@dataclass(slots=True)
class Report:
    """What was checked and what was found; nothing found is a bundle that holds.

    `made_at` is when the bundle says that it was made, `size` that of its newest checkpoint.
    `newer` exported checkpoints are newer than the bundle, and were not held against it. `whole` is
    False where nothing tells whether records are missing at the end.
    """

    agents: int = 0
    events: int = 0
    leaves: int = 0
    checkpoints: int = 0
    exported: int = 0
    unsigned: int = 0
    made_at: str | None = None
    size: int = 0
    newer: int = 0
    whole: bool = True
    findings: list[Finding] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that the auditor has from elsewhere, where it stands, and when it was signed."""

    where: str
    note: str
    at: datetime | None = None


def moment(written: str) -> datetime | None:
    """A moment in ISO 8601, of a known zone; None for what is none."""
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
