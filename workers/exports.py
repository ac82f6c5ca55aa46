"""Checkpoints outside the database: where a restored or rewritten database cannot follow them.

Two ways out. A folder, one growing file a day, one JSON object a line: `size`, `at`, the signed
`note`, and `previous`, the SHA-256 of the line before it (over all files), so that a line that was
taken out or changed shows. Lines are synced before they count and never rewritten, so the file may
be made append-only (`chattr +a`), and copied anywhere. And an address over HTTP: `PUT
<url>/<size, 20 digits>` for each, and `<url>/latest`, which is read back at the start. A request
bears a fixed bearer token, or a signature as S3 buckets want it (`workers/s3.py`).
"""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from shared.audit_log import AuditCheckpointRow
from shared.domain.checkpoint import NoteInvalid, read_note

FILES = "checkpoints-*.jsonl"
# of a file's end, what is read to find its last line; a line is under 1 KiB
TAIL_BYTES = 64 * 1024
PLAIN_TEXT = {"content-type": "text/plain; charset=utf-8"}
ATTEMPTS, FIRST_PAUSE_S, LONGEST_PAUSE_S = 3, 0.2, 2.0
# another has put it there already; whether it says the same is looked at
TAKEN = frozenset({409, 412})


class ExportFailed(Exception):
    """A place for checkpoints that cannot be read or written now; the message says why."""


class ExportDiffers(Exception):
    """What was exported is not what the database has: the log was forked."""


class Export(Protocol):
    """A place outside the database. Both methods raise `ExportFailed`."""

    kind: str

    async def newest(self) -> str | None:
        """The newest note that is there; None where there is none yet."""
        ...

    async def append(self, rows: Sequence[AuditCheckpointRow]) -> None:
        """Keep checkpoints, in the order of their sizes; what is there already is passed over."""
        ...


@dataclass(frozen=True, slots=True)
class Exported:
    """One line of an exported file, signed `at`; `fault` is what is wrong with it, if any is."""

    where: str
    note: str
    at: str
    fault: str | None = None


def read_exported(folder: Path) -> Iterator[Exported]:
    """All that was exported into a folder, in its order, each line held against the one before."""
    previous: str | None = None
    size = -1
    for path in sorted(folder.glob(FILES)):
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            found = _Line.read(line)
            if found is None:
                continue  # empty, or cut off by a crash before it counted
            fault = None
            if found.previous != previous:
                fault = "does not follow the line before it: lines were removed or changed"
            elif found.size <= size:
                fault = "is not larger than the checkpoint before it"
            yield Exported(f"{path.name}:{number}", found.note, found.at, fault)
            previous, size = found.digest, found.size


class _Line(BaseModel):
    """A line of an exported file; `digest` is the SHA-256 of its bytes, in hex."""

    model_config = ConfigDict(strict=True, frozen=True)

    size: int
    at: str
    note: str
    previous: str | None
    digest: Annotated[str, Field(exclude=True)] = ""

    @classmethod
    def read(cls, line: bytes) -> "_Line | None":
        try:
            read = cls.model_validate_json(line)
        except ValidationError:
            return None
        return read.model_copy(update={"digest": hashlib.sha256(line).hexdigest()})


