"""What an auditor checks of a bundle, record by record; see `shared/domain/audit_bundle.py`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from shared.domain.audit import AuditEvent, created_at, verify_chain
from shared.domain.audit_bundle import (
    CheckpointRecord,
    EndRecord,
    EventRecord,
    HeadRecord,
    LeafRecord,
    LogRecord,
    Record,
)
from shared.domain.audit_findings import Fault, Finding, Kept, Report, moment
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

# A checkpoint's moment is taken before it is committed: a bundle made meanwhile is without it.
COMMITTED_WITHIN = timedelta(minutes=1)
# The log is seconds behind the chains; where it has to catch up, more.
LOGGED_WITHIN = timedelta(hours=1)


class Verifier:
    """Takes the records of one bundle in their order, then reports.

    `key` is the log's key as the auditor knows it; without one, the bundle's own is believed.
    `reach`: the bundle was made after the newest of `kept`, so it has to reach it.
    """

    def __init__(
        self,
        check: CheckSignature,
        key: VerifierKey | None = None,
        kept: Sequence[Kept] = (),
        *,
        reach: bool = False,
    ) -> None:
        self.report = Report(exported=len(kept))
        self._check = check
        self._key = key
        self._kept_notes = kept
        self._kept: list[tuple[Kept, Checkpoint]] = []
        self._reach = reach
        self._everything: bool | None = None
        self._log: LogRecord | None = None
        self._times: dict[str, list[datetime | None]] = {}
        self._told_logged: dict[str, int] = {}
        self._checkpoints: list[tuple[Checkpoint, list[str]]] = []
        self._chain: list[AuditEvent] = []
        self._hashes: dict[str, dict[int, bytes]] = {}
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
            case EndRecord():
                pass  # it is about lines, of which nothing is known here

    def close(self) -> Report:
        """All records were taken: hold the parts against each other."""
        report = self.report
        if self._chain:
            self._check_chain(None)
        self._check_missing()
        self._check_logged()
        self._check_size()
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

    @property
    def log_key(self) -> VerifierKey | None:
        """The key that the log was checked with: the auditor's, or else the bundle's own."""
        return self._key

    def is_logged(self, agent_id: str, seq: int) -> bool:
        """Whether a leaf of the log is this event's."""
        return seq <= self._logged.get(agent_id, 0)

    # -- the log and its checkpoints ------------------------------------------------------

    def _begin(self, record: LogRecord) -> None:
        if self._everything is not None:
            self._find(Fault.BUNDLE, "the bundle has more than one log record")
            return
        self._everything = record.everything
        self._log = record
        self.report.made_at = record.at
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
                self._kept.append((kept, opened))
                self._wanted.add(opened.size)

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
        self.report.size = checkpoint.size

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
        if head is not None and head.logged is not None:
            self._told_logged[agent] = head.logged
        end = (events[-1].seq, events[-1].event_hash) if events else (0, None)
        if head is None:
            self._find(Fault.HEAD, f"agent {agent}: the chain has no head")
        elif end != (head.seq, head.hash):
            self._find(
                Fault.HEAD,
                f"agent {agent}: the head says that the chain ends with event {head.seq}"
                f" ({head.hash}), it ends with event {end[0]} ({end[1]})",
            )
        self._hashes[agent] = {
            event.seq: leaf_hash(entry(agent, event.seq, event.event_hash)) for event in events
        }
        if not self._everything:  # there the tree shows a leaf that is missing
            self._times[agent] = [created_at(event) for event in events]

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

    def _check_logged(self) -> None:
        """Whether each chain has its leaves as far as the log had come."""
        for agent, told in self._told_logged.items():
            if (there := self._logged.get(agent, 0)) != told:
                self._find(
                    Fault.LEAF,
                    f"agent {agent}: {told} of its events were logged, and the bundle has the"
                    f" leaves of {there}",
                )
        signed = max((at for at, _ in self._covering()), default=None)
        if signed is None:
            return
        for agent, times in self._times.items():
            unlogged = times[self._logged.get(agent, 0) :]
            if not unlogged:
                continue
            created = unlogged[0]  # one that says no moment could be of any time
            if created is None or created + LOGGED_WITHIN < signed:
                since = "events" if created is None else f"events from {created.isoformat()} on"
                self._find(
                    Fault.LEAF,
                    f"agent {agent}: {since} have no leaf, and the bundle reaches a checkpoint of"
                    f" {signed.isoformat()}: leaves were cut",
                )

    def _covering(self) -> Iterable[tuple[datetime, Checkpoint]]:
        """The kept checkpoints that the bundle reaches, and when they were signed."""
        for kept, checkpoint in self._kept:
            if kept.at is not None and checkpoint.size <= self.report.size:
                yield kept.at, checkpoint

    # -- the parts together ---------------------------------------------------------------

    def _check_size(self) -> None:
        told = self._log.size if self._log is not None else None
        if told is not None and told != self.report.size:
            self._find(
                Fault.BUNDLE,
                f"the bundle says that its newest checkpoint is of {told} leaves, it is of"
                f" {self.report.size}",
            )

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
        """What was kept elsewhere must be of this history, and still be told by it.

        What was signed after the bundle was made says nothing against it.
        """
        told: Mapping[int, Checkpoint] = {c.size: c for c, _ in self._checkpoints}
        size = self.report.size
        for kept, checkpoint in self._kept:
            name = f"{kept.where}: the checkpoint of {checkpoint.size} leaves"
            if checkpoint.size > size:
                self._check_reach(kept, name, size)
            elif self._everything and checkpoint.size > self._tree.size:
                self._find(
                    Fault.EXPORTED, f"{name} is ahead: the log has {self._tree.size}, it was cut"
                )
            elif self._everything and self._root(checkpoint.size) != checkpoint.root:
                self._find(Fault.EXPORTED, f"{name} was signed over others than these: rewritten")
            elif checkpoint.size not in told:
                self._find(Fault.EXPORTED, f"{name} is not among those that the log tells of")
            elif told[checkpoint.size].root != checkpoint.root:
                self._find(Fault.EXPORTED, f"{name} has another root here: rewritten")

    def _check_reach(self, kept: Kept, name: str, size: int) -> None:
        """A kept checkpoint is ahead of the bundle: newer than it, or it was cut."""
        made = moment(self.report.made_at) if self.report.made_at is not None else None
        if self._reach:
            self._find(Fault.EXPORTED, f"{name} is ahead: the log has {size}, it was cut")
        elif made is not None and kept.at is not None and kept.at + COMMITTED_WITHIN < made:
            self._find(
                Fault.EXPORTED,
                f"{name} was signed at {kept.at.isoformat()}, and the bundle, made at"
                f" {made.isoformat()}, has {size}: it was cut",
            )
        else:
            self.report.newer += 1


def _is_prefix(old: Checkpoint, new: Checkpoint, proof: Iterable[str]) -> bool:
    try:
        hashes = [decode(each) for each in proof]
    except NoteInvalid:
        return False
    return verify_consistency(old.size, new.size, hashes, old.root, new.root)
