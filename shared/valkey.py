"""How Valkey is reached: one server, or the master that a group of Sentinels names.

    redis://:password@host:6379/0                              one server; rediss:// with TLS
    unix:///run/valkey.sock?db=0                               the same, through a socket
    redis+sentinel://:password@a:26379,b:26379/mymaster/0      the master called `mymaster`

A Sentinel is asked at each new connection, and a connection to a master that was demoted is
given up, so a failover needs nothing but the retries that every loop over Valkey has anyway.
`rediss+sentinel://` speaks TLS to the master and to the Sentinels.
`?sentinel_password=` is for Sentinels that ask for one; `sentinel_username` goes with it.

A machine that vanishes says no goodbye: without probes, whoever reads from it waits for hours. The
probes are TCP's own, so that a subscription may be silent for as long as there is nothing to say.
"""

import asyncio
import logging
import socket
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

from shared.queue import deserialize_job, serialize_job

log = logging.getLogger(__name__)

SENTINEL_PORT = 26379
CONNECT_TIMEOUT_S = 2.0
# Idle for 5 s, then a probe every 2 s: three unanswered ones, or 10 s without the receipt of
# what was sent, end a connection. Each system knows its own share of these names.
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


def open_valkey(url: str, *, single_connection: bool = False) -> Redis:
    """A client for the URL; connects when first used, and owns its connections.

    With `single_connection` it has one and never checks it out and in: for one command at a time.
    """
    client = Redis(connection_pool=connection_pool(url), single_connection_client=single_connection)
    client.auto_close_connection_pool = True
    return client


def open_queue(url: str, queue_name: str) -> ArqRedis:
    """The same as arq's workers want it."""
    client = ArqRedis(connection_pool(url), serialize_job, deserialize_job, queue_name)
    client.auto_close_connection_pool = True
    return client


def connection_pool(url: str) -> ConnectionPool:
    """Connections to one server, or to whichever is master. Raises ValueError for a wrong URL."""
    parts = urlsplit(url)
    scheme, database = parts.scheme, parts.path.strip("/")
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _sentinel_pool(url)
    if scheme != "unix" and not (database or "0").isdigit():
        raise ValueError("REDIS_URL must end with the number of a database, if with anything")
    alive = {} if scheme == "unix" else _keep_alive()
    pool: ConnectionPool = ConnectionPool.from_url(url, **alive)
    return pool


async def reachable(redis: Redis, patience_s: float) -> None:
    """Returns once Valkey answers; raises what it said last when patience runs out."""
    ends_at = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            await redis.ping()
        except (RedisError, OSError) as error:
            if asyncio.get_running_loop().time() > ends_at:
                raise
            log.warning("valkey_not_reached", extra={"error": repr(error)})
            await asyncio.sleep(1)
        else:
            return


def _sentinel_pool(url: str) -> SentinelConnectionPool:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    master, _, database = parts.path.strip("/").partition("/")
    if not (hosts and master and (database or "0").isdigit()):
        raise ValueError("REDIS_URL must be redis+sentinel://host:port,host:port/master/database")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    tls = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    alive = _keep_alive()
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [_host_and_port(host) for host in hosts.split(",")],
        sentinel_kwargs={
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": CONNECT_TIMEOUT_S,
            "username": options.get("sentinel_username"),
            "password": options.get("sentinel_password"),
            **tls,
        },
    )
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        unquote(master),
        sentinels,
        db=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        **alive,
        **tls,
    )


def _host_and_port(address: str) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]`, `[v6]:port`."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname:
        raise ValueError("REDIS_URL names a Sentinel without a host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _keep_alive() -> dict[str, Any]:
    known = {
        getattr(socket, name): value for name, value in _PROBES.items() if hasattr(socket, name)
    }
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "socket_keepalive_options": known,
    }
