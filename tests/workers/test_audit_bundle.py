"""Bundles as an auditor gets them: written by the command, checked from files alone."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from shared.config import Settings
from shared.db import APP_ROLE, Database, connect
from shared.domain.audit import canonical_json, event_hash
from shared.domain.audit_bundle import RECORD, Tally
from shared.domain.checkpoint import decode, encode
from shared.log_key import LogKey, log_key
from tests.workers.ledger_cases import new_agent
from tests.workers.log_cases import witness
from workers import audit_bundle
from workers.audit_bundle import agents_of, bundle, lines
from workers.checkpoints import Checkpointer
from workers.commands.audit import audit
from workers.exports import FileExport

KINDS = ("log", "checkpoint", "event", "head", "leaf")
Lines = list[dict[str, Any]]
Change = Callable[[Lines], object]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kept(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Any]]:
    """A bundle of one agent, one of its tenant, one of everything; the key; the checkpoints."""
    folder = tmp_path_factory.mktemp("kept")
    settings = Settings(database_url=database_url, master_key="m" * 40)
    db = Database(settings)
    app = await connect(database_url, APP_ROLE, "test")
    agent, other = await new_agent(app, "0"), await new_agent(app, "0")
    worker = Checkpointer(settings, db, [FileExport(folder / "checkpoints")])
    for _ in range(3):
        await witness(app, other, 2)
        await witness(app, agent, 2)
        await worker.round()
    await witness(app, agent, 1)
    tenants = await agents_of(db, other.tenant_id)  # type: ignore[arg-type]
    files: dict[str, Any] = {"checkpoints": folder / "checkpoints", "agent_id": agent.agent_id}
    scopes = {"agent": [agent.agent_id], "tenant": tenants, "all": None}
    for name, agents in scopes.items():
        written = [line async for line in lines(bundle(db, agents))]  # type: ignore[arg-type]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_bytes(b"".join(written))
    async with db.everyone() as s:
        files["key"] = str((await log_key(s, settings)).verifier)
    yield files
    await app.close()
    await db.aclose()


def verify(kept: dict[str, Any], file: Path, *more: str) -> Result:
    given = ["--key", kept["key"], "--checkpoints", str(kept["checkpoints"])]
    return CliRunner().invoke(audit, ["verify", str(file), "--json", *(more or given)])


def read(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, bundle: Lines, *, sealed: bool = True) -> Path:
    """Sealed, as a forger does it: with an end record that fits what was made of the bundle."""
    tally = Tally()
    written = b""
    for each in bundle:
        line = json.dumps(each).encode() + b"\n"
        if each["type"] == "end" and sealed:
            line = tally.end().model_dump_json().encode() + b"\n"
        elif each["type"] in KINDS:
            tally.add(RECORD.validate_python(each), line)
        written += line
    file.write_bytes(written)
    return file


def later(made: str, **by: int) -> str:
    return (datetime.fromisoformat(made) + timedelta(**by)).isoformat()


def found(result: Result) -> set[str]:
    told = json.loads(result.stdout)
    assert (result.exit_code == 0) is told["valid"]
    return {finding["found_by"] for finding in told["findings"]}


@pytest.mark.parametrize("scope", ["agent", "tenant", "all"])
def test_a_bundle_is_verified_without_a_database(kept: dict[str, Any], scope: str) -> None:
    result = verify(kept, kept[scope])
    assert found(result) == set()
    told = json.loads(result.stdout)
    assert (told["checkpoints"], told["exported"]) == (3, 3)
    assert told["leaves"] == {"agent": 6, "tenant": 6, "all": 12}[scope]
    assert told["unsigned"] == {"agent": 1, "tenant": 0, "all": 1}[scope]
    assert found(verify(kept, kept[scope], "--checkpoints", str(kept["checkpoints"]))) == set()


@pytest.mark.parametrize("scope", ["agent", "all"])
async def test_checkpoints_are_read_a_page_at_a_time(
    kept: dict[str, Any],
    database_url: str,
    scope: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the bundle is the same, the proofs from one page to the next too."""
    at_once: list[int] = []

    async def proofs(s: Any, wanted: Any) -> list[list[str]]:
        at_once.append(len(wanted))
        return await proofs_of(s, wanted)

    proofs_of = audit_bundle._proofs
    monkeypatch.setattr(audit_bundle, "_proofs", proofs)
    whole = of(read(kept[scope]), "checkpoint")
    agents = [kept["agent_id"]] if scope == "agent" else None
    db = Database(Settings(database_url=database_url, master_key="m" * 40))
    for size in (1, 2, 3):
        monkeypatch.setattr(audit_bundle, "READ_AT_ONCE", size)
        records = [record async for record in bundle(db, agents)]
        told = [json.loads(record.model_dump_json()) for record in records]
        assert of(told, "checkpoint") == whole
        assert max(at_once) <= size
    await db.aclose()


