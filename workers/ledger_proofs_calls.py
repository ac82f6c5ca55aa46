"""The proofs about calls: their holds, their one settlement, their receipt and their capture."""

from shared.domain.books import Proof
from workers.ledger_proofs_scope import of_day, of_tenant

# A round of the sweep closes what has run out, four times a minute; it may have much to close.
_SWEEP = "interval '30 seconds'"

# What was charged for a call and what it cost beyond that, folded from its transfers.
_MOVED = f"""
SELECT t.inference_id, coalesce(sum(t.amount) FILTER (WHERE t.kind = 'usage'), 0) AS charged,
       coalesce(sum(t.amount) FILTER (WHERE t.kind = 'writeoff'), 0) AS written_off
  FROM transfers t
 WHERE t.inference_id IS NOT NULL AND t.kind IN ('usage', 'writeoff') AND {of_tenant("t")}
   AND {of_day("t.created_at")}
 GROUP BY t.inference_id"""
_CALLS = f"{of_tenant('i')} AND {of_day('coalesce(i.settled_at, i.created_at)')}"

CALL_PROOFS = (
    Proof(
        "holds_end_in_time",
        "No hold outlives its expiry by more than a sweep.",
        "pending holds",
        f"""
SELECT i.id::text AS id, i.hold_usd AS amount, i.hold_expires_at < now() - {_SWEEP} AS wrong,
       format('expired at %s', i.hold_expires_at) AS detail
  FROM inferences i WHERE i.state = 'held' AND {of_tenant("i")}""",
    ),
    Proof(
        "settled_within_the_hold",
        "No call is charged more than was held for it.",
        "calls",
        f"""
SELECT i.id::text AS id, i.settled_usd AS amount, coalesce(i.settled_usd, 0) > i.hold_usd AS wrong,
       format('charged %s, held %s', i.settled_usd, i.hold_usd) AS detail
  FROM inferences i WHERE {_CALLS}""",
    ),
    Proof(
        "holds_end_once",
        "A hold is pending as long as its call runs, and then posted once or voided once.",
        "calls",
        f"""
SELECT i.id::text AS id, i.hold_usd AS amount,
       CASE i.state WHEN 'held' THEN i.hold_state IS DISTINCT FROM 'pending'
                                     OR i.hold_expires_at IS NULL OR i.settled_usd IS NOT NULL
                    WHEN 'settled' THEN i.hold_state IS NULL OR i.hold_state = 'pending'
                                        OR i.settled_usd IS NULL OR i.settled_at IS NULL
                    WHEN 'refused' THEN coalesce(i.hold_state, 'voided') <> 'voided'
                                        OR coalesce(i.settled_usd, 0) <> 0
                    WHEN 'dead' THEN coalesce(i.hold_state, 'voided') <> 'voided'
                                     OR i.settled_usd IS NOT NULL END AS wrong,
       format('%s, its hold is %s, settled %s at %s', i.state, i.hold_state, i.settled_usd,
              i.settled_at) AS detail
  FROM inferences i WHERE {_CALLS}""",
    ),
    Proof(
        "posted_holds_have_moved_money",
        "A hold is posted if, and only if, its call has moved money.",
        "calls",
        f"""
SELECT i.id::text AS id, i.settled_usd AS amount,
       coalesce(i.hold_state = 'posted', false) <> (m.inference_id IS NOT NULL) AS wrong,
       format('its hold is %s, charged %s, written off %s', i.hold_state, m.charged,
              m.written_off) AS detail
  FROM inferences i LEFT JOIN ({_MOVED}) m ON m.inference_id = i.id
 WHERE {_CALLS}""",
    ),
    Proof(
        "settled_is_what_was_charged",
        "What a call says it was charged is what its transfers took from the wallet.",
        "calls",
        f"""
SELECT i.id::text AS id, i.settled_usd AS amount,
       coalesce(i.settled_usd, 0) <> coalesce(m.charged, 0) AS wrong,
       format('settled %s, charged %s', i.settled_usd, m.charged) AS detail
  FROM inferences i LEFT JOIN ({_MOVED}) m ON m.inference_id = i.id
 WHERE {_CALLS}""",
    ),
    Proof(
        "one_transfer_of_a_kind",
        "A call is charged once, and written off once; only corrections may be several.",
        "calls that moved money",
        f"""
SELECT t.inference_id::text AS id, sum(t.amount) AS amount, count(*) > 1 AS wrong,
       format('%s transfers of kind %s', count(*), t.kind) AS detail
  FROM transfers t
 WHERE t.inference_id IS NOT NULL AND t.kind <> 'correction' AND {of_tenant("t")}
   AND {of_day("t.created_at")}
 GROUP BY t.inference_id, t.kind""",
    ),
    Proof(
        "receipts_are_what_was_settled",
        "A receipt's cost is what its call was charged and what was written off.",
        "receipts",
        f"""
SELECT coalesce(r.inference_id, m.inference_id)::text AS id, r.cost_usd AS amount,
       r.cost_usd IS DISTINCT FROM coalesce(m.charged + m.written_off, 0) AS wrong,
       format('receipt %s, charged %s, written off %s', r.cost_usd, m.charged, m.written_off)
         AS detail
  FROM (SELECT * FROM receipts r WHERE {of_tenant("r")} AND {of_day("r.created_at")}) r
  FULL JOIN ({_MOVED}) m ON m.inference_id = r.inference_id""",
    ),
    # A call that reached no provider, a lost one for example, may end without a receipt; then it
    # costs nothing, which the proof before this one sees to.
    Proof(
        "one_settlement_per_answer",
        "A call that a provider answered has one receipt, and only a settled call has one.",
        "calls that ended",
        f"""
SELECT i.id::text AS id, r.cost_usd AS amount,
       coalesce(r.n, 0) > CASE i.state WHEN 'settled' THEN 1 ELSE 0 END
         OR coalesce(r.n, 0) = 0 AND coalesce(o.outcome_status = 'succeeded', false) AS wrong,
       format('%s, %s, %s receipts', i.state, o.outcome_status, coalesce(r.n, 0)) AS detail
  FROM inferences i
  LEFT JOIN (SELECT r.inference_id, count(*) AS n, sum(r.cost_usd) AS cost_usd FROM receipts r
              WHERE {of_tenant("r")} GROUP BY r.inference_id) r ON r.inference_id = i.id
  LEFT JOIN routing_outcomes o ON o.inference_id = i.id
 WHERE {_CALLS}""",
    ),
    Proof(
        "captures_cost_what_receipts_do",
        "The cost in a call's capture is the cost on its receipt.",
        "captures",
        f"""
SELECT o.inference_id::text AS id, o.cost_actual AS amount,
       coalesce(o.cost_actual, 0) <> coalesce(r.cost_usd, 0) AS wrong,
       format('captured %s, receipt %s', o.cost_actual, r.cost_usd) AS detail
  FROM routing_outcomes o LEFT JOIN receipts r ON r.inference_id = o.inference_id
 WHERE {of_tenant("o")} AND {of_day("o.created_at")}""",
    ),
    Proof(
        "routed_calls_are_captured_once",
        "A routed call that ended has one capture; a passthrough, and a call that runs, has none.",
        "calls",
        f"""
SELECT i.id::text AS id, o.cost AS amount,
       coalesce(o.n, 0) <> CASE WHEN i.routed AND i.state IN ('settled', 'refused')
                                THEN 1 ELSE 0 END AS wrong,
       format('%s, %s, %s captures', CASE WHEN i.routed THEN 'routed' ELSE 'passthrough' END,
              i.state, coalesce(o.n, 0)) AS detail
  FROM inferences i
  LEFT JOIN (SELECT o.inference_id, count(*) AS n, sum(o.cost_actual) AS cost
               FROM routing_outcomes o WHERE {of_tenant("o")} GROUP BY o.inference_id) o
    ON o.inference_id = i.id
 WHERE {_CALLS}""",
    ),
    Proof(
        "nothing_without_its_call",
        "Every receipt, capture and transfer of a call is of one that is known, and its tenant's.",
        "receipts, captures, transfers",
        f"""
SELECT x.id, x.amount, i.id IS NULL AS wrong,
       format('%s of inference %s', x.what, x.inference_id) AS detail
  FROM (SELECT r.receipt_id::text AS id, 'receipt' AS what, r.inference_id, r.tenant_id,
               NULL::numeric AS amount, r.created_at FROM receipts r
        UNION ALL
        SELECT o.inference_id::text, 'capture', o.inference_id, o.tenant_id, NULL, o.created_at
          FROM routing_outcomes o
        UNION ALL
        SELECT t.id::text, 'transfer', t.inference_id, t.tenant_id, t.amount, t.created_at
          FROM transfers t WHERE t.inference_id IS NOT NULL) x
  LEFT JOIN inferences i ON i.id = x.inference_id AND i.tenant_id = x.tenant_id
 WHERE {of_tenant("x")} AND {of_day("x.created_at")}""",
    ),
    # Whose call it is says under whose caps it was, and in whose chain it is witnessed.
    Proof(
        "calls_are_their_agents",
        "A call is its tenant's agent's: it is paid from that agent's wallet, and its receipt and "
        "its capture name that agent.",
        "calls",
        f"""
SELECT i.id::text AS id, i.settled_usd AS amount,
       a.id IS NULL OR EXISTS (
         SELECT FROM transfers t JOIN accounts w ON w.id IN (t.debit_account, t.credit_account)
          WHERE t.inference_id = i.id AND w.kind = 'wallet' AND w.agent_id <> i.agent_id)
         OR EXISTS (
         SELECT FROM receipts r WHERE r.inference_id = i.id AND r.agent_id <> i.agent_id)
         OR EXISTS (
         SELECT FROM routing_outcomes o WHERE o.inference_id = i.id AND o.agent_id <> i.agent_id)
         AS wrong,
       format('agent %s of tenant %s', i.agent_id, i.tenant_id) AS detail
  FROM inferences i LEFT JOIN agents a ON a.id = i.agent_id AND a.tenant_id = i.tenant_id
 WHERE {_CALLS}""",
    ),
    Proof(
        "calls_within_the_cap_per_call",
        "No call was charged more than the cap per call that its agent has now.",
        "calls",
        f"""
SELECT i.id::text AS id, i.settled_usd AS amount, i.settled_usd > a.per_call_cap_usd AS wrong,
       format('charged %s, the cap is %s now', i.settled_usd, a.per_call_cap_usd) AS detail
  FROM inferences i JOIN agents a ON a.id = i.agent_id
 WHERE i.settled_usd IS NOT NULL AND a.per_call_cap_usd IS NOT NULL AND {_CALLS}""",
        informs=True,
    ),
)
