"""The guards of the ingress that the suite takes out, and what must notice."""

from tests.faults.guard import Guard

REPLY, KEEPING = "ingress/reply.py", "ingress/keeping.py"

GUARDS = (
    Guard(
        "interactive calls that were lost are enqueued again",
        KEEPING,
        (("                await self._enqueue_again(reply", "                bool(reply"),),
        ("tests/e2e/test_crashes.py", "-k", "queue_is_lost"),
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
        "what Postgres did not confirm is withdrawn",
        "ingress/kept.py",
        (("        deps.kept.withdraw_patiently(envelope)\n        raise", "        raise"),),
        ("tests/ingress/test_kept.py", "-k", "says_nothing"),
    ),
    Guard(
        "what was refused is withdrawn, also later",
        "ingress/kept.py",
        (("        deps.kept.withdraw_patiently(envelope)\n        if", "        if"),),
        ("tests/ingress/test_kept.py", "-k", "taken_back"),
    ),
    Guard(
        "another request with a known key is a conflict",
        "ingress/kept.py",
        (("    elif not known.same_request:", "    elif not known:"),),
        ("tests/e2e/test_kept.py", "-k", "conflict"),
    ),
    Guard(
        "an order to stop stands at the job",
        "ingress/answers.py",
        (("    await deps.queue.stop(inference_id)\n", ""),),
        ("tests/e2e/test_leaving.py", "-k", "no_worker"),
    ),
    Guard(
        "who leaves stops the provider",
        "ingress/answers.py",
        (("            await order_stop(envelope.inference_id, deps)\n", "            pass\n"),),
        ("tests/e2e/test_leaving.py", "-k", "middle and native"),
    ),
    Guard(
        "a hole is filled from the replay",
        "ingress/relay.py",
        (("                        self._keeper.mend(reply)\n", "                        pass\n"),),
        ("tests/ingress/test_keeping.py", "-k", "hole"),
    ),
    Guard(
        "a repeated record is passed over",
        REPLY,
        (("        if record.seq < self._expected:\n", "        if not record:\n"),),
        ("tests/ingress/test_relay.py", "tests/ingress/test_keeping.py"),
    ),
    Guard(
        "the last error comes after all that was told",
        REPLY,
        (
            (
                "if record.kind is RecordKind.FAIL and self._attempt and self._sent_data:",
                "if not record:",
            ),
        ),
        ("tests/ingress/test_keeping.py", "-k", "later_attempt"),
    ),
    Guard(
        "the next attempt is numbered behind all others",
        KEEPING,
        (("            attempts=max(attempts, reply.enqueued),\n", ""),),
        ("tests/ingress/test_keeping.py", "-k", "numbered or behind_all"),
    ),
    Guard(
        "what is over is not enqueued again",
        KEEPING,
        (
            (
                '            if call is not None and call.state != "held":',
                "            if not reply:",
            ),
        ),
        ("tests/ingress/test_keeping.py", "-k", "over"),
    ),
)
