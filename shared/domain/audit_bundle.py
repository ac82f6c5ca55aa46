"""An audit bundle: chains, log and checkpoints in a file, and what an auditor checks of them.

A bundle is JSON lines, one record each, in this order: one `log`; all `checkpoint`s, by size;
then for each agent its `event`s, in the chain's order, and its `head`; then the `leaf` records.

A bundle of everything has every leaf, in the log's order: the tree is built anew and each
checkpoint held against it. A bundle of some agents has only their leaves, each with its proof of
inclusion in the newest checkpoint, and with each checkpoint the proof that it is a prefix of the
next one; the other agents' leaves stay unseen.

Nothing in a bundle is believed. Trust comes from outside: the log's key, and checkpoints that the
auditor kept (or that were exported where the database's owner cannot write).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from shared.domain.audit import AuditEvent, created_at, verify_chain
from shared.domain.checkpoint import (
    Checkpoint,
    CheckSignature,
    NoteInvalid,
    VerifierKey,
    decode,
    entry,
    open_note,
    parse_verifier_key,
)
from shared.domain.merkle import Growing, leaf_hash, verify_consistency, verify_inclusion

# Events are logged within seconds. What is older than this, next to the newest, and under no
# checkpoint was rewritten and had its leaves left out, or its log has stood still.
LONGEST_UNLOGGED = timedelta(minutes=10)

Index = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class LogRecord(_Record):
    """`key` is the log's verifier key; `everything` says whether the bundle has all of the log."""

    type: Literal["log"] = "log"
    version: Literal[1] = 1
    key: str
    everything: bool


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
    """Where the database says that an agent's chain ends."""

    type: Literal["head"] = "head"
    agent_id: str
    seq: int
    hash: str | None


class LeafRecord(_Record):
    """`hash` in base64; `proof`: its inclusion in the newest checkpoint, unless all is there."""

    type: Literal["leaf"] = "leaf"
    index: Index
    agent_id: str
    seq: int
    hash: str
    proof: list[str] = []


