"""The books worker forgets quotes that are over."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from shared.quotes import REMEMBERED_S, forget_quotes
from workers.rounds import put_off
from workers.sweep import BooksDeps

# what a round does not reach the next one does
ROUND_S = 30.0

log = logging.getLogger(__name__)


@put_off
async def forget_old_quotes(ctx: Mapping[str, Any]) -> int:
    """Delete quotes that no call can name any more, used or not; receipts keep their names."""
    deps: BooksDeps = ctx["deps"]
    remembered_s = max(REMEMBERED_S, deps.settings.idempotency_hours * 3600)
    forgotten, ends_at = 0, time.monotonic() + ROUND_S
    while some := await forget_quotes(deps.db, remembered_s):
        forgotten += some
        if time.monotonic() > ends_at:
            break
    if forgotten:
        log.info("quotes_forgotten", extra={"quotes": forgotten})
    return forgotten