def test_a_bundle_of_one_tells_nothing_of_the_others(kept: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in kept["agent"].read_text().splitlines()]
    assert {line["agent_id"] for line in lines if "agent_id" in line} == {kept["agent_id"]}


def of(lines: Lines, kind: str) -> Lines:
    return [line for line in lines if line["type"] == kind]


def edit(line: dict[str, Any], **changes: Any) -> None:
    line.update(changes)


def flip(text: str) -> str:
    raw = decode(text)
    return encode(bytes([raw[0] ^ 1]) + raw[1:])


def drop(lines: Lines, *gone: dict[str, Any]) -> None:
    lines[:] = [line for line in lines if not any(line is each for each in gone)]


def rewrite(lines: Lines, **changes: Any) -> None:
    """Let the first event say something else, as who has the whole chain in hand would do it."""
    previous = None
    for number, event in enumerate(of(lines, "event")):
        payload = json.loads(event["payload"])
        text = canonical_json({**payload, **(changes if number == 0 else {})})
        edit(event, payload=text, previous_hash=previous, event_hash=event_hash(previous, text))
        previous = event["event_hash"]
    edit(of(lines, "head")[0], hash=previous)


def rewrite_unlogged(lines: Lines, **changes: Any) -> None:
    """The same, without the leaves that would show it, and with a head that misses none."""
    rewrite(lines, **changes)
    drop(lines, *of(lines, "leaf"))
    edit(of(lines, "head")[0], logged=0)


LONG_AGO = "2026-01-01T00:00:00.000000Z"
OTHER_KEY = LogKey("127.0.0.1:8080/v1/audit", bytes(32))
# what is changed in a bundle, in which, and by what it is found
SPOILT: list[tuple[str, str, Change, set[str]]] = [
    ("a payload", "agent", lambda b: edit(of(b, "event")[1], payload="{}"), {"chain"}),
    ("an event is left out", "agent", lambda b: drop(b, of(b, "event")[2]), {"chain", "leaf"}),
    ("the tail of a chain", "all", lambda b: drop(b, *of(b, "event")[-3:]), {"head", "leaf"}),
    ("the tail and the head", "agent", lambda b: drop(b, *of(b, "event")[-3:], of(b, "head")[0]),
     {"head", "leaf"}),
    ("a leaf's hash", "agent",
     lambda b: edit(of(b, "leaf")[0], hash=flip(of(b, "leaf")[0]["hash"])),
     {"leaf", "checkpoint"}),
    ("a leaf's place", "agent", lambda b: edit(of(b, "leaf")[0], index=9), {"checkpoint"}),
    ("a proof", "agent", lambda b: edit(of(b, "leaf")[3], proof=[]), {"checkpoint"}),
    ("a leaf is left out", "agent", lambda b: drop(b, of(b, "leaf")[1]), {"leaf"}),
    ("a leaf of all is left out", "all", lambda b: drop(b, of(b, "leaf")[4]),
     {"leaf", "checkpoint", "exported checkpoint"}),
    ("the last leaf of all", "all", lambda b: drop(b, of(b, "leaf")[-1]),
     {"leaf", "checkpoint", "exported checkpoint"}),
    ("a proof of a prefix", "agent", lambda b: edit(of(b, "checkpoint")[0], proof=[]),
     {"checkpoint"}),
    ("a signature", "agent", lambda b: edit(
        of(b, "checkpoint")[2], note=of(b, "checkpoint")[2]["note"].replace("\n12\n", "\n13\n")),
     {"bundle", "checkpoint"}),
    ("a checkpoint is left out", "all", lambda b: drop(b, of(b, "checkpoint")[1]),
     {"exported checkpoint"}),
    ("the newest is left out", "agent", lambda b: drop(b, of(b, "checkpoint")[-1]),
     {"bundle", "checkpoint"}),
    ("the last leaves", "agent", lambda b: drop(b, *of(b, "leaf")[-3:]), {"leaf"}),
    ("a second end", "agent", lambda b: b.append(b[-1]), {"bundle"}),
    ("no end", "agent", lambda b: drop(b, b[-1]), {"bundle"}),
    ("all checkpoints are left out", "all", lambda b: drop(b, *of(b, "checkpoint")),
     {"bundle", "checkpoint"}),
    ("a chain that was rewritten", "agent", lambda b: rewrite(b, cost="0"), {"leaf"}),
    ("a chain that was rewritten, without leaves", "agent",
     lambda b: rewrite_unlogged(b, created_at=LONG_AGO), {"leaf"}),
    ("a chain without moments, without leaves", "agent",
     lambda b: rewrite_unlogged(b, created_at="long ago"), {"leaf"}),
    ("the key", "agent", lambda b: edit(b[0], key=str(OTHER_KEY.verifier)), {"key"}),
    ("no key", "agent", lambda b: edit(b[0], key="x"), {"key"}),
    ("no beginning", "agent", lambda b: drop(b, b[0]), {"bundle"}),
    ("two beginnings", "agent", lambda b: b.insert(3, b[0]), {"bundle"}),
    ("an agent comes twice", "all", lambda b: b.extend(of(b, "event")[:6]),
     {"bundle", "head"}),
    ("what is no record", "agent", lambda b: b.append({"type": "other"}), {"bundle"}),
    ("checkpoints out of order", "agent",
     lambda b: b.insert(1, of(b, "checkpoint")[2]), {"bundle", "exported checkpoint"}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "scope", "change", "by"), SPOILT)
