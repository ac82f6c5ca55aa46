"""How long calls waited for their decision, told by what the gateway wrote down."""

import time

from shared.db import APP_ROLE, connect
from shared.ids import mint_id
from tests.bench.decided import Windows, routed_ms, routed_table
from tests.bench.targets import AINFERA
from tests.workers.ledger_cases import hold, new_agent, results


async def test_a_wait_is_from_the_ids_millisecond_to_the_routed_event(
    owner_url: str, database_url: str
) -> None:
    db = await connect(database_url, APP_ROLE, "test")
    windows = Windows()
    try:
        agent = await new_agent(db)
        minted = time.time()
        calls = [hold(agent, "0.1", str(mint_id())) for _ in range(3)]
        with windows.noted("provider", "passed over"):
            pass
        with windows.noted(AINFERA, "three calls"):
            assert await results(db, "open_inferences", *calls) == ["OPENED"] * 3
        with windows.noted(AINFERA, "none"):
            pass
        took_ms = (time.time() - minted) * 1000 + 1
    finally:
        await db.close()
    waits = await routed_ms(owner_url, windows)
    assert list(waits) == ["three calls", "none"]
    assert len(waits["three calls"]) == 3
    assert all(0 <= wait <= took_ms for wait in waits["three calls"])
    table = routed_table(waits)
    assert "three calls" in table
    assert "none" not in table
