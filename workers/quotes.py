"""The books worker forgets quotes that are over."""

import logging
from collections.abc import Mapping
from typing import Any

from shared.quotes import REMEMBERED_S, forget_quotes
from workers.rounds import put_off, within
from workers.sweep import BooksDeps

ROUND_S = 30.0

log = logging.getLogger(__name__)


@put_off
async def forget_old_quotes(ctx: Mapping[str, Any]) -> int:
    """Delete quotes that no call can name any more, used or not; receipts keep their names."""
    deps: BooksDeps = ctx["deps"]
    remembered_s = max(REMEMBERED_S, deps.settings.idempotency_hours * 3600)
    forgotten = 0
    for _ in within(ROUND_S):
        some = await forget_quotes(deps.db, remembered_s)
        forgotten += some
        if not some:
            break
    if forgotten:
        log.info("quotes_forgotten", extra={"quotes": forgotten})
    return forgotten