def test_a_bundle_that_was_changed_is_found_out(
    kept: dict[str, Any], tmp_path: Path, what: str, scope: str, change: Change, by: set[str]
) -> None:
    changed = read(kept[scope])
    change(changed)
    assert found(verify(kept, write(tmp_path / "spoilt.jsonl", changed))) == by


def unlog(bundle: Lines) -> None:
    """The last three leaves, and the head as if there never were any."""
    drop(bundle, *of(bundle, "leaf")[-3:])
    edit(of(bundle, "head")[0], logged=of(bundle, "head")[0]["logged"] - 3)


def cut_alike(bundle: Lines) -> None:
    """The last logged event, what came after it, its leaf, and the head set to the one before."""
    drop(bundle, *of(bundle, "event")[5:], of(bundle, "leaf")[-1])
    last = of(bundle, "event")[-1]
    edit(of(bundle, "head")[0], seq=5, hash=last["event_hash"], logged=5)


@pytest.mark.parametrize(
    "change",
    [
        *(unlog, cut_alike),
        lambda b: drop(b, *of(b, "leaf")[-3:], b[-1]),
        lambda b: drop(b, *b[7:]),
        lambda b: drop(b, of(b, "head")[0]),
    ],
)
def test_a_bundle_that_lost_records_shows_it(
    kept: dict[str, Any], tmp_path: Path, change: Change
) -> None:
    thinned = read(kept["agent"])
    change(thinned)
    result = verify(kept, write(tmp_path / "thinned.jsonl", thinned, sealed=False))
    assert "bundle" in found(result)


