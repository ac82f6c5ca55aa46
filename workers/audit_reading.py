"""Reading a bundle of the audit log line by line, and what its end record says of the lines."""

from pydantic import ValidationError

from shared.domain.audit_bundle import RECORD, EndRecord, EventRecord, LogRecord, Tally
from shared.domain.audit_findings import Fault, Finding
from shared.domain.audit_verifier import Verifier


class NoBundle(Exception):
    """Nothing that could be checked; the message says why."""


class BundleReading:
    """The lines of a bundle, held against what its end record says of them.

    `hashes` are those of the events, by agent and number.
    """

    def __init__(self) -> None:
        self._tally = Tally()
        self._lines = 0
        self._records = 0
        self._broken_off = False
        self._ends_itself = False
        self.has_end = False
        self._faults: list[Finding] = []
        self.hashes: dict[tuple[str, int], str] = {}

    def read(self, line: bytes, verifier: Verifier) -> None:
        self._lines += 1
        self._broken_off = not line.endswith(b"\n")
        try:
            record = RECORD.validate_json(line)
        except ValidationError:
            self._find(f"line {self._lines} is no record of a bundle")
            return
        self._records += 1
        if self.has_end:
            self._find(f"line {self._lines} is behind the bundle's end")
        if isinstance(record, LogRecord):
            self._ends_itself = record.version > 1
        if isinstance(record, EndRecord):
            self.has_end = True
            self._check_end(record)
        else:
            self._tally.add(record, line)
            if isinstance(record, EventRecord):
                self.hashes[record.agent_id, record.seq] = record.event_hash
            verifier.take(record)

    def close(self) -> list[Finding]:
        """What was found of the file. Raises `NoBundle`."""
        if not self._lines:
            raise NoBundle("it is empty")
        if self._broken_off:
            raise NoBundle(f"it breaks off in the middle of line {self._lines}")
        if not self._records:
            raise NoBundle("it has no record of one")
        if self._ends_itself and not self.has_end:
            self._find(f"it breaks off after line {self._lines}: its end record is missing")
        return self._faults

    def _check_end(self, told: EndRecord) -> None:
        there = self._tally.end()
        for name in sorted(told.records.keys() | there.records.keys()):
            had, has = told.records.get(name, 0), there.records.get(name, 0)
            if had != has:
                self._find(f"it was written with {had} {name} records and has {has}")
        if told.digest != there.digest:
            self._find("its lines are not those that its end record was written over")

    def _find(self, what: str) -> None:
        self._faults.append(Finding(Fault.BUNDLE, what))
