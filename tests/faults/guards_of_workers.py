"""The guards of queue, workers and database that the suite takes out, and what must notice.

Each swap must find its text exactly once, which a test sees to.
"""

from tests.faults.guard import ROOT, Guard

LANES, DB, FLEET = "shared/lanes.py", "shared/db.py", "workers/fleet.py"


def newest(name: str) -> str:
    """The file of this name that the last migration to write it has."""
    found = sorted((ROOT / "migrations" / "sql").glob(f"*_{name}.sql"))
    return str(found[-1].relative_to(ROOT))


SETTLE, OPEN, KEPT_SQL = newest("settle"), newest("open"), newest("kept")
STORY = "workers/inference.py"
QUEUE_TESTS = ("tests/workers/test_queue.py",)
SQL_TESTS = tuple(
    f"tests/workers/{name}.py"
    for name in ("test_ledger_sql", "test_ledger_sql_settle", "test_dead_letters_sql")
)
FULL_TESTS = ("tests/workers/test_full_store.py",)
LEASES = "workers/leases.py"
KILL_TESTS = ("tests/workers/test_fleet_kills.py",)
CLOCK_TESTS = ("tests/workers/test_clocks.py",)
KEPT_TESTS = ("tests/workers/test_kept.py",)


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
                "end\nlocal standing",
                "local standing",
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
        LEASES,
        (("                task.cancel()\n", ""),),
        KILL_TESTS,
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
        newest("extend"),
        ((" OR try < call.attempt", ""),),
        SQL_TESTS,
    ),
    Guard(
        "hold: wallets are locked",
        OPEN,
        (("ORDER BY w.id FOR UPDATE) l;", "ORDER BY w.id) l;"),),
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
            (
                "ending.usage.limited\n    tell_the_end(call, ending, completed)\n",
                "ending.usage.limited\n",
            ),
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
        "what was not published is published again",
        "shared/publisher.py",
        (("                await _patient()(self._send_once, commands)", "                pass"),),
        ("tests/workers/test_stream_replay.py", "-k", "cut"),
    ),
    Guard(
        "a full store renews leases",
        LANES,
        (("RENEW = (\n    WHEN_FULL\n    + NOW", "RENEW = (\n    NOW"),),
        FULL_TESTS,
    ),
    Guard(
        "a full store notes an order to stop",
        "shared/stopping.py",
        (("STOP = (\n    WHEN_FULL\n    + NOW", "STOP = (\n    NOW"),),
        FULL_TESTS,
    ),
    Guard(
        "a replay is not stopped by what was ordered before it",
        STORY,
        (("        deps.cancellations.forget(inference_id)", "        pass"),),
        ("tests/workers/test_cancellations.py",),
    ),
    Guard(
        "a claim begins a job's time anew",
        LANES,
        (("redis.call('PEXPIRE', key, ARGV[6])", "redis.call('EXISTS', key)"),),
        (*QUEUE_TESTS, "-k", "anew"),
    ),
    Guard(
        "what is claimed later keeps nobody out",
        LANES,
        (
            (
                "redis.call('ZCOUNT', q .. ':waiting', '-inf', after)",
                "redis.call('ZCARD', q .. ':waiting')",
            ),
        ),
        (*QUEUE_TESTS, "-k", "keeps_nobody_out"),
    ),
    Guard(
        "cron goes by the store's clock",
        FLEET,
        (
            (
                "datetime.fromtimestamp(seconds + us / 1_000_000, self.timezone)",
                "datetime.now(self.timezone)",
            ),
        ),
        ("tests/workers/test_fleet_cron.py", "-k", "stores_clock"),
    ),
    Guard(
        "a tenant has no more than its share of a worker",
        LANES,
        (("  if slots > 0 then\n", "  if slots then\n"),),
        ("tests/workers/test_queue_slots.py", *QUEUE_TESTS),
    ),
    Guard(
        "a call's age is told by the store",
        LANES,
        (("'at', now - ARGV[12], 'since', now)", "'at', now, 'since', now)"),),
        CLOCK_TESTS,
    ),
    Guard(
        "a deadline is by no clock of ours",
        STORY,
        (
            (
                "    if call.late or call.age_s > patience_s:",
                "    if 2e9 - call.envelope.accepted_at > patience_s:",
            ),
        ),
        CLOCK_TESTS,
    ),
    Guard(
        "its age goes with a call that is driven again",
        "workers/kept.py",
        ((', age_s=row["age_s"]\n', "\n"),),
        (*KEPT_TESTS, "-k", "its_age"),
    ),
    Guard(
        "a round is put off while a store is away",
        "workers/rounds.py",
        (("(RedisError, DBAPIError, *TRANSIENT)", "ZeroDivisionError"),),
        (*KEPT_TESTS, "-k", "put_off"),
    ),
    Guard(
        "an order that is none does not end the listening",
        "shared/control.py",
        (
            (
                "(LookupError, TypeError, ValueError, AttributeError) as error",
                "ZeroDivisionError as error",
            ),
        ),
        ("tests/workers/test_control.py", "-x"),
    ),
    Guard(
        "orders that were missed are read up",
        "shared/control.py",
        (("self._missed()  # sooner", "pass  # sooner"),),
        ("tests/ingress/test_killswitch.py", "-k", "cut_off"),
    ),
    Guard(
        "a kept call that has ended is not taken",
        "shared/kept.py",
        (
            (
                "inference_id AND state = 'accepted' AND attempts < :attempt",
                "inference_id AND attempts < :attempt",
            ),
        ),
        KEPT_TESTS,
    ),
    Guard(
        "a kept call is claimed in the database too",
        STORY,
        (("if envelope.kept and not await take_kept(call, deps):", "if not envelope:"),),
        ("tests/e2e/test_kept_faults.py", "-k", "forgets_a_call_that_runs"),
    ),
    Guard(
        "an order that came before its call is kept",
        "workers/deps.py",
        (
            (
                "        if inference_id in self._cancelled:\n            raise",
                "        if not inference_id:\n            raise",
            ),
        ),
        ("tests/e2e/test_leaving.py", "-k", "queue or money"),
    ),
    Guard(
        "a call that waited is stopped by the killswitch",
        STORY,
        (("deps.killswitch.stops(call.tenant_id) or not_to_be_kept(call)", "False"),),
        ("tests/workers/test_killswitch.py",),
    ),
    Guard(
        "of what somebody follows nothing is begun anew",
        "shared/publisher.py",
        (
            (
                "        if await self._redis.exists(followed_key(inference_id)):",
                "        if not inference_id:",
            ),
        ),
        ("tests/e2e/test_crashes.py", "-k", "background"),
    ),
    Guard(
        "a shutdown hands its jobs back",
        FLEET,
        (
            (
                " self._finish_all(ended)\n                await self.presence",
                " self.presence",
            ),
        ),
        ("tests/workers/test_fleet.py", "-k", "shutdown"),
    ),
    Guard(
        "asking: who stood still asks whose the call is",
        STORY,
        (("            await call.hold_on()", "            pass"),),
        CLOCK_TESTS,
    ),
    Guard(
        "leases: what may have run out is asked for",
        LEASES,
        (("if asyncio.get_running_loop().time() < self._until.get(key, 0):", "if key:"),),
        KILL_TESTS,
    ),
)
