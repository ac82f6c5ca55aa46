"""The promises as questions to the stores and to the clients' notes: no row is an answer.

Each query names what breaks it. Nothing here goes through the application's code, but for the
verification of the chains, which is a rule of its own and has its own tests.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
from redis.asyncio import Redis

from shared.domain.audit import AuditEvent, verify_chain
from shared.domain.ledger import PROVIDER_COST_ACCOUNT
from shared.queue import INFERENCE_QUEUE
from tests.faults.clients import Heard
from tests.faults.provider import NumberingProvider

SHOWN = 4
# keys of the queue that do not belong to a job
STAYS = ("bell", "passed", "turn", "claims", "served")
# honest, and all that is left to say when a worker died between its commit and its last word
ANSWER_LOST = b"was settled by an earlier attempt"
READ_LATE_S = 0.02
# the last that may ask; a hold that runs out is ended as by one more
MOST_ATTEMPTS = 3 + 1
# PROVIDER_ATTEMPTS, and MAX_FALLBACKS after the first model, in each attempt that may ask
MOST_QUESTIONS = 2 * (1 + 2) * 3
BROKEN = "| BROKEN: "
_ENDED = "i.state IN ('settled', 'refused')"

QUERIES = {
    "every call is over": (
        "SELECT id, state, attempt, hold_expires_at FROM inferences WHERE state = 'held'"
    ),
    "one capture per routed call": (
        "SELECT i.id, i.state FROM inferences i LEFT JOIN routing_outcomes o "
        f"ON o.inference_id = i.id WHERE i.routed AND {_ENDED} AND o.inference_id IS NULL"
    ),
    "no capture for a passthrough or a dead call": (
        "SELECT i.id FROM routing_outcomes o JOIN inferences i ON i.id = o.inference_id "
        f"WHERE NOT i.routed OR NOT {_ENDED}"
    ),
    "no capture, receipt or transfer without its call": (
        "SELECT x.inference_id FROM (SELECT inference_id FROM routing_outcomes UNION ALL "
        "SELECT inference_id FROM receipts UNION ALL SELECT inference_id FROM transfers "
        "WHERE inference_id IS NOT NULL) x LEFT JOIN inferences i ON i.id = x.inference_id "
        "WHERE i.id IS NULL"
    ),
    "settled equals cost": (
        "SELECT i.id, i.settled_usd, r.cost_usd, t.usage, t.lost FROM inferences i "
        "LEFT JOIN receipts r ON r.inference_id = i.id LEFT JOIN (SELECT inference_id, "
        "sum(amount) FILTER (WHERE kind = 'usage') AS usage, "
        "sum(amount) FILTER (WHERE kind = 'writeoff') AS lost "
        "FROM transfers GROUP BY 1) t ON t.inference_id = i.id "
        "WHERE coalesce(t.usage, 0) <> coalesce(i.settled_usd, 0) "
        "OR coalesce(t.usage, 0) + coalesce(t.lost, 0) <> coalesce(r.cost_usd, 0)"
    ),
    "one settlement per call": (
        "SELECT inference_id, kind, count(*) FROM transfers WHERE inference_id IS NOT NULL "
        "GROUP BY 1, 2 HAVING count(*) > 1 UNION ALL "
        "SELECT inference_id, 'receipt', count(*) FROM receipts GROUP BY 1 HAVING count(*) > 1"
    ),
    "a receipt in the chain for each receipt": (
        "SELECT coalesce(r.inference_id::text, e.id) AS id, e.events FROM receipts r "
        "FULL JOIN (SELECT payload::jsonb ->> 'inference_id' AS id, count(*) AS events "
        "FROM audit_events WHERE event_type = 'receipt.created' GROUP BY 1) e "
        "ON e.id = r.inference_id::text WHERE e.events IS DISTINCT FROM 1 OR r.inference_id IS NULL"
    ),
    "debits equal credits": (
        "SELECT sum(amount) FROM ledger_entries HAVING coalesce(sum(amount), 0) <> 0"
    ),
    "a balance is the fold of its transfers": (
        "SELECT a.id, a.balance, coalesce(sum(e.amount), 0) AS folded FROM accounts a "
        "LEFT JOIN ledger_entries e ON e.account_id = a.id WHERE a.kind = 'wallet' "
        "GROUP BY a.id HAVING a.balance <> coalesce(sum(e.amount), 0)"
    ),
    "available money is never below zero": (
        "SELECT id, balance, held FROM accounts WHERE kind = 'wallet' AND balance < held "
        "OR held < 0 UNION ALL SELECT debit_account, debit_balance_after, 0 FROM transfers "
        "WHERE debit_balance_after < 0"
    ),
    "what is held is what open calls hold": (
        "SELECT a.id, a.held, sum(i.hold_usd) AS open FROM accounts a LEFT JOIN inferences i "
        "ON i.agent_id = a.agent_id AND i.state = 'held' WHERE a.kind = 'wallet' "
        "GROUP BY a.id HAVING a.held <> coalesce(sum(i.hold_usd), 0)"
    ),
    "settled is at most what was held": (
        "SELECT id, settled_usd, hold_usd FROM inferences WHERE settled_usd > hold_usd"
    ),
    "a threshold counts what was settled and is held": (
        # of any window: this one is longer than the one that the fleet moves along
        "WITH plain AS (SELECT x.tenant_id::text AS scope, sum(x.usd) AS usd FROM (SELECT "
        "tenant_id, amount AS usd FROM transfers WHERE kind = 'usage' AND "
        f"credit_account = '{PROVIDER_COST_ACCOUNT}' UNION ALL SELECT tenant_id, hold_usd FROM "
        "inferences WHERE state = 'held') x GROUP BY 1), every AS (SELECT * FROM plain UNION ALL "
        "SELECT 'all', coalesce(sum(usd), 0) FROM plain) SELECT e.scope, e.usd, s.spent_usd, "
        "k.at_most_usd FROM every e LEFT JOIN killswitch_spending(NULL, 604800) s USING (scope) "
        "LEFT JOIN killswitch_spending(NULL, 3600) h USING (scope) LEFT JOIN killswitch_spent k "
        "USING (scope) WHERE e.usd IS DISTINCT FROM s.spent_usd OR k.at_most_usd < h.spent_usd"
    ),
    "a hold ends once, in time": (
        "SELECT id, state, hold_state FROM inferences WHERE hold_expires_at < now() "
        "AND state = 'held' OR state = 'settled' AND hold_state NOT IN ('posted', 'voided')"
    ),
    "every kept call is over, with its result": (
        "SELECT k.inference_id, k.state, k.attempts, i.state AS of_call FROM kept_calls k "
        "LEFT JOIN inferences i ON i.id = k.inference_id WHERE k.state = 'accepted' "
        "OR k.state = 'done' AND (k.result IS NULL OR i.state IS NULL OR "
        "i.state NOT IN ('settled', 'refused'))"
    ),
    "no call in the background is lost": (
        # its deadline is a day: only a call that nobody drives again runs out of time here
        "SELECT inference_id, attempts FROM kept_calls WHERE background AND outcome = 'expired'"
    ),
    "attempts are counted and few": (
        # one that was tried too often is only set aside, and that may take a few attempts too
        "SELECT id, attempt, state FROM inferences "
        f"WHERE attempt > {MOST_ATTEMPTS} AND state <> 'dead'"
    ),
    "a dead call has a letter and holds nothing": (
        "SELECT i.id FROM inferences i LEFT JOIN dead_letters d ON d.inference_id = i.id "
        "WHERE i.state = 'dead' AND (d.inference_id IS NULL OR i.hold_state = 'pending')"
    ),
}


@dataclass
class Findings:
    """Each promise with what breaks it."""

    broken: dict[str, dict[str, None]] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)

    def note(self, promise: str, found: Iterable[Any]) -> None:
        """What is found again, because it is asked for again, counts once."""
        self.broken.setdefault(promise, {}).update(dict.fromkeys(map(str, found)))

    @property
    def violations(self) -> int:
        return sum(len(each) for each in self.broken.values())

    def news(self) -> Iterator[str]:
        """What was found since this was last asked for, a little of each promise."""
        for promise, found in self.broken.items():
            told = self._told.get(promise, 0)
            yield from (f"BROKEN {promise}: {each}" for each in list(found)[told:][:SHOWN])
            self._told[promise] = len(found)

    def lines(self) -> Iterator[str]:
        for promise, found in self.broken.items():
            yield f"{BROKEN if found else '| '}{promise} | {len(found)} |"
            yield from (f"    {each}" for each in list(found)[:SHOWN])


async def ask_stores(connection: Any, redis: Redis, findings: Findings) -> None:
    """All promises that the stores alone can answer for."""
    for promise, query in QUERIES.items():
        findings.note(promise, [dict(row) for row in await connection.fetch(query)])
    findings.note("chains are dense and verify", [fault async for fault in chains(connection)])
    left = [key async for key in redis.scan_iter(match=f"{INFERENCE_QUEUE}:*", count=1000)]
    harmless = {f"{INFERENCE_QUEUE}:{end}" for end in STAYS}
    findings.note("no job is left over", [key for key in left if key.decode() not in harmless])


async def chains(connection: Any) -> Any:
    heads = await connection.fetch("SELECT agent_id, seq, hash FROM audit_heads")
    for head in heads:
        agent_id = str(head["agent_id"])
        query = "SELECT * FROM audit_events WHERE agent_id = $1 ORDER BY seq"
        events = await connection.fetch(query, head["agent_id"])
        chain = [
            AuditEvent(
                agent_id,
                row["seq"],
                row["event_type"],
                row["payload"],
                row["previous_hash"],
                row["event_hash"],
            )
            for row in events
        ]
        verified = verify_chain(chain)
        if not verified.valid:
            yield f"{agent_id}: {verified.failure_seq} {verified.failure_reason}"
        tip = (chain[-1].seq, chain[-1].event_hash) if chain else (0, None)
        if tip != (head["seq"], head["hash"]) and head["seq"]:
            yield f"{agent_id}: its head is not its last event"
    query = "SELECT DISTINCT agent_id FROM audit_events EXCEPT SELECT agent_id FROM audit_heads"
    for row in await connection.fetch(query):
        yield f"{row['agent_id']}: events without a head"


# -- what clients were told ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Books:
    """What the database knows of each call, by its id."""

    state: dict[str, str]
    outcome: dict[str, str]
    settled_at: dict[str, datetime]
    receipts: set[str]
    routed: dict[str, bool]

    @classmethod
    async def read(
        cls, connection: "asyncpg.Connection[asyncpg.Record]", ids: Iterable[str]
    ) -> "Books":
        rows = await connection.fetch(
            "SELECT i.id::text, i.state, i.settled_at, i.routed, o.outcome_status, r.receipt_id "
            "FROM inferences i LEFT JOIN routing_outcomes o ON o.inference_id = i.id "
            "LEFT JOIN receipts r ON r.inference_id = i.id WHERE i.id = ANY ($1::uuid[])",
            [*ids],
        )
        return cls(
            {row["id"]: row["state"] for row in rows},
            {row["id"]: row["outcome_status"] for row in rows if row["outcome_status"]},
            {row["id"]: row["settled_at"] for row in rows if row["settled_at"]},
            {row["id"] for row in rows if row["receipt_id"]},
            {row["id"]: row["routed"] for row in rows},
        )


def ask_clients(
    heard: list[Heard], provider: NumberingProvider, books: Books, findings: Findings
) -> None:
    """All promises that are about what a client was told, and when."""
    single: dict[str, Callable[[Heard], bool]] = {
        "words of one answer, without a gap": lambda h: not spliced(h),
        "exactly one end or one error": one_end,
        "nobody waits in vain": lambda h: "waited in vain" not in h.ends,
        "what is done is whole": lambda h: "done" not in h.ends or whole(h, provider),
        "an accepted call is in the books": (
            lambda h: not h.accepted or books.state.get(h.inference_id, "held") != "held"
        ),
        "the end is told after the settlement": lambda h: told_after(h, books),
        "routed calls are captured, passthrough is not": lambda h: captured(h, books),
    }
    for promise, holds in single.items():
        findings.note(promise, [shown(each) for each in heard if not holds(each)])
    findings.note("one key, one inference, one text", same_keys(heard))
    bugs = [h for h in heard if h.status == 500 and ANSWER_LOST not in h.content]
    findings.note("nobody is told of a bug", [shown(each) for each in bugs])
    findings.note(
        f"a call asks {MOST_QUESTIONS} times at most",
        [
            f"call {call}: {asked}"
            for call, asked in provider.questions.items()
            if len(asked) > MOST_QUESTIONS
        ],
    )
    findings.note("no provider is asked for a call that is long over", provider.late)
    findings.note("no provider is asked after the settlement", asked_late(heard, provider, books))


def shown(heard: Heard) -> str:
    return (
        f"{heard.kind} {heard.dialect} call {heard.call} {heard.inference_id} status "
        f"{heard.status} ends {heard.ends} resumed {heard.resumed} words {heard.words} "
        f"...{heard.content[-300:]!r}"
    )


def spliced(heard: Heard) -> bool:
    """Words of two answers, or not those from the first on."""
    answers = {number for _, number, _ in heard.words}
    order = [word for _, _, word in heard.words]
    return len(answers) > 1 or order != list(range(len(order)))


def one_end(heard: Heard) -> bool:
    if heard.kind == "leaves":
        return len(heard.ends) == 1
    if "forgotten" in heard.ends:
        return False
    return len(heard.ends) == 1


def whole(heard: Heard, provider: NumberingProvider) -> bool:
    said = provider.parts[heard.call].words
    return len(heard.words) == said


def told_after(heard: Heard, books: Books) -> bool:
    """An answer that is told as done stands in the books as succeeded, since before that."""
    if "done" not in heard.ends:
        return True
    settled_at = books.settled_at.get(heard.inference_id)
    outcome = books.outcome.get(heard.inference_id, "succeeded")
    return (
        settled_at is not None
        and settled_at.timestamp() <= heard.ended_at
        and outcome == "succeeded"
        and heard.inference_id in books.receipts
    )


def captured(heard: Heard, books: Books) -> bool:
    if not heard.accepted or books.state.get(heard.inference_id) in (None, "dead"):
        return True
    return heard.routed == books.routed[heard.inference_id] == (heard.inference_id in books.outcome)


def same_keys(heard: list[Heard]) -> Iterator[str]:
    by_key: dict[str, list[Heard]] = defaultdict(list)
    for each in heard:
        # a call that was refused before it began gives its key back: the next one may have it
        if each.key and each.status == 200 and b"deadline_exceeded" not in each.content:
            by_key[each.key].append(each)
    for key, twins in by_key.items():
        ids = {each.inference_id for each in twins}
        texts = {tuple(each.words) for each in twins if each.ends == ["done"]}
        if len(ids) > 1 or len(texts) > 1:
            yield f"{key}: {[shown(each) for each in twins]}"


def asked_late(heard: list[Heard], provider: NumberingProvider, books: Books) -> Iterator[str]:
    inference_of = {h.call: h.inference_id for h in heard if h.inference_id and h.accepted}
    for call, inference_id in inference_of.items():
        settled_at = books.settled_at.get(inference_id)
        for question in provider.questions.get(call, ()):
            if settled_at is None or question.asked_at <= settled_at.timestamp():
                continue
            # who had hung up when this process came to read it had asked before
            if not 0 < question.over_at - question.asked_at < READ_LATE_S:
                yield f"call {call} {inference_id}: {question}, settled at {settled_at}"