Record = Annotated[
    LogRecord | CheckpointRecord | EventRecord | HeadRecord | LeafRecord,
    Field(discriminator="type"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


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
    """What was checked and what was found; nothing found is a bundle that holds."""

    agents: int = 0
    events: int = 0
    leaves: int = 0
    checkpoints: int = 0
    exported: int = 0
    unsigned: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that the auditor has from elsewhere, and where it stands."""

    where: str
    note: str


class Verifier:
    """Takes the records of one bundle in their order, then reports.

    `key` is the log's key as the auditor knows it; without one, the bundle's own is believed.
    """

    def __init__(
        self, check: CheckSignature, key: VerifierKey | None = None, kept: Sequence[Kept] = ()
    ) -> None:
        self.report = Report()
        self._check = check
        self._key = key
        self._kept_notes = kept
        self._kept: list[tuple[str, Checkpoint]] = []
        self._everything: bool | None = None
        self._checkpoints: list[tuple[Checkpoint, list[str]]] = []
        self._chain: list[AuditEvent] = []
        self._hashes: dict[str, dict[int, bytes]] = {}
        self._made: dict[str, list[datetime | None]] = {}
        self._logged: dict[str, int] = {}
        self._tree = Growing()
        self._roots: dict[int, bytes] = {}
        self._wanted: set[int] = set()

    def take(self, record: Record) -> None:
        """The next record of the bundle."""
        if self._everything is None and not isinstance(record, LogRecord):
            self._everything = False
            self._find(Fault.BUNDLE, "the bundle does not begin with its log record")
        match record:
            case LogRecord():
                self._begin(record)
            case CheckpointRecord():
                self._take_checkpoint(record)
            case EventRecord():
                self._take_event(record)
            case HeadRecord():
                self._end_chain(record)
            case LeafRecord():
                self._take_leaf(record)

    def close(self) -> Report:
        """All records were taken: hold the parts against each other."""
        report = self.report
        if self._everything is None:
            self._find(Fault.BUNDLE, "there is no record in the bundle")
        if self._chain:
            self._check_chain(None)
        self._check_missing()
        self._check_unlogged()
        if self._everything:
            self._check_tree()
        else:
            self._check_proofs()
        self._check_kept()
        report.agents = len(self._hashes)
        report.unsigned = report.events - sum(
            min(self._logged.get(agent, 0), len(hashes)) for agent, hashes in self._hashes.items()
        )
        return report

    def _find(self, fault: Fault, what: str) -> None:
        self.report.findings.append(Finding(fault, what))

    # -- the log and its checkpoints ------------------------------------------------------

    def _begin(self, record: LogRecord) -> None:
        if self._everything is not None:
            self._find(Fault.BUNDLE, "the bundle has more than one log record")
            return
        self._everything = record.everything
        try:
            told = parse_verifier_key(record.key)
        except NoteInvalid as error:
            self._find(Fault.KEY, f"the bundle's key: {error}")
            told = None
        if self._key is not None and told is not None and told != self._key:
            self._find(Fault.KEY, f"the bundle is of another log, whose key is {told}")
        self._key = self._key or told
        for kept in self._kept_notes:
            opened = self._open(kept.note, Fault.EXPORTED, kept.where)
            if opened is not None:
                self._kept.append((kept.where, opened))
                self._wanted.add(opened.size)
        self.report.exported = len(self._kept_notes)

    def _open(self, note: str, fault: Fault, where: str) -> Checkpoint | None:
        if self._key is None:
            return None
        try:
            return open_note(note, self._key, self._check)
        except NoteInvalid as error:
            self._find(fault, f"{where}: {error}")
            return None

    def _take_checkpoint(self, record: CheckpointRecord) -> None:
        self.report.checkpoints += 1
        where = f"checkpoint {self.report.checkpoints}"
        checkpoint = self._open(record.note, Fault.CHECKPOINT, where)
        if checkpoint is None:
            return
        if self._checkpoints and checkpoint.size <= self._checkpoints[-1][0].size:
            self._find(Fault.BUNDLE, f"{where} is not larger than the one before it")
            return
        self._wanted.add(checkpoint.size)
        self._checkpoints.append((checkpoint, record.proof))

    # -- chains ---------------------------------------------------------------------------

    def _take_event(self, record: EventRecord) -> None:
        if self._chain and self._chain[-1].agent_id != record.agent_id:
            self._check_chain(None)
        fields = record.model_dump(exclude={"type"})
        self._chain.append(AuditEvent(**fields))
        self.report.events += 1

    def _end_chain(self, head: HeadRecord) -> None:
        if self._chain and self._chain[-1].agent_id != head.agent_id:
            self._check_chain(None)
        self._check_chain(head)

    def _check_chain(self, head: HeadRecord | None) -> None:
        events, self._chain = self._chain, []
        agent = events[0].agent_id if events else head.agent_id if head else ""
        if agent in self._hashes:
            self._find(Fault.BUNDLE, f"agent {agent} comes twice")
        found = verify_chain(events)
        if not found.valid:
            self._find(
                Fault.CHAIN, f"agent {agent}, event {found.failure_seq}: {found.failure_reason}"
            )
        end = (events[-1].seq, events[-1].event_hash) if events else (0, None)
        if head is None:
            self._find(Fault.HEAD, f"agent {agent}: the chain has no head")
        elif end != (head.seq, head.hash):
            self._find(
                Fault.HEAD,
                f"agent {agent}: the head says that the chain ends with event {head.seq}"
                f" ({head.hash}), it ends with event {end[0]} ({end[1]})",
            )
        self._made[agent] = [created_at(event) for event in events]
        self._hashes[agent] = {
            event.seq: leaf_hash(entry(agent, event.seq, event.event_hash)) for event in events
        }

    # -- leaves ---------------------------------------------------------------------------

    def _take_leaf(self, leaf: LeafRecord) -> None:
        self.report.leaves += 1
        try:
            hashed = decode(leaf.hash)
            proof = [decode(each) for each in leaf.proof]
        except NoteInvalid:
            self._find(Fault.BUNDLE, f"leaf {leaf.index} cannot be read")
            return
        self._check_event(leaf, hashed)
        self._logged[leaf.agent_id] = max(self._logged.get(leaf.agent_id, 0), leaf.seq)
        if self._everything:
            if leaf.index != self._tree.size:
                self._find(Fault.LEAF, f"leaf {self._tree.size} of the log is missing")
            self._tree.append(hashed)
            if self._tree.size in self._wanted:
                self._roots[self._tree.size] = self._tree.root()
        elif self._checkpoints:
            newest = self._checkpoints[-1][0]
            if not verify_inclusion(leaf.index, newest.size, hashed, proof, newest.root):
                self._find(
                    Fault.CHECKPOINT,
                    f"agent {leaf.agent_id}, event {leaf.seq}: its leaf {leaf.index} is not under"
                    f" the newest checkpoint, of {newest.size} leaves",
                )

    def _check_event(self, leaf: LeafRecord, hashed: bytes) -> None:
        event = self._hashes.get(leaf.agent_id, {}).get(leaf.seq)
        name = f"agent {leaf.agent_id}, event {leaf.seq}"
        if event is None:
            self._find(Fault.LEAF, f"{name} was logged (leaf {leaf.index}) and is missing")
        elif event != hashed:
            self._find(Fault.LEAF, f"{name} is not the one that was logged (leaf {leaf.index})")
        if leaf.seq != self._logged.get(leaf.agent_id, 0) + 1:
            self._find(Fault.LEAF, f"{name} does not follow the one that was logged before it")

    def _check_missing(self) -> None:
        if self.report.leaves and not self._checkpoints:
            self._find(Fault.CHECKPOINT, "events were logged and no checkpoint covers them")

    def _check_unlogged(self) -> None:
        """Nobody vouches for an event without a leaf, so there may be none but the newest."""
        newest = max((at for made in self._made.values() for at in made if at), default=None)
        for agent, made in self._made.items():
            logged = self._logged.get(agent, 0)
            for at in made[logged : logged + 1]:
                if at is None or newest is None or newest - at > LONGEST_UNLOGGED:
                    self._find(
                        Fault.LEAF, f"agent {agent}: from event {logged + 1} on nothing was logged"
                    )

    # -- the parts together ---------------------------------------------------------------

    def _check_tree(self) -> None:
        size = self._tree.size
        for checkpoint, _ in self._checkpoints:
            if checkpoint.size > size:
                self._find(
                    Fault.CHECKPOINT,
                    f"the checkpoint of {checkpoint.size} leaves: the log has {size}",
                )
            elif self._root(checkpoint.size) != checkpoint.root:
                self._find(
                    Fault.CHECKPOINT,
                    f"the checkpoint of {checkpoint.size} leaves was signed over others than these",
                )
        if self._checkpoints and self._checkpoints[-1][0].size < size:
            covered = self._checkpoints[-1][0].size
            self._find(Fault.CHECKPOINT, f"leaves {covered} to {size - 1} are under no checkpoint")

    def _root(self, size: int) -> bytes:
        return self._roots.get(size) or Growing().root()

    def _check_proofs(self) -> None:
        """Each checkpoint is a prefix of the next, so all of them are of the newest one."""
        for (old, proof), (new, _) in pairwise(self._checkpoints):
            if not _is_prefix(old, new, proof):
                self._find(
                    Fault.CHECKPOINT,
                    f"the checkpoints of {old.size} and {new.size} leaves are of two histories",
                )

    def _check_kept(self) -> None:
        """What was kept elsewhere must be of this history, and still be told by it."""
        told: Mapping[int, Checkpoint] = {c.size: c for c, _ in self._checkpoints}
        size = self._tree.size if self._everything else max(told, default=0)
        for where, kept in self._kept:
            name = f"{where}: the checkpoint of {kept.size} leaves"
            if kept.size > size:
                self._find(Fault.EXPORTED, f"{name} is ahead: the log has {size}, it was cut")
            elif self._everything and self._root(kept.size) != kept.root:
                self._find(Fault.EXPORTED, f"{name} was signed over others than these: rewritten")
            elif kept.size not in told:
                self._find(Fault.EXPORTED, f"{name} is not among those that the log tells of")
            elif told[kept.size].root != kept.root:
                self._find(Fault.EXPORTED, f"{name} has another root here: rewritten")


def _is_prefix(old: Checkpoint, new: Checkpoint, proof: Iterable[str]) -> bool:
    try:
        hashes = [decode(each) for each in proof]
    except NoteInvalid:
        return False
    return verify_consistency(old.size, new.size, hashes, old.root, new.root)
