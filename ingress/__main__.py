"""`python -m ingress`: the ingress on uvicorn, as the Procfile runs it."""

import asyncio
import logging
import sys
from contextlib import suppress

import uvicorn
from sse_starlette.sse import AppStatus
from uvicorn.config import STARTUP_FAILURE

from ingress.app import create_app
from ingress.draining import CLOSING_S, DrainingServer
from shared.config import Settings, StartError, read_settings
from shared.descriptors import raise_descriptor_limit
from shared.listening import refuse_address
from shared.log import configure_logging
from shared.master_key import check_master_key
from shared.preflight import check_callers, check_stores, refusal

log = logging.getLogger(__name__)


async def look_around(settings: Settings) -> None:
    """Raises a `StartError` unless the stores answer and are sealed with our key."""
    await check_stores(settings)
    await check_callers(settings.database_url, settings.caller_database_url)
    await check_master_key(settings.database_url, settings.master_key.get_secret_value())


def main() -> int:
    try:
        settings = read_settings()
        refuse_address(settings.host, settings.port)
        asyncio.run(look_around(settings))
    except StartError as error:
        return refusal(error)
    configure_logging("ingress", settings.log_level)
    if not settings.caller_database_url:
        log.warning("callers_share_a_login", extra={"advice": "Set CALLER_DATABASE_URL."})
    raise_descriptor_limit()
    # streams end by themselves within the grace time; only then are they cut
    AppStatus.enable_automatic_graceful_drain = False
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        # whose word for a client's address is taken
        forwarded_allow_ips=settings.trusted_proxies,
        # longer than proxies keep a connection idle (60 s, mostly): whoever closes first must be
        # the one that sends, or a call goes into a connection that is being closed
        timeout_keep_alive=75,
        timeout_graceful_shutdown=CLOSING_S,  # after all that `DrainingServer` waits for
        server_header=False,
        date_header=False,
    )
    server = DrainingServer(config, app, settings)
    with suppress(KeyboardInterrupt):  # a Ctrl-C, raised once more when all is closed
        server.run()
    return 0 if server.started else STARTUP_FAILURE


if __name__ == "__main__":
    sys.exit(main())