def test_what_was_lost_is_counted_and_what_was_touched_is_told(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    thinned = read(kept["agent"])
    drop(thinned, of(thinned, "leaf")[-1])
    told = verify(kept, write(tmp_path / "thinned.jsonl", thinned, sealed=False)).stdout
    assert "it was written with 6 leaf records and has 5" in told
    touched = tmp_path / "touched.jsonl"
    touched.write_bytes(kept["agent"].read_bytes().replace(b'"type":', b'"type": ', 1))
    assert found(verify(kept, touched)) == {"bundle"}


def test_what_a_forger_of_one_agents_bundle_can_hide(kept: dict[str, Any], tmp_path: Path) -> None:
    """The end record is not signed; docs/audit.md says so."""
    forged = read(kept["agent"])
    cut_alike(forged)
    assert found(verify(kept, write(tmp_path / "forged.jsonl", forged))) == set()


def test_events_that_are_older_than_a_checkpoint_have_their_leaves(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    """The events' own moments are hashed, and those of the checkpoints are the auditor's."""
    (path,) = kept["checkpoints"].iterdir()
    *before, last = [json.loads(line) for line in path.read_text().splitlines()]
    exported = tmp_path / "exported"
    exported.mkdir()
    told = [*before, {**last, "at": later(last["at"], hours=2)}]
    lines = [json.dumps(each, separators=(",", ":"), ensure_ascii=False) for each in told]
    (exported / path.name).write_text("\n".join(lines) + "\n")
    given = ("--key", kept["key"], "--checkpoints", str(exported))
    assert found(verify(kept, kept["tenant"], *given)) == set()
    forged = read(kept["tenant"])
    unlog(forged)
    assert found(verify(kept, write(tmp_path / "forged.jsonl", forged), *given)) == {"leaf"}


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "it is empty"), (b"{\n", "no record"), (b'{"type":"log"', "in the middle of line 1")],
)
def test_what_is_no_bundle_is_refused(
    kept: dict[str, Any], tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    result = verify(kept, file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    file.write_bytes(kept["all"].read_bytes()[:-1])
    assert verify(kept, file).exit_code == 2


def test_a_bundle_of_an_older_version_is_verified_with_a_warning(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    old = read(kept["agent"])[:-1]
    edit(old[0], version=1)
    del old[0]["at"], old[0]["size"]
    for head in of(old, "head"):
        del head["logged"]
    file = write(tmp_path / "old.jsonl", old)
    result = verify(kept, file)
    assert found(result) == set()
    assert json.loads(result.stdout)["whole"] is False
    told = CliRunner().invoke(audit, ["verify", str(file)]).stdout
    assert "It has no end record" in told
    assert "What is in it holds." in told


def test_checkpoints_are_where_they_are_said_to_be(kept: dict[str, Any], tmp_path: Path) -> None:
    nowhere = tmp_path / "empty"
    nowhere.mkdir()
    result = verify(kept, kept["all"], "--checkpoints", str(nowhere))
    assert found(result) == {"exported checkpoint"}
    assert f"no exported checkpoints were found in {nowhere}" in result.stdout


def test_another_logs_key_is_told(kept: dict[str, Any]) -> None:
    result = verify(kept, kept["agent"], "--key", str(OTHER_KEY.verifier))
    assert "key" in found(result)
    assert CliRunner().invoke(audit, ["verify", str(kept["all"]), "--key", "x"]).exit_code == 2


def cut_to_the_second_checkpoint(bundle: Lines) -> None:
    """What the bundle of everything was, before the last round: or what a forger makes of it."""
    drop(bundle, *of(bundle, "leaf")[-4:], of(bundle, "checkpoint")[-1])
    edit(bundle[0], size=8)
    for head in of(bundle, "head"):
        edit(head, logged=head["logged"] - 2)


@pytest.mark.parametrize(
    ("minutes", "more", "by"),
    [(-2, (), set()), (-2, ("--strict",), {"exported checkpoint"}),
     (2, (), {"exported checkpoint"})],
)  # fmt: skip
def test_newer_checkpoints_say_nothing_against_a_bundle_that_was_made_before_them(
    kept: dict[str, Any], tmp_path: Path, minutes: int, more: tuple[str, ...], by: set[str]
) -> None:
    older = read(kept["all"])
    cut_to_the_second_checkpoint(older)
    edit(older[0], at=later(older[0]["at"], minutes=minutes))
    file = write(tmp_path / "older.jsonl", older)
    given = ("--key", kept["key"], "--checkpoints", str(kept["checkpoints"]), *more)
    result = verify(kept, file, *given)
    assert found(result) == by
    assert ("it was cut" in result.stdout) is bool(by)
    assert json.loads(result.stdout)["newer"] == (0 if by else 1)
    told = CliRunner().invoke(audit, ["verify", str(file), *given]).stdout
    newer = "1 exported checkpoint is newer than this bundle: export again to have it looked at."
    assert (newer in told) is not bool(by)


def test_to_reach_the_newest_checkpoint_some_are_needed(kept: dict[str, Any]) -> None:
    assert found(verify(kept, kept["all"], "--strict", "--checkpoints", str(kept["checkpoints"])))\
        == set()  # fmt: skip
    assert verify(kept, kept["all"], "--strict").exit_code == 2


@pytest.mark.parametrize("arguments", [[], ["--live", "FILE"]])
def test_what_to_verify_has_to_be_said(kept: dict[str, Any], arguments: list[str]) -> None:
    given = [str(kept["all"]) if each == "FILE" else each for each in arguments]
    assert CliRunner().invoke(audit, ["verify", *given]).exit_code == 2


def test_whose_to_export_has_to_be_said(tmp_path: Path) -> None:
    assert CliRunner().invoke(audit, ["export", str(tmp_path / "x")]).exit_code == 2


def test_a_person_is_told_in_words(kept: dict[str, Any]) -> None:
    told = CliRunner().invoke(audit, ["verify", str(kept["all"])]).stdout
    assert "13 events of 2 agents, 12 of them in the log; 3 checkpoints, 0 exported." in told
    assert "1 event is not yet under a checkpoint." in told
    assert "taken on trust" in told
    assert "All of it holds." in told
