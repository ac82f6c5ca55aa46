"""Whether two requests ask for the same, whatever the order of their fields."""

import hashlib
import json
from collections.abc import Mapping

from shared.domain.inference import InferenceRequest
from shared.domain.routing_policy import preference


def request_hash(request: InferenceRequest) -> bytes:
    """SHA-256 of a body's JSON with its keys sorted, of one dialect, and of what headers may say.

    A header is heard as its wish: one that says what the body says, or nothing new, changes
    nothing. What speaks of a quote is no part of the request: `hold_for_s`, and `quote_id` in the
    hint.
    """
    asked = {name: value for name, value in request.body.items() if name != "hold_for_s"}
    hint = asked.get("routing_hint")
    if isinstance(hint, Mapping):
        rest = {name: value for name, value in hint.items() if name != "quote_id"}
        asked["routing_hint"] = rest
    if not asked.get("routing_hint"):  # one that is empty, or null, says nothing
        asked.pop("routing_hint", None)
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    wishes = request.hint
    heard = (preference(wishes.routing_preference), wishes.data_class, wishes.region)
    spoken = f"{request.dialect.value}\n{json.dumps(heard)}\n{text}"
    return hashlib.sha256(spoken.encode("utf-8", "surrogatepass")).digest()
