"""The routing event of a call, found by when it can have been written.

A call's row and its event are written in one transaction, the row first. A call that was replayed
from a dead letter was routed again, so that its newest event may be as young as its last death,
or as the end of its newest hold.
"""

# The database's clock may have been set back between the two moments that are compared.
_SLACK = "interval '1 minute'"


def newest_routed_event(until: str) -> str:
    """SQL: `e.payload`, the newest routing event of the call `i`, null where it has none.

    `until` is SQL for the latest moment that it can bear; null: that at which the call began.
    The events between are found by their numbers, so what came later costs nothing. Most of them
    are of other calls, and looking for the id costs less than parsing each of them.
    """
    return f"""
  LEFT JOIN LATERAL (
    SELECT a.payload FROM audit_events a
     WHERE a.agent_id = i.agent_id AND a.event_type = 'inference.routed'
       AND a.seq >= chain_position(i.agent_id, i.created_at - {_SLACK})
       AND a.seq < chain_position(i.agent_id, greatest(i.created_at, {until}) + {_SLACK})
       AND strpos(a.payload, i.id::text) > 0
       AND a.payload::jsonb ->> 'inference_id' = i.id::text
     ORDER BY a.seq DESC LIMIT 1) e ON true
"""
