"""Whether two requests are the same one, whatever the order of their fields."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from shared.domain.inference import Dialect


def request_hash(dialect: Dialect, body: Mapping[str, Any]) -> bytes:
    """SHA-256 of a body's JSON with its keys sorted, of one dialect.

    What speaks of a quote is no part of the request: `hold_for_s`, and `quote_id` in the hint.
    """
    asked = {name: value for name, value in body.items() if name != "hold_for_s"}
    hint = asked.get("routing_hint")
    if isinstance(hint, Mapping):
        rest = {name: value for name, value in hint.items() if name != "quote_id"}
        asked["routing_hint"] = rest
    if not asked.get("routing_hint"):  # one that is empty, or null, says nothing
        asked.pop("routing_hint", None)
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    spoken = f"{dialect.value}\n{text}"
    return hashlib.sha256(spoken.encode("utf-8", "surrogatepass")).digest()
