"""Poison: calls that kill their workers, or meet a bug, and what an operator makes of them."""

import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import ainfera
import asyncpg
import orjson
import pytest
from typer.testing import Result

from shared.catalog import seed_catalog
from shared.embedded import APP_ROLE, OWNER_ROLE, Servers, postgres_url
from tests.e2e.calls import Answer, call
from tests.e2e.stack import Stack, environment, running_stack, start
from tests.e2e.witness import Backstage, Row, Witness, eventually
from tests.nursery import Child
from tests.standins.poison import (
    IS_A_BUG,
    KILLED,
    KILLS_BEFORE_THE_HOLD,
    KILLS_WHILE_ASKED,
)
from tests.test_cli import fleet

NAME, REDIS_NUMBER = "e2e_poison", 7
PATIENCE_S = 60.0
POISON = ["tests.standins.poison"]


@dataclass
class Ward:
    """A stack with workers that die of poison, or with those that were mended."""

    stack: Stack
    told: dict[str, str]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))
    workers: list[Child] = field(default_factory=list)
    mended: bool = False

    def staff(self, count: int, *, mended: bool = False) -> None:
        """So many workers that are alive, all of one kind."""
        if mended != self.mended:
            self.dismiss()
        self.mended = mended
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        told = self.told | ({"ANTIDOTE": "1"} if mended else {})
        log = self.stack.logs / "inference.log"
        self.workers += [start(POISON, log, told) for _ in range(count - len(self.workers))]

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers = []

    def deaths(self) -> int:
        ended = [worker.returncode for worker in self.workers if worker.poll() is not None]
        assert set(ended) <= {KILLED}, self.stack.log_text()[-3000:]
        return len(ended)

    def fleet(self, *words: str) -> Result:
        """The operators' command."""
        return fleet(*words, **self.told)

    def internal(self, method: str, path: str) -> Any:
        headers = {"x-ainfera-internal-key": self.stack.internal_key}
        return self.stack.request(method, f"/internal/dead-letters{path}", headers=headers)

    def ask(self, api_key: str, prompt: str, **options: Any) -> Future[Answer]:
        return self.pool.submit(call, self.stack, api_key, "native", prompt, **options)


@pytest.fixture(scope="module")
def ward(
    servers: Servers, template: str, backstage: Backstage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ward]:
    backstage.run(_database(servers, template))
    home: Path = tmp_path_factory.mktemp("poison")
    database_url = postgres_url(servers.sockets, APP_ROLE, NAME)
    redis_url = f"{servers.redis_url}?db={REDIS_NUMBER}"
    changes = {
        "AINFERA_MASTER_KEY": secrets.token_urlsafe(32),
        "AINFERA_INTERNAL_KEY": secrets.token_urlsafe(32),
        "LEASE_SECONDS": "1",
        "PING_INTERVAL_SECONDS": "0.5",
        "SIMULATED_FIRST_TOKEN_MS": "0",
        "SIMULATED_TOKEN_MS": "0",
    }
    superuser_url = postgres_url(servers.sockets, "postgres", NAME)
    stores = (database_url, superuser_url, redis_url)
    with running_stack(home, *stores, changes, names=("web", "books")) as stack:
        told = environment(database_url, redis_url, 0, changes)
        ward = Ward(stack, told)
        try:
            yield ward
        finally:
            ward.dismiss()
            ward.pool.shutdown(wait=False)


async def _database(servers: Servers, template: str) -> None:
    connection = await asyncpg.connect(servers.superuser_url)
    try:
        await connection.execute(f"CREATE DATABASE {NAME} TEMPLATE {template} OWNER {OWNER_ROLE}")
    finally:
        await connection.close()
    await seed_catalog(postgres_url(servers.sockets, OWNER_ROLE, NAME))


@pytest.fixture(scope="module")
def seen(backstage: Backstage, ward: Ward) -> Iterator[Witness]:
    looking = Witness(backstage, ward.stack.superuser_url, ward.stack.redis_url)
    yield looking
    looking.close()


@pytest.fixture
def patient(ward: Ward) -> ainfera.SignupResult:
    with ainfera.AinferaClient(api_key="", base_url=ward.stack.url) as stranger:
        return stranger.agents.signup(agent_handle=f"patient-{secrets.token_hex(4)}")


def letter_of(seen: Witness, tenant_id: str) -> Row:
    query = "SELECT * FROM dead_letters WHERE tenant_id = $1::uuid AND state = 'dead'"
    return eventually(lambda: seen.rows(query, tenant_id), "a dead letter")[0]


@pytest.mark.parametrize(
    ("poison", "held", "stream"),
    [
        (KILLS_WHILE_ASKED, "voided", False),
        (KILLS_WHILE_ASKED, "voided", True),
        (KILLS_BEFORE_THE_HOLD, None, False),
    ],
    ids=["while-asked", "while-asked-streamed", "before-the-hold"],
)
def test_a_poison_call_kills_three_workers_and_no_fourth(
    ward: Ward,
    seen: Witness,
    patient: ainfera.SignupResult,
    poison: str,
    held: str | None,
    stream: bool,
) -> None:
    ward.staff(4)
    answer = ward.ask(patient.api_key, f"a draught of {poison}", stream=stream).result(PATIENCE_S)
    assert ward.deaths() == 3
    # a stream that waits long is opened with a ping: the error comes inside it
    assert (answer.status, answer.error_code) == (200 if stream else 503, "overloaded")
    assert stream or int(answer.headers["retry-after"]) >= 1

    letter = letter_of(seen, patient.tenant_id)
    inference = answer.inference_id
    assert (letter["inference_id"], letter["attempts"]) == (inference, 4)
    assert [failure["attempt"] for failure in letter["failures"]] == [1, 2, 3]
    (row,) = seen.rows("SELECT * FROM inferences WHERE id = $1::uuid", inference)
    assert (row["state"], row["hold_state"]) == ("dead", held)
    wallet = seen.wallet(patient.agent_id)
    assert (wallet["balance"], wallet["held"]) == (5, 0)
    assert seen.captures(inference) == []
    assert seen.tables_with(poison) == [], "sealed at rest"
    eventually(lambda: not seen.keys_with(poison), "nothing of it left in Valkey")
    # the worker that buried it is well
    assert ward.ask(patient.api_key, "water").result(PATIENCE_S).status == 200
    assert ward.deaths() == 3


