"""Every way out of a call, for every target, dialect and form: one capture if it was routed.

docs/capture.md has the table; it is this sweep's, and a test holds it to that.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import ainfera
import asyncpg
import orjson
import pytest

from shared.embedded import APP_ROLE, Servers, postgres_url
from tests.e2e import ways_out as ways
from tests.e2e.calls import PATHS
from tests.e2e.conftest import new_database, two_providers
from tests.e2e.stack import (
    COMMANDS,
    ROOT,
    free_port,
    running_stack,
    start,
    wait_until_ready,
)
from tests.e2e.sweeping import PINNED, ROUTED, Ask, Sweep
from tests.e2e.upstream import Upstream
from tests.e2e.witness import Backstage, Witness
from tests.test_cli import fleet
from workers.capture_guard import Looked, look_on

NAME, REDIS_NUMBER = "e2e_sweep", 8
NAMES = ("web", "inference")
DOCUMENT = Path(ROOT) / "docs" / "capture.md"
FORMS = (True, False)
ALL = (*ROUTED, *PINNED)
UNKNOWN = (*ROUTED, "grok-4", "no-such-model")


@dataclass(frozen=True)
class Exit:
    """A way out, the table's words for it, and the outcome of its captures; None is no call.

    Each target goes it streamed and folded. Where the ingress has a hand in it in each dialect's
    own manner it does so in `each` dialect, else in one after the other.
    """

    way: ways.Way
    words: str
    outcome: str | None
    targets: tuple[str, ...] = ALL
    each: bool = False

    @property
    def asks(self) -> list[Ask]:
        forms = itertools.product(self.targets, FORMS)
        if self.each:
            return [Ask(*form, dialect) for form, dialect in itertools.product(forms, PATHS)]
        return [Ask(*form, dialect) for form, dialect in zip(forms, itertools.cycle(PATHS))]

    @property
    def row(self) -> list[str]:
        """As the document has it."""
        pinned = len(set(self.targets) - set(ROUTED))
        targets = f"{len(self.targets) - pinned} + {pinned}" if pinned else f"{len(self.targets)}"
        outcome = f"`{self.outcome}`" if self.outcome else "no call"
        dialects = "each" if self.each else "in turn"
        return [self.words, outcome, targets, dialects, str(len(self.asks))]


EXITS = (
    Exit(ways.answered, "answered", "succeeded", each=True),
    Exit(ways.in_the_background, "in the background", "succeeded"),
    Exit(ways.comes_again, "sent three times with one idempotency key", "succeeded", each=True),
    Exit(ways.quoted, "by a held quote, and by it once more", "succeeded"),
    Exit(ways.quote_is_another_calls, "by the quote of another request", None),
    Exit(ways.quote_has_expired, "by a quote that has expired", None),
    Exit(ways.not_a_call, "a body that cannot be read", None),
    Exit(ways.below_the_floor, "no model clears the floor", "rejected_floor", ROUTED),
    Exit(ways.over_the_budget, "no model is within the budget", "rejected_floor", ROUTED),
    Exit(ways.not_enrolled, "no model is enrolled", "rejected_not_enrolled", UNKNOWN),
    Exit(ways.over_a_cap, "the cap of a call is passed", "rejected_cap"),
    Exit(ways.over_the_days_cap, "the cap of a day is passed", "rejected_cap"),
    Exit(ways.out_of_funds, "too little money", "rejected_funds", (*ROUTED, "claude-opus-4-7")),
    Exit(ways.killswitch, "the killswitch is engaged", "rejected_cap"),
    Exit(ways.killswitch_in_the_background, "the same, in the background", "rejected_cap"),
    Exit(ways.falls_back, "a provider fails, the next model answers", "succeeded", ROUTED),
    Exit(ways.provider_fails, "every provider fails", "failed_provider"),
    Exit(ways.provider_refuses, "the provider refuses the request", "failed_provider"),
    Exit(ways.breaks_off, "the answer breaks off", "failed_midstream", each=True),
    Exit(ways.cancelled, "cancelled in the middle", "cancelled", each=True),
    Exit(ways.cancelled_in_the_background, "the same, in the background", "cancelled"),
    Exit(ways.cancelled_in_the_queue, "cancelled before a worker has it", "cancelled"),
    Exit(ways.leaves_in_the_middle, "the client leaves in the middle", "cancelled", each=True),
    Exit(ways.leaves_early, "the client leaves before the first word", "cancelled", each=True),
    Exit(ways.leaves_in_the_queue, "the client leaves before a worker has it", "cancelled"),
    Exit(ways.not_begun_in_time, "no worker begins it in time", "expired", each=True),
    Exit(ways.too_long_in_the_queue, "past its deadline when a worker has it", "expired"),
    Exit(ways.too_long_in_the_background, "the same, in the background", "expired"),
    Exit(ways.hold_runs_out, "its hold runs out", "expired"),
    Exit(ways.worker_is_lost, "its worker is lost in the middle", "failed_midstream", each=True),
    Exit(ways.dead_and_discarded, "a dead letter that is discarded", "failed_provider"),
    Exit(ways.dead_and_replayed, "a dead letter that is replayed", "succeeded"),
)


@pytest.fixture(scope="module")
def swept(
    servers: Servers,
    template: str,
    backstage: Backstage,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sweep]:
    """Processes of the sweep's own: it stops its worker, and looks at every call there was."""
    backstage.run(new_database(servers, template, NAME))
    changes = {"PREVIEW_GRANT_USD": "0.5", "LEASE_SECONDS": "2", "REPLAY_SECONDS": "60"}
    database_url, superuser_url = (
        postgres_url(servers.sockets, role, NAME) for role in (APP_ROLE, "postgres")
    )
    redis_url = f"{servers.redis_url}?db={REDIS_NUMBER}"
    changes |= two_providers(upstream)
    home = tmp_path_factory.mktemp("sweep")
    with ExitStack() as opened:
        stores = (database_url, superuser_url, redis_url)
        stack = opened.enter_context(running_stack(home, *stores, changes, NAMES))
        impatient = replace(stack, url=f"http://127.0.0.1:{free_port()}")
        told = {**stack.told, "PORT": impatient.url.rpartition(":")[2]}
        told["START_DEADLINE_SECONDS"] = "0.2"
        stack.processes["impatient"] = start(COMMANDS["web"], home / "impatient.log", told)
        witness = Witness(backstage, stack.superuser_url, stack.redis_url)
        opened.callback(witness.close)
        pool = opened.enter_context(ThreadPoolExecutor(2 * len(EXITS[0].asks)))
        with ainfera.AinferaClient(api_key="", base_url=stack.url) as stranger:
            nobody = stranger.agents.signup(agent_handle="nobody")
        wait_until_ready(impatient)
        yield Sweep(stack, impatient, upstream, witness, pool, nobody)


