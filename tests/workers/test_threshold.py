"""The call that would pass a threshold engages the killswitch; what counts, and what does not."""

from decimal import Decimal
from uuid import UUID

from shared.db import Connection, Database
from shared.domain.spending import ALL
from tests.workers.ledger_cases import cap_tenant, hold, new_agent, results
from tests.workers.letter_cases import burial
from tests.workers.threshold_cases import (
    counted,
    enlarged,
    guard,
    opened,
    settle,
    slide,
    switches,
    told,
    turn,
    under_way,
)

# -- what it says --------------------------------------------------------------------------------


async def test_the_call_that_would_pass_a_threshold_engages_it(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent, other = await new_agent(ledger_db), await new_agent(ledger_db)
    items = [hold(agent, "1"), hold(other, "1"), hold(agent, "1"), hold(agent, "0.5")]
    answers = await opened(ledger_db, guard("2"), *items)
    assert [a["result"] for a in answers] == ["OPENED", "OPENED", "OPENED", "KILLSWITCH"]
    assert answers[3]["cap"] == 2
    (row,) = await switches(ledger_db, agent.tenant_id)
    assert (row["engaged_by"], row["spent_usd"], row["threshold_usd"]) == ("threshold", 2, 2)
    assert row["reason"] == (
        "2 USD settled and held in 3600 s; a call that asked for 0.5 USD more would have passed "
        "the threshold of 2 USD"
    )
    assert await under_way(ledger_db, row["id"]) == {
        items[0]["inference_id"],
        items[2]["inference_id"],
    }
    acts = "SELECT act, actor FROM operator_events WHERE target = $1"
    assert [tuple(a) for a in await ledger_db.fetch(acts, agent.tenant_id)] == [
        ("killswitch.engage", "threshold")
    ]
    # whatever is free again, until somebody releases it
    await settle(ledger_db, agent, items[0], "0")
    assert await told(ledger_db, guard("2"), hold(agent, "0.1"), hold(other, "1")) == [
        "KILLSWITCH",
        "OPENED",
    ]
    assert len(await switches(ledger_db, agent.tenant_id)) == 1


async def test_what_is_settled_cheaper_than_held_is_counted_as_settled(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent, limit = await new_agent(ledger_db), guard("2")
    for _ in range(9):
        item = hold(agent, "1")
        assert await told(ledger_db, limit, item) == ["OPENED"]
        await settle(ledger_db, agent, item, "0.125")
    assert await told(ledger_db, limit, hold(agent, "0.875")) == ["OPENED"]
    assert await told(ledger_db, limit, hold(agent, "0.000000001")) == ["KILLSWITCH"]


async def test_the_tenants_threshold_comes_before_that_of_all(
    ledger_db: Connection, unstopped: Database
) -> None:
    one, two = await new_agent(ledger_db), await new_agent(ledger_db)
    both = guard("1", "1.5")
    assert await told(ledger_db, both, hold(one, "1.6")) == ["KILLSWITCH"]
    assert (
        await switches(ledger_db, ALL) == [] or (await switches(ledger_db, ALL))[-1]["released_at"]
    )
    assert await told(ledger_db, both, hold(two, "0.9")) == ["OPENED"]
    three = await new_agent(ledger_db)
    assert await told(ledger_db, both, hold(three, "0.7")) == ["KILLSWITCH"]
    assert (await switches(ledger_db, ALL))[-1]["released_at"] is None
    assert await switches(ledger_db, three.tenant_id) == []
    assert await told(ledger_db, guard(), hold(await new_agent(ledger_db), "0.1")) == ["KILLSWITCH"]


async def test_an_operators_choice_wins_over_the_settings(
    ledger_db: Connection, unstopped: Database
) -> None:
    tight, free = await new_agent(ledger_db), await new_agent(ledger_db)
    choose = "INSERT INTO killswitch_thresholds (scope, threshold_usd, set_by) VALUES ($1, $2, 'x')"
    await ledger_db.execute(choose, tight.tenant_id, Decimal("0.5"))
    await ledger_db.execute(choose, free.tenant_id, None)
    assert await told(ledger_db, guard("1"), hold(tight, "0.6"), hold(free, "5")) == [
        "KILLSWITCH",
        "OPENED",
    ]
    assert await told(ledger_db, "{}", hold(await new_agent(ledger_db), "5")) == ["OPENED"]


async def test_a_call_that_could_do_with_less_engages_nothing(
    ledger_db: Connection, unstopped: Database
) -> None:
    """An exploring call asks tentatively, and comes again with what the rule chooses by itself."""
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    assert await told(ledger_db, guard("1"), {**item, "tentative": True}) == ["KILLSWITCH"]
    assert await switches(ledger_db, agent.tenant_id) == []
    assert await told(ledger_db, guard("1"), {**item, "amount": "1"}) == ["OPENED"]


async def test_who_is_refused_anyway_engages_nothing(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent = await new_agent(ledger_db, "10", "3", "4")
    capped = await new_agent(ledger_db)
    await cap_tenant(ledger_db, capped, "2")
    tries = [hold(agent, "3.5"), hold(capped, "2.5")]
    assert await told(ledger_db, guard("1"), *tries) == ["PER_CALL_CAP", "TENANT_CAP"]
    poor = await new_agent(ledger_db, "0.5")
    assert await told(ledger_db, guard("0.1"), hold(poor, "1")) == ["INSUFFICIENT_FUNDS"]
    for each in (agent, capped, poor):
        assert await switches(ledger_db, each.tenant_id) == []


async def test_a_running_call_goes_on_but_not_over_a_threshold(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent, limit = await new_agent(ledger_db), guard("2")
    item = hold(agent, "1")
    assert await told(ledger_db, limit, item) == ["OPENED"]
    assert await turn(unstopped, agent.tenant_id, engaged=True)
    assert await enlarged(ledger_db, limit, item, "0.5") == "EXTENDED"
    assert await told(ledger_db, limit, item) == ["EXISTS"]
    assert await turn(unstopped, agent.tenant_id, engaged=False)

    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    assert await told(ledger_db, limit, item) == ["OPENED"]
    assert await enlarged(ledger_db, limit, item, "1") == "EXTENDED"
    assert await enlarged(ledger_db, limit, item, "0.1") == "KILLSWITCH"
    assert await enlarged(ledger_db, limit, item, "0") == "EXTENDED"
    (row,) = await switches(ledger_db, agent.tenant_id)
    assert row["spent_usd"] == await counted(ledger_db, agent.tenant_id) == 2
    assert await under_way(ledger_db, row["id"]) == {item["inference_id"]}


async def test_a_release_begins_a_new_count(ledger_db: Connection, unstopped: Database) -> None:
    agent, limit = await new_agent(ledger_db), guard("2")
    running, done = hold(agent, "1"), hold(agent, "1")
    assert await told(ledger_db, limit, running, done, hold(agent, "1")) == [
        "OPENED",
        "OPENED",
        "KILLSWITCH",
    ]
    await settle(ledger_db, agent, done, "1")
    assert await turn(unstopped, agent.tenant_id, engaged=False)
    assert await told(ledger_db, limit, hold(agent, "1.5")) == ["OPENED"]
    await settle(ledger_db, agent, running, "1")
    await slide(ledger_db, 3600)
    assert await told(ledger_db, limit, hold(agent, "0.5")) == ["OPENED"]
    assert await told(ledger_db, limit, hold(agent, "0.1")) == ["KILLSWITCH"]


async def test_a_dead_call_that_is_replayed_counts_again(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent, limit = await new_agent(ledger_db), guard("1")
    item = hold(agent, "1")
    assert await told(ledger_db, limit, item) == ["OPENED"]
    buried = burial(agent, item["inference_id"], 1)
    assert await results(ledger_db, "bury_inferences", buried) == ["BURIED"]
    other = hold(agent, "0.5")
    assert await told(ledger_db, limit, other) == ["OPENED"]
    await ledger_db.execute(
        "UPDATE dead_letters SET state = 'replayed', resolved_at = now(), resolved_by = 'x'"
        " WHERE inference_id = $1",
        UUID(item["inference_id"]),
    )
    assert await told(ledger_db, limit, {**item, "attempt": 2}) == ["KILLSWITCH"]
