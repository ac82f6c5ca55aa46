"""Each guard taken out in turn, in a copy of the tree: something must turn red.

A guard that nobody misses is not tested. What must turn red is a test that is about it, or a run of
faults with a fixed seed; both are run in the copy, never here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.promises import BROKEN

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".fleet", "*.egg-info"
)
PATIENCE_S = 240.0

LANES, DB, FLEET = "shared/lanes.py", "shared/db.py", "workers/fleet.py"
SETTLE, OPEN = "migrations/sql/0005_settle.sql", "migrations/sql/0005_open.sql"
KEPT_SQL = "migrations/versions/0004_kept_calls.py"
REPLY, KEEPING, STORY = "ingress/reply.py", "ingress/keeping.py", "workers/inference.py"
QUEUE_TESTS = ("tests/workers/test_queue.py",)
SQL_TESTS = tuple(
    f"tests/workers/{name}.py"
    for name in ("test_ledger_sql", "test_ledger_sql_settle", "test_dead_letters_sql")
)


@dataclass(frozen=True, slots=True)
class Guard:
    """`swaps` take it out of `file`; `red` are pytest's arguments, or a run's after `chaos`."""

    name: str
    file: str
    swaps: tuple[tuple[str, str], ...]
    red: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`red`: whether its absence was noticed, and by what."""

    guard: Guard
    red: bool
    by: str
    seconds: float


GUARDS = (
    Guard(
        "finish: only the owner ends a job",
        LANES,
        (("if job[1] == ARGV[1] .. ':' .. ARGV[i + 1] then", "if job[1] then"),),
        QUEUE_TESTS,
    ),
    Guard(
        "renew: only the owner renews a lease",
        LANES,
        (
            (
                "if redis.call('HGET', job_key(ARGV[i]), 'owner') == "
                "ARGV[2] .. ':' .. ARGV[i + 1] then",
                "if redis.call('EXISTS', job_key(ARGV[i])) == 1 then",
            ),
        ),
        QUEUE_TESTS,
    ),
    Guard(
        "enqueue: a known id is not queued again",
        LANES,
        (
            (
                "if redis.call('EXISTS', job_key(id)) == 1 then return {'EXISTS', depth, oldest} "
                "end\nredis.call('HSET'",
                "redis.call('HSET'",
            ),
        ),
        QUEUE_TESTS,
    ),
    Guard(
        "claim: jobs of a dead worker come back",
        LANES,
        (("for _, job in ipairs(lost) do back_to(job.lane, job.id) end", ""),),
        QUEUE_TESTS,
    ),
    Guard(
        "a worker that lost its lease stops the job",
        FLEET,
        (
            (
                "                task.cancel()\n\n    async def _finisher",
                "\n    async def _finisher",
            ),
        ),
        ("tests/workers/test_fleet.py",),
    ),
    Guard(
        "settle: an older attempt is fenced off",
        SETTLE,
        (("ELSIF rec.attempt < rec.known_attempt THEN", "ELSIF false THEN"),),
        SQL_TESTS,
    ),
    Guard(
        "settle: what is settled is not settled again",
        SETTLE,
        (("IF rec.state IN ('settled', 'refused') OR inference_id = ANY (ids)", "IF false"),),
        SQL_TESTS,
    ),
    Guard(
        "extend: an older attempt is fenced off",
        "migrations/sql/0001_open.sql",
        ((" OR try < call.attempt", ""),),
        SQL_TESTS,
    ),
    Guard(
        "hold: wallets are locked",
        OPEN,
        (("ORDER BY w.id FOR UPDATE;", "ORDER BY w.id;"),),
        (*SQL_TESTS, "tests/workers/test_ledger_sql_property.py"),
    ),
    Guard(
        "hold: available money covers it",
        OPEN,
        (("ELSIF balance - held < rec.amount THEN", "ELSIF false THEN"),),
        SQL_TESTS,
    ),
    Guard(
        "committer: a batch that is refused is tried singly",
        DB,
        (
            (
                "            for waiting in batch:\n                await self._commit([waiting])",
                "            for waiting in batch:\n                waiting.fail(error)",
            ),
        ),
        ("tests/workers/test_database_committer.py",),
    ),
    Guard(
        "committer: what Postgres did not answer is sent again",
        DB,
        (
            (
                "                self._disconnect()\n                await",
                "                raise\n                await",
            ),
        ),
        ("tests/workers/test_database_committer.py",),
    ),
    Guard(
        "one key, one call",
        KEPT_SQL,
        (("p_background, p_key_hash,", "p_background, NULL,"),),
        ("tests/workers/test_kept.py",),
    ),
    Guard(
        "each attempt at a kept call is taken once",
        "shared/kept.py",
        ((" AND attempts < :attempt", ""),),
        ("tests/workers/test_kept.py",),
    ),
    Guard(
        "kept calls that the queue lost are driven again",
        "workers/kept.py",
        (("    lost = [each for each in ids if each not in held]", "    lost = ids[:0]"),),
        ("chaos", "--seed", "11", "--minutes", "0.3", "--only", "total loss"),
    ),
    Guard(
        "interactive calls that were lost are enqueued again",
        KEEPING,
        (("                await self._enqueue_again(reply", "                bool(reply"),),
        ("tests/e2e/test_crashes.py", "-k", "queue_is_lost"),
    ),
    Guard(
        "holds that ran out are released",
        "workers/settings.py",
        (
            (
                "            cron(release_expired_holds, second={0, 15, 30, 45}, "
                "run_at_startup=True, keep_result=0),\n",
                "",
            ),
        ),
        ("chaos", "--seed", "2", "--minutes", "0.4", "--only", "total loss"),
    ),
    Guard(
        "words that were told are not asked for again",
        "workers/told.py",
        (("    if call.attempt == 1:", "    if call.attempt:"),),
        ("tests/e2e/test_crashes.py", "-k", "mid_stream"),
    ),
    Guard(
        "no fallback after the first word",
        STORY,
        ((" and asking.first_word_at is None", ""),),
        ("chaos", "--seed", "13", "--minutes", "0.25", "--only", "one connection"),
    ),
    Guard(
        "nothing is told before it is durable",
        STORY,
        (
            (
                "    try:\n        completed = await settle(call, plan, ending, deps)\n",
                "    tell_the_end(call, ending, ending.completed)\n"
                "    try:\n        await settle(call, plan, ending, deps)\n",
            ),
            ("        return\n    tell_the_end(call, ending, completed)\n", "        return\n"),
        ),
        ("chaos", "--seed", "14", "--minutes", "0.3", "--only", "Postgres"),
    ),
    Guard(
        "a call that kills its workers is set aside",
        STORY,
        (("    if len(remains.lost) >= MAX_ATTEMPTS:", "    if not envelope:"),),
        ("tests/e2e/test_kept_faults.py", "-k", "kills_its_workers"),
    ),
    Guard(
        "a gap in seq is not passed over",
        REPLY,
        (("        if record.seq > self._expected:", "        if not record:"),),
        ("tests/ingress/test_relay.py", "tests/ingress/test_keeping.py"),
    ),
    Guard(
        "two attempts are not spliced",
        REPLY,
        (("        if self._sent_data and self._attempt:\n", "        if not record:\n"),),
        ("tests/ingress/test_relay.py", "tests/ingress/test_keeping.py"),
    ),
    Guard(
        "after a re-subscription every answer is looked at",
        "ingress/relay.py",
        (("            if self._subscribed.is_set():\n", "            if not message:\n"),),
        ("tests/ingress/test_keeping.py", "-k", "reconnection"),
    ),
    Guard(
        "what was not published is published again",
        "shared/publisher.py",
        (("                await _patient()(self._send_once, commands)", "                pass"),),
        ("chaos", "--seed", "15", "--minutes", "0.3", "--only", "connection"),
    ),
)