@pytest.mark.parametrize("exit", EXITS, ids=lambda each: each.way.__name__)
def test_each_way_out_leaves_its_one_capture(swept: Sweep, exit: Exit) -> None:
    sweep = replace(swept, outside=set())
    sweep.sign_up()
    try:
        exit.way(sweep, exit.asks)
    finally:
        sweep.let_go()
    if exit.outcome is None:
        sweep.at_rest()
        assert sweep.calls() == []
    else:
        assert sweep.wrong(exit.asks, exit.outcome) == []


def test_the_query_the_guard_and_the_metric_find_nothing(swept: Sweep) -> None:
    """Of all the calls that the sweep has made, whoever has told whom of them."""
    swept.at_rest()
    looked = swept.witness.run(look_at_all(swept.stack.superuser_url))
    over = "SELECT count(*) FROM inferences WHERE state IN ('settled', 'refused')"
    assert looked == Looked(swept.witness.value(over), 0, 0)
    headers = {"x-ainfera-internal-key": swept.stack.internal_key}
    metrics = swept.stack.request("GET", "/metrics", headers=headers).text.splitlines()
    for name in ("dispatch_without_capture", "passthrough_captured"):
        assert f"ainfera_{name}_total 0.0" in metrics
    checked = fleet("ledger", "check", "--json", **swept.stack.told)
    assert checked.exit_code == 0, checked.output
    proved = {each["name"]: each for each in orjson.loads(checked.stdout)["proofs"]}
    proof = proved["routed_calls_are_captured_once"]
    assert (proof["looked_at"], proof["wrong"]) == (looked.calls, 0)


async def look_at_all(url: str) -> Looked:
    """The guard's rounds over every call, up to this moment."""
    connection = await asyncpg.connect(url)
    since = "SELECT coalesce(min(settled_at), now()) - interval '1 second' FROM inferences"
    await connection.execute(f"UPDATE capture_guard SET checked_until = ({since})")
    found = await look_on(connection, timedelta(0))
    await connection.close()
    return found


def test_the_document_has_the_sweeps_table() -> None:
    table = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert rows == [each.row for each in EXITS]
    calls = sum(len(each.asks) for each in EXITS)
    assert f"{calls:,} calls" in DOCUMENT.read_text()