def test_an_operator_replays_it_with_a_mended_worker_for_one_charge(
    ward: Ward, seen: Witness, patient: ainfera.SignupResult
) -> None:
    ward.staff(4)
    asked = ward.ask(patient.api_key, f"more {KILLS_WHILE_ASKED}")
    inference = asked.result(PATIENCE_S).inference_id
    letter_of(seen, patient.tenant_id)

    which = ("--tenant", patient.tenant_id, "--code", "worker_lost")
    listed = ward.fleet("dead-letters", "list", *which, "--json")
    assert [each["inference_id"] for each in orjson.loads(listed.stdout)] == [inference]
    rehearsed = ward.fleet("dead-letters", "replay", *which, "--dry-run")
    assert inference in rehearsed.stdout
    asking = ward.fleet("dead-letters", "replay", *which)
    assert asking.exit_code == 1, "nobody said yes"
    assert letter_of(seen, patient.tenant_id)["state"] == "dead"

    ward.staff(1, mended=True)
    done = ward.fleet("dead-letters", "replay", *which, "--yes", "--json")
    assert orjson.loads(done.stdout)["done"] == [inference], done.stderr
    row = seen.inference(inference)
    assert (row["state"], row["attempt"], row["hold_state"]) == ("settled", 5, "posted")
    assert [c["outcome_status"] for c in seen.captures(inference)] == ["succeeded"]
    assert len(seen.transfers(inference)) == len(seen.receipts(inference)) == 1
    wallet = seen.wallet(patient.agent_id)
    assert (wallet["balance"], wallet["held"]) == (5 - row["settled_usd"], 0)
    again = ward.fleet("dead-letters", "replay", inference, "--yes", "--json")
    assert again.exit_code == 1
    assert orjson.loads(again.stdout)["not_done"] == {inference: "not_dead"}
    acts = seen.rows("SELECT act FROM operator_events WHERE target = $1", inference)
    assert [each["act"] for each in acts] == ["dead_letter.replay"]


def test_a_bug_is_told_at_once_and_its_call_can_be_replayed_once(
    ward: Ward, seen: Witness, patient: ainfera.SignupResult
) -> None:
    ward.staff(1)
    answer = ward.ask(patient.api_key, f"a {IS_A_BUG}").result(PATIENCE_S)
    assert (answer.status, answer.error_code) == (500, "internal_error")
    letter = letter_of(seen, patient.tenant_id)
    assert (letter["error_code"], letter["attempts"]) == ("internal_error", 1)
    assert "KeyError at plan_call" in letter["error_message"]
    assert seen.tables_with(IS_A_BUG) == []

    ward.staff(1, mended=True)
    path = f"/{answer.inference_id}"
    assert ward.internal("GET", path).json()["error_code"] == "internal_error"
    orders = [ward.pool.submit(ward.internal, "POST", f"{path}/replay") for _ in range(4)]
    assert sorted(each.result().status_code for each in orders) == [200, 409, 409, 409]
    assert seen.inference(answer.inference_id)["attempt"] == 2
    assert len(seen.captures(answer.inference_id)) == 1
    assert len(seen.receipts(answer.inference_id)) == 1


def test_a_discarded_call_is_captured_once_and_costs_nothing(
    ward: Ward, seen: Witness, patient: ainfera.SignupResult
) -> None:
    ward.staff(1)
    answer = ward.ask(patient.api_key, f"another {IS_A_BUG}").result(PATIENCE_S)
    letter_of(seen, patient.tenant_id)
    path = f"/{answer.inference_id}"
    listed = ward.internal("GET", f"?tenant={patient.tenant_id}").json()
    assert [each["inference_id"] for each in listed] == [answer.inference_id]
    assert IS_A_BUG not in str(listed)
    assert ward.internal("POST", f"{path}/discard").json()["state"] == "discarded"
    assert ward.internal("POST", f"{path}/discard").status_code == 409
    assert ward.internal("POST", f"{path}/replay").status_code == 409
    assert [c["outcome_status"] for c in seen.captures(answer.inference_id)] == ["failed_provider"]
    assert seen.wallet(patient.agent_id)["balance"] == Decimal(5)
    events = [event["event_type"] for event in seen.events(answer.inference_id)]
    assert events == ["provider.failed"]


def test_what_the_client_sent_is_shown_only_to_who_asks_for_it(
    ward: Ward, seen: Witness, patient: ainfera.SignupResult
) -> None:
    ward.staff(1)
    answer = ward.ask(patient.api_key, f"a third {IS_A_BUG}").result(PATIENCE_S)
    letter_of(seen, patient.tenant_id)
    inference = answer.inference_id
    assert IS_A_BUG not in ward.fleet("dead-letters", "show", inference).stdout
    assert ward.fleet("dead-letters", "show", inference, "--reveal").exit_code == 1
    revealed = ward.fleet("dead-letters", "show", inference, "--reveal", "--yes")
    assert IS_A_BUG in revealed.stdout
    acts = seen.rows("SELECT act FROM operator_events WHERE target = $1", inference)
    assert [each["act"] for each in acts] == ["dead_letter.reveal"]
    assert IS_A_BUG not in ward.stack.log_text()