def run_guards(names: str = "", at_once: int = 2) -> list[Verdict]:
    """Take out each guard whose name has `names` in it."""
    chosen = [guard for guard in GUARDS if names in guard.name]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(without, chosen))


def without(guard: Guard) -> Verdict:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fleet-guard-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        take_out(guard, copy / guard.file)
        red, by = missed(guard.red, copy)
    verdict = Verdict(guard, red, by, time.monotonic() - began)
    sys.stderr.write(f"{'red  ' if red else 'GREEN'} {guard.name}: {by}\n")
    return verdict


def take_out(guard: Guard, file: Path) -> None:
    text = file.read_text("utf-8")
    for old, new in guard.swaps:
        if text.count(old) != 1:
            raise ValueError(f"{guard.name}: {text.count(old)} places in {guard.file}: {old!r}")
        text = text.replace(old, new)
    file.write_text(text, "utf-8")


def missed(red: Sequence[str], tree: Path) -> tuple[bool, str]:
    """Whether the run in `tree` notices, and its line that says so."""
    module = ["tests.faults", *red[1:]] if red[0] == "chaos" else ["pytest", "-x", *red]
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    noticed = [line for line in done.stdout.splitlines() if is_notice(line)]
    return done.returncode == 1 and bool(noticed), "; ".join(noticed[:3])[:200]


def is_notice(line: str) -> bool:
    """A failed test, or a promise with violations."""
    return line.startswith(("FAILED ", BROKEN))


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield "| guard taken out | | noticed by | s |"
    yield "| --- | --- | --- | --- |"
    for each in verdicts:
        colour = "red" if each.red else "**green**"
        yield f"| {each.guard.name} | {colour} | {each.by} | {each.seconds:.0f} |"
    red = sum(each.red for each in verdicts)
    yield f"{red} of {len(verdicts)} guards are missed when they are gone"
