"""Bundles as an auditor gets them: written by the command, checked from files alone."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from shared.config import Settings
from shared.db import APP_ROLE, Database, connect
from shared.domain.checkpoint import decode, encode
from shared.log_key import LogKey, log_key
from tests.workers.ledger_cases import new_agent
from tests.workers.log_cases import witness
from workers.audit_bundle import agents_of, bundle
from workers.audit_cli import audit
from workers.checkpoints import Checkpointer
from workers.exports import FileExport

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
        records = [r.model_dump_json() async for r in bundle(db, agents)]  # type: ignore[arg-type]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(records) + "\n")
    async with db.everyone() as s:
        files["key"] = str((await log_key(s, settings)).verifier)
    yield files
    await app.close()
    await db.aclose()


def verify(kept: dict[str, Any], file: Path, *more: str) -> Result:
    given = ["--key", kept["key"], "--checkpoints", str(kept["checkpoints"])]
    return CliRunner().invoke(audit, ["verify", str(file), "--json", *(more or given)])


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
     {"checkpoint", "exported checkpoint"}),
    ("a proof of a prefix", "agent", lambda b: edit(of(b, "checkpoint")[0], proof=[]),
     {"checkpoint"}),
    ("a signature", "agent", lambda b: edit(
        of(b, "checkpoint")[2], note=of(b, "checkpoint")[2]["note"].replace("\n12\n", "\n13\n")),
     {"checkpoint", "exported checkpoint"}),
    ("a checkpoint is left out", "all", lambda b: drop(b, of(b, "checkpoint")[1]),
     {"exported checkpoint"}),
    ("the newest is left out", "agent", lambda b: drop(b, of(b, "checkpoint")[-1]),
     {"checkpoint", "exported checkpoint"}),
    ("all checkpoints are left out", "all", lambda b: drop(b, *of(b, "checkpoint")),
     {"checkpoint", "exported checkpoint"}),
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
    lines = [json.loads(line) for line in kept[scope].read_text().splitlines()]
    change(lines)
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert found(verify(kept, spoilt)) == by


def test_another_logs_key_is_told(kept: dict[str, Any]) -> None:
    result = verify(kept, kept["agent"], "--key", str(OTHER_KEY.verifier))
    assert "key" in found(result)
    assert CliRunner().invoke(audit, ["verify", str(kept["all"]), "--key", "x"]).exit_code == 2


def test_checkpoints_that_are_ahead_of_the_bundle_are_told(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    lines = kept["all"].read_text().splitlines()
    leaves = [line for line in lines if '"leaf"' in line]
    newest = [line for line in lines if '"checkpoint"' in line][-1]
    older = tmp_path / "older.jsonl"
    left = [line for line in lines if line not in leaves[-4:] and line != newest]
    older.write_text("\n".join(left) + "\n")
    told = verify(kept, older)
    assert found(told) == {"exported checkpoint"}
    assert "it was cut" in told.stdout


@pytest.mark.parametrize("arguments", [[], ["--live", "FILE"]])
def test_what_to_verify_has_to_be_said(kept: dict[str, Any], arguments: list[str]) -> None:
    given = [str(kept["all"]) if each == "FILE" else each for each in arguments]
    assert CliRunner().invoke(audit, ["verify", *given]).exit_code == 2


def test_whose_to_export_has_to_be_said(tmp_path: Path) -> None:
    assert CliRunner().invoke(audit, ["export", str(tmp_path / "x")]).exit_code == 2


def test_a_person_is_told_in_words(kept: dict[str, Any]) -> None:
    told = CliRunner().invoke(audit, ["verify", str(kept["all"])]).stdout
    assert "13 events of 2 agents, 12 of them in the log; 3 checkpoints, 0 exported ones." in told
    assert "Not yet under a checkpoint: 1 event." in told
    assert "taken on trust" in told
    assert "All of it holds." in told