class FileExport:
    """A folder. Processes that share it take turns by a lock on the folder."""

    kind = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def newest(self) -> str | None:
        try:
            last = await asyncio.to_thread(self._last)
        except OSError as error:
            raise ExportFailed(f"{self._folder}: {error}") from error
        return None if last is None else last[1].note

    async def append(self, rows: Sequence[AuditCheckpointRow]) -> None:
        try:
            await asyncio.to_thread(self._append, rows)
        except OSError as error:
            raise ExportFailed(f"{self._folder}: {error}") from error

    def _last(self) -> tuple[Path, _Line] | None:
        """The last whole line, and its file."""
        for path in sorted(self._folder.glob(FILES), reverse=True):
            with path.open("rb") as opened:
                opened.seek(max(0, path.stat().st_size - TAIL_BYTES))
                lines = opened.read().split(b"\n")
            for line in reversed(lines):
                if (found := _Line.read(line)) is not None:
                    return path, found
        return None

    def _append(self, rows: Sequence[AuditCheckpointRow]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        turn = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for row in rows:
                self._write(row)
            os.fsync(turn)
        finally:
            os.close(turn)

    def _write(self, row: AuditCheckpointRow) -> None:
        last = self._last()
        if last is not None and row.size <= last[1].size:
            return
        record = _Line(
            size=row.size,
            at=row.created_at.isoformat(),
            note=row.note,
            previous=last[1].digest if last is not None else None,
        )
        path = self._folder / f"checkpoints-{row.created_at:%Y-%m-%d}.jsonl"
        if last is not None:
            path = max(path, last[0])  # a clock that was set back does not disturb the order
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            line = record.model_dump_json().encode() + b"\n"
            end = os.lseek(opened, 0, os.SEEK_END)
            if end and os.pread(opened, 1, end - 1) != b"\n":
                line = b"\n" + line  # behind a line that a crash cut off
            if os.write(opened, line) != len(line):
                raise OSError("a line was written in part")
            os.fsync(opened)
        finally:
            os.close(opened)


class HttpExport:
    """An address that takes PUT and GET: a bucket, if `signing` signs for it, or a server of an
    auditor, which may want the bearer `token`.
    """

    kind = "url"

    def __init__(
        self, http: httpx.AsyncClient, url: str, token: str, signing: httpx.Auth | None = None
    ) -> None:
        self._http = http
        self._signing = signing
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._newest: str | None = None
        self._was_read = False

    async def newest(self) -> str | None:
        """Asked for once; afterwards it is what this process put there."""
        if not self._was_read:
            answer = await self._ask("GET", "latest", missing_is_fine=True)
            self._newest = answer.text if answer.status_code != 404 else None
            self._was_read = True
        return self._newest

    async def append(self, rows: Sequence[AuditCheckpointRow]) -> None:
        for row in rows:
            await self._put(row)
        await self._ask("PUT", "latest", rows[-1].note)
        self._newest = rows[-1].note

    async def _put(self, row: AuditCheckpointRow) -> None:
        """Raises `ExportDiffers` where another checkpoint of this size is there."""
        name = f"{row.size:020d}"
        answer = await self._ask("PUT", name, row.note, {"if-none-match": "*"})
        if answer.status_code in TAKEN:
            there = (await self._ask("GET", name)).text
            if _text_of(there) != _text_of(row.note):
                raise ExportDiffers(f"another checkpoint of size {row.size} was exported")

    async def _ask(
        self,
        method: str,
        name: str,
        body: str | None = None,
        headers: dict[str, str] | None = None,
        *,
        missing_is_fine: bool = False,
    ) -> httpx.Response:
        passed = TAKEN if headers else {404} if missing_is_fine else set()
        wait = wait_exponential(FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
        retried = retry_if_exception_type((httpx.TransportError, _Again))
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(ATTEMPTS), wait=wait, retry=retried, reraise=True
            ):
                with attempt:
                    answer = await self._http.request(
                        method,
                        f"{self._url}/{name}",
                        content=body,
                        headers=self._headers | PLAIN_TEXT | (headers or {}),
                        auth=self._signing,
                    )
                    if answer.status_code >= 500 or answer.status_code == 429:
                        raise _Again(str(answer.status_code))
        except (httpx.TransportError, _Again) as error:
            raise ExportFailed(f"{method} {name}: {error!r}") from error
        if not answer.is_success and answer.status_code not in passed:
            raise ExportFailed(f"{method} {name}: {answer.status_code}")
        return answer


class _Again(Exception):
    """An answer that may be another one the next time."""


def _text_of(note: str) -> object:
    """What two notes have to agree in; their signatures may differ."""
    try:
        return read_note(note)
    except NoteInvalid:
        return note
