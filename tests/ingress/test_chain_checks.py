"""How much of a chain is read to say that it holds, and who waits for whom."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

from ingress import chain_checks
from ingress.chain_checks import ChainChecks, Head
from shared.domain.audit import AuditEvent, draft, event_hash, seal


class Chain:
    """A chain in memory, that notes which parts of it were read."""

    def __init__(self, length: int) -> None:
        self.agent_id = uuid4()
        self.events: list[AuditEvent] = []
        self.read_from: list[int] = []
        self.grow(length)

    def grow(self, by: int, word: str = "") -> None:
        for _ in range(by):
            seq = len(self.events) + 1
            previous = self.events[-1].event_hash if self.events else None
            drafted = draft("receipt.created", str(self.agent_id), {"word": word})
            text = seal(drafted, "2026-01-01T00:00:00Z", seq)
            self.events.append(
                AuditEvent(
                    agent_id=str(self.agent_id),
                    seq=seq,
                    event_type="receipt.created",
                    payload=text,
                    previous_hash=previous,
                    event_hash=event_hash(previous, text),
                )
            )

    @property
    def head(self) -> Head:
        return Head(len(self.events), self.events[-1].event_hash)

    async def read(self, seq: int, most: int) -> Sequence[AuditEvent]:
        self.read_from.append(seq)
        return self.events[seq : seq + most]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_checks, "AT_ONCE", 10)


async def valid(checks: ChainChecks, chain: Chain) -> bool:
    return (await checks.check(chain.agent_id, chain.head, chain.read)).valid


async def test_who_asks_again_waits_for_the_tail_alone() -> None:
    checks, chain = ChainChecks(), Chain(35)
    found = await checks.check(chain.agent_id, chain.head, chain.read)
    assert (found.valid, found.event_count) == (True, 35)
    assert chain.read_from == [0, 10, 20, 30, 35]
    chain.grow(2)
    chain.read_from.clear()
    found = await checks.check(chain.agent_id, chain.head, chain.read)
    assert (found.valid, found.event_count) == (True, 37)
    assert chain.read_from == [34, 35, 37]


@pytest.mark.parametrize("fault", ["rewritten", "cut", "head"])
async def test_an_end_that_is_not_there_any_more_is_built_upon_by_nobody(fault: str) -> None:
    checks, chain = ChainChecks(), Chain(20)
    assert await valid(checks, chain)
    head = chain.head
    if fault == "head":
        head = Head(19, chain.events[18].event_hash)
    else:
        del chain.events[15:]
        if fault == "rewritten":
            chain.grow(9, "other")
    chain.read_from.clear()
    found = await checks.check(chain.agent_id, head, chain.read)
    assert found.valid == (fault == "head")
    assert 0 in chain.read_from


async def test_of_many_who_ask_one_reads() -> None:
    checks, chain = ChainChecks(), Chain(25)
    assert all(await asyncio.gather(*[valid(checks, chain) for _ in range(8)]))
    assert chain.read_from.count(0) == 1


async def test_a_long_chain_holds_up_no_short_one() -> None:
    checks, long, short = ChainChecks(), Chain(500), Chain(3)
    checking = asyncio.create_task(valid(checks, long))
    while not long.read_from:
        await asyncio.sleep(0)
    assert await valid(checks, short)
    assert not checking.done()
    assert await checking


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_checks, "MOST_REMEMBERED", 2)
    checks, chains = ChainChecks(), [Chain(3) for _ in range(3)]
    for chain in chains:
        assert await valid(checks, chain)
        chain.read_from.clear()
    assert await valid(checks, chains[2])
    assert 0 not in chains[2].read_from
    assert await valid(checks, chains[0])
    assert chains[0].read_from[0] == 0
