"""The guards of money, of the log and of tenants that the suite takes out, and what must notice."""

from tests.faults.guard import Guard
from tests.faults.guards_of_workers import OPEN, SETTLE, SQL_TESTS, newest

CAP_TESTS = (*SQL_TESTS, "tests/workers/test_ledger_sql_caps.py")
DEAD_TESTS = ("tests/workers/test_dead_letters_sql.py",)
GATE, SPENDING = newest("gate"), newest("spending")
THRESHOLD_TESTS = ("tests/workers/test_threshold.py",)
CROWD_TESTS = ("tests/workers/test_threshold_crowds.py",)
LIMITING, LIMIT_TESTS = "shared/limiting.py", ("tests/workers/test_limiting.py",)
FORKS, FORK_TESTS = "workers/checkpoints.py", ("tests/workers/test_checkpoints.py",)

GUARDS = (
    Guard(
        "books: no call above its agent's cap for one",
        OPEN,
        (("ELSIF rec.amount > rec.per_call THEN", "ELSIF false THEN"),),
        CAP_TESTS,
    ),
    Guard(
        "books: no day above the agent's cap",
        OPEN,
        (("ELSIF spent_today + held + rec.amount > rec.daily THEN", "ELSIF false THEN"),),
        CAP_TESTS,
    ),
    Guard(
        "books: no day above the tenant's cap",
        OPEN,
        (
            (
                "ELSIF tenant_spent + tenant_held + rec.amount > limits[which] THEN",
                "ELSIF false THEN",
            ),
        ),
        CAP_TESTS,
    ),
    Guard(
        "books: a capped tenant's agents take turns",
        OPEN,
        (("ORDER BY t.id FOR NO KEY UPDATE) l;", "ORDER BY t.id) l;"),),
        CAP_TESTS,
    ),
    Guard(
        "books: no call begins while the killswitch is engaged",
        OPEN,
        (("ELSIF engaged && ARRAY['all', rec.tenant_id::text] THEN", "ELSIF false THEN"),),
        THRESHOLD_TESTS,
    ),
    Guard(
        "books: no call passes a threshold",
        GATE,
        (("IF s.at_most_usd + s.added_usd + asked > s.threshold_usd THEN", "IF false THEN"),),
        THRESHOLD_TESTS,
    ),
    Guard(
        "books: calls that count for one threshold take turns",
        GATE,
        (("k.scope FOR NO KEY UPDATE) l;", "k.scope) l;"),),
        CROWD_TESTS,
    ),
    Guard(
        "books: who engages the killswitch waits for those who hold money",
        "shared/killswitch.py",
        (("    await session.execute(_NO_CALL_BEGINS)\n", ""),),
        CROWD_TESTS,
    ),
    Guard(
        "books: what may still be settled is not taken for counted",
        SPENDING,
        (
            (
                "IF w.next_xid <= pg_snapshot_xmin(pg_current_snapshot())::text::bigint THEN",
                "IF w.next_xid IS NOT NULL THEN",
            ),
        ),
        CROWD_TESTS,
    ),
    Guard(
        "books: a dead call is not opened while its letter waits",
        OPEN,
        (("d.inference_id = rec.inference_id AND d.state = 'dead')) THEN", "false)) THEN"),),
        DEAD_TESTS,
    ),
    Guard(
        "books: a dead call is not settled while its letter waits",
        SETTLE,
        (("d.inference_id = rec.inference_id AND d.state = 'dead')) THEN", "false)) THEN"),),
        DEAD_TESTS,
    ),
    Guard(
        "books: what is append-only is so for its owner too",
        "migrations/sql/0001_append_only.sql",
        (("BEFORE UPDATE OR DELETE OR TRUNCATE", "BEFORE TRUNCATE"),),
        ("tests/workers/test_database.py",),
    ),
    Guard(
        "books: callers see rows of their own tenant",
        "migrations/sql/0010_tenancy.sql",
        (
            (
                "ON %s TO ainfera_caller USING (%s) WITH CHECK (%s)',",
                "ON %s TO ainfera_caller USING (true OR %s) WITH CHECK (true OR %s)',",
            ),
        ),
        ("tests/workers/test_tenancy.py",),
    ),
    Guard(
        "books: another history is not signed",
        FORKS,
        (("if root != before.root:", "if root == b'':"),),
        FORK_TESTS,
    ),
    Guard(
        "books: a key's requests are limited",
        LIMITING,
        (("if requests > 0 then note('requests'", "if false then note('requests'"),),
        LIMIT_TESTS,
    ),
    Guard(
        "books: a hold is not looked for in all that came later",
        "shared/routed_events.py",
        (
            (
                "       AND a.seq < chain_position(i.agent_id, greatest(i.created_at, {until})"
                " + {_SLACK})\n",
                "",
            ),
        ),
        ("tests/workers/test_routed_events.py",),
    ),
)
