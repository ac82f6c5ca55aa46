"""An audit bundle: chains, log and checkpoints in a file, and what an auditor checks of them.

A bundle is JSON lines, one record each, in this order: one `log`; all `checkpoint`s, by size;
then for each agent its `event`s, in the chain's order, and its `head`; then the `leaf` records;
last the `end`, which counts and hashes all lines before it, so that a file that broke off shows.

A bundle of everything has every leaf, in the log's order: the tree is built anew and each
checkpoint held against it. A bundle of some agents has only their leaves, each with its proof of
inclusion in the newest checkpoint, and with each checkpoint the proof that it is a prefix of the
next one; the other agents' leaves stay unseen.

Nothing in a bundle is believed. Trust comes from outside: the log's key, and checkpoints that the
auditor kept (or that were exported where the database's owner cannot write).
"""

import hashlib
from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Index = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class LogRecord(_Record):
    """`key` is the log's verifier key; `everything` says whether the bundle has all of the log.

    `at` is the moment whose state it is (ISO 8601, the database's clock), `size` that of the newest
    checkpoint there was then. Version 1 says neither, and has no `end`.
    """

    type: Literal["log"] = "log"
    version: Literal[1, 2] = 2
    key: str
    everything: bool
    at: str | None = None
    size: int | None = None


class CheckpointRecord(_Record):
    """`proof`: that this one is a prefix of the next; not in a bundle of everything."""

    type: Literal["checkpoint"] = "checkpoint"
    note: str
    proof: list[str] = []


class EventRecord(_Record):
    """`payload` is the canonical text that was hashed, not the object that it means."""

    type: Literal["event"] = "event"
    agent_id: str
    seq: int
    event_type: str
    payload: str
    previous_hash: str | None
    event_hash: str


class HeadRecord(_Record):
    """Where the database says that an agent's chain ends, and how far of it the log has come.

    `logged` is None in version 1.
    """

    type: Literal["head"] = "head"
    agent_id: str
    seq: int
    hash: str | None
    logged: int | None = None


class LeafRecord(_Record):
    """`hash` in base64; `proof`: its inclusion in the newest checkpoint, unless all is there."""

    type: Literal["leaf"] = "leaf"
    index: Index
    agent_id: str
    seq: int
    hash: str
    proof: list[str] = []


class EndRecord(_Record):
    """How many records of each type are before it; `digest` is the SHA-256 of their lines, in hex.

    It is not signed: it shows what broke off or was damaged. Who rewrites a bundle can rewrite it.
    """

    type: Literal["end"] = "end"
    records: dict[str, int]
    digest: str


Record = Annotated[
    LogRecord | CheckpointRecord | EventRecord | HeadRecord | LeafRecord | EndRecord,
    Field(discriminator="type"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class Tally:
    """Counts and hashes the lines of a bundle, whether they are written or read."""

    def __init__(self) -> None:
        self._records: Counter[str] = Counter()
        self._hashed = hashlib.sha256()

    def add(self, record: Record, line: bytes) -> None:
        """`line` is the record as it stands in the file, with the newline that ends it."""
        self._records[record.type] += 1
        self._hashed.update(line)

    def end(self) -> EndRecord:
        """What an end record says after these lines."""
        return EndRecord(records=dict(self._records), digest=self._hashed.hexdigest())
