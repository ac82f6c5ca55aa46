"""`fleet receipt`: what it says of files of receipts, and with which exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shared.domain.audit import draft, event_hash, seal
from shared.domain.checkpoint import encode, entry
from shared.domain.merkle import Growing, leaf_hash
from tests.receipts.altering import altered
from tests.receipts.cases import AGENT, JWKS, KEY, Json, receipts, written
from tests.receipts.verifying import VERIFIER
from workers.cli import main

MADE = receipts(20, 11)


@pytest.fixture
def jwks(tmp_path: Path) -> str:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(JWKS))
    return str(file)


def fleet(*words: str) -> Result:
    return CliRunner().invoke(main, ["receipt", *words])


def saved(folder: Path, made: list[Json]) -> str:
    file = folder / "receipts.jsonl"
    file.write_text(written(made))
    return str(file)


def test_the_verifier_is_printed_as_it_is() -> None:
    assert fleet("verifier").stdout == VERIFIER.read_text()


def test_one_receipt_is_told_line_by_line(tmp_path: Path, jwks: str) -> None:
    done = fleet("verify", saved(tmp_path, MADE[:1]), "--jwks", jwks)
    assert done.exit_code == 0
    first, *lines = done.stdout.splitlines()
    assert first == f"receipt {MADE[0]['inference_id']}: valid"
    assert [line.split()[:2] for line in lines] == [
        ["proved", name] for name in ("signature", "catalog", "ruleset", "rule", "event", "log")
    ] + [["proved", "own"]]


def test_of_many_it_tells_the_wrong_ones_and_how_many_there_are(tmp_path: Path, jwks: str) -> None:
    made = [*MADE[:10], altered(MADE[10], ("cell",)), *MADE[11:]]
    done = fleet("verify", saved(tmp_path, made), "--jwks", jwks)
    assert done.exit_code == 1
    assert done.stdout.count("receipt ") == 1
    assert f"receipt {MADE[10]['inference_id']}: mismatch" in done.stdout
    assert "MISMATCH   rule       run again, the rule gives another cell" in done.stdout
    assert "20 receipts: 19 valid, 1 mismatch." in done.stdout


def test_the_fleets_own_rule_is_a_second_witness(tmp_path: Path) -> None:
    wrong = altered(MADE[0], ("decision_rule",))
    done = fleet("verify", saved(tmp_path, [wrong]), "--json")
    told = {each["name"]: each["proved"] for each in json.loads(done.stdout)["checks"]}
    assert (told["rule"], told["own rule"]) == (False, False)


def test_from_standard_input_in_json(jwks: str) -> None:
    command = [sys.executable, "-m", "workers.cli", "receipt", "verify", "-", "--jwks", jwks]
    typed = written(MADE[:3])
    done = subprocess.run([*command, "--json"], input=typed, capture_output=True, text=True)
    assert done.returncode == 0
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["verdict"] for one in told] == ["valid"] * 3


def test_what_cannot_be_read_is_said(tmp_path: Path, jwks: str) -> None:
    assert fleet("verify", str(tmp_path / "nothing")).exit_code == 2
    file = saved(tmp_path, MADE[:1])
    assert fleet("verify", file, "--jwks", str(tmp_path / "nothing")).exit_code == 2
    broken = tmp_path / "broken"
    broken.write_text('{"keys": 7}')
    assert fleet("verify", file, "--jwks", str(broken)).exit_code == 2


# -- the chain, as an auditor has it ---------------------------------------------------------------


def chain_of(receipt: Json, **changes: str) -> list[Json]:
    """A bundle of one agent whose first event is the receipt's, or one that says something else."""
    event = receipt["audit_event"]
    own = ("agent_id", "created_at", "event_type", "seq")
    data = {n: v for n, v in event["payload"].items() if n not in own} | changes
    at = event["payload"]["created_at"]
    text = seal(draft(event["event_type"], AGENT, data), at, 1)
    hashed = event_hash(None, text)
    leaf, tree = leaf_hash(entry(AGENT, 1, hashed)), Growing()
    tree.append(leaf)
    place = {"agent_id": AGENT, "seq": 1}
    return [
        {"type": "log", "version": 1, "key": str(KEY.verifier), "everything": True},
        {"type": "checkpoint", "note": KEY.sign(1, tree.root())},
        {
            "type": "event",
            **place,
            "event_type": event["event_type"],
            "payload": text,
            "previous_hash": None,
            "event_hash": hashed,
        },
        {"type": "head", **place, "hash": hashed},
        {"type": "leaf", "index": 0, **place, "hash": encode(leaf)},
    ]


@pytest.mark.parametrize(
    ("number", "changes", "code", "said"),
    [
        (0, {}, 0, "proved     bundle     the chain has exactly this event 1"),
        (0, {"outcome": "cancelled"}, 1, "MISMATCH   bundle     the chain has another event 1"),
        (1, {}, 0, "not shown  bundle     the bundle has no such event"),
    ],
)
def test_the_event_is_looked_up_in_a_bundle(
    tmp_path: Path, jwks: str, number: int, changes: dict[str, str], code: int, said: str
) -> None:
    bundle = tmp_path / "bundle.jsonl"
    bundle.write_text("".join(json.dumps(each) + "\n" for each in chain_of(MADE[0], **changes)))
    file = saved(tmp_path, [MADE[number]])
    done = fleet("verify", file, "--jwks", jwks, "--audit", str(bundle))
    assert said in done.stdout
    assert done.exit_code == code


def test_a_bundle_that_does_not_hold_proves_nothing(tmp_path: Path, jwks: str) -> None:
    bundle = tmp_path / "bundle.jsonl"
    records = chain_of(MADE[0])
    records[2]["payload"] = records[2]["payload"].replace("succeeded", "cancelled")
    records[3]["hash"] = "0" * 64
    bundle.write_text("".join(json.dumps(each) + "\n" for each in records))
    done = fleet("verify", saved(tmp_path, MADE[:1]), "--jwks", jwks, "--audit", str(bundle))
    assert "the bundle does not hold" in done.stdout
    assert done.exit_code == 1


def test_a_bundle_that_anybody_can_write_proves_nothing(tmp_path: Path) -> None:
    """Without the gateway's key its own is believed, and that is not enough."""
    bundle = tmp_path / "bundle.jsonl"
    bundle.write_text("".join(json.dumps(each) + "\n" for each in chain_of(MADE[0])))
    unsigned = {name: value for name, value in MADE[0].items() if name != "signature"}
    done = fleet("verify", saved(tmp_path, [unsigned]), "--audit", str(bundle))
    assert done.exit_code == 3
    assert "in a log whose key is not of the key set" in done.stdout


def test_an_event_that_is_not_logged_is_not_proved(tmp_path: Path, jwks: str) -> None:
    bundle = tmp_path / "bundle.jsonl"
    log, _, event, head, _ = chain_of(MADE[0])
    bundle.write_text("".join(json.dumps(each) + "\n" for each in (log, event, head)))
    done = fleet("verify", saved(tmp_path, MADE[:1]), "--jwks", jwks, "--audit", str(bundle))
    assert "under no checkpoint" in done.stdout
