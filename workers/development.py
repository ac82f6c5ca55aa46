"""`fleet up`: a whole fleet on one machine, from nothing to a curl line to paste.

In order: a look at the port, the servers, the schema, the catalogue, the processes, a first
agent. The end goes the other way round: the ingress first, so that nothing new comes in, then
the workers, which finish what they have, then the servers. What is kept between two starts
stands in FLEET_HOME: the servers' data, `secrets.env` (the keys that it is sealed with), `dev.env`
(address and key of the development agent) and, while it runs, `running.env` (the stores).
"""

import asyncio
import base64
import ipaddress
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

import migrations
from shared.catalog import seed_catalog
from shared.config import (
    VERSION,
    ProviderConfig,
    Settings,
    StartError,
    active_providers,
    provider_configs,
    read_settings,
    simulating,
)
from shared.domain.counting import counted
from shared.embedded import Servers, embedded_servers, refuse_claimed
from shared.listening import refuse_address
from shared.master_key import check_master_key, usable_sealer
from shared.preflight import check_callers, check_postgres, check_valkey, refusal
from workers.procfile import (
    Stopped,
    StopSignals,
    read_procfile,
    start_processes,
    stop_processes,
)
from workers.supervisor import Supervisor

ROOT = Path(__file__).resolve().parent.parent
STOP_ORDER = ("web", "inference", "books")
RUNNING = "running.env"
SECRETS = "secrets.env"
STORES = ("DATABASE_URL", "REDIS_URL")

_READY_TIMEOUT_S = 60.0
_POLL_S = 0.1
_TOPUP_USD = "100.00"


class UpError(StartError):
    """A start that failed; the message says what to do about it."""


def up() -> int:
    """Run the fleet until a signal or a failure; returns the exit code. Blocks."""
    say(f"Ainfera {VERSION}")
    try:
        with StopSignals() as signals:
            return _up(signals)
    except StartError as error:
        return refusal(error)
    except Stopped:
        say("Stopped.")
        return 0


def _up(signals: StopSignals) -> int:
    settings = read_settings()
    if given := settings.master_key.get_secret_value():
        usable_sealer(given)  # before anything is started, or written
    home = settings.fleet_home.resolve()
    refuse_claimed(home)  # before the port, which that fleet has taken too, most likely
    refuse_address(settings.host, settings.port)
    step("servers", "starting Postgres and Valkey" if _embeds(settings) else "yours")
    asyncio.run(check_given_servers(settings))
    with embedded_servers(
        home, postgres=not settings.database_url, valkey=not settings.redis_url
    ) as servers:
        owner_url = settings.migration_database_url or settings.database_url or servers.owner_url
        step("schema", "migrating to the newest revision")
        with signals.whole():
            migrations.upgrade(owner_url)
            catalog = asyncio.run(seed_catalog(owner_url))
        step("catalogue", counted(len(catalog.candidates), "model"))
        environment = process_environment(settings, home, servers)
        asyncio.run(
            check_master_key(environment["DATABASE_URL"], environment["AINFERA_MASTER_KEY"])
        )
        asyncio.run(check_callers(environment["DATABASE_URL"], environment["CALLER_DATABASE_URL"]))
        running = {"HOST": settings.host, "PORT": str(settings.port)}
        write_env(home / RUNNING, {**running, **{name: environment[name] for name in STORES}})
        try:
            code = asyncio.run(_run(settings, environment, home, servers, signals))
        finally:
            (home / RUNNING).unlink(missing_ok=True)
        step("servers", "stopping")
    say("Stopped.")
    return code


def _embeds(settings: Settings) -> bool:
    return not (settings.database_url and settings.redis_url)


# -- before anything runs ---------------------------------------------------------------------


async def check_given_servers(settings: Settings) -> None:
    """Raises `SettingsError` or `Unreachable` for servers of others that were named and are away.

    There need not be a schema yet.
    """
    if settings.migration_database_url:
        await check_postgres("MIGRATION_DATABASE_URL", settings.migration_database_url)
    elif settings.database_url:
        await check_postgres("DATABASE_URL", settings.database_url)
    if settings.redis_url:
        await check_valkey(settings.redis_url)


def process_environment(settings: Settings, home: Path, servers: Servers) -> dict[str, str]:
    """What the processes are given: ours, the servers' addresses, the keys, open doors on loopback.

    The owner's address of the database is not among it: no process needs to own the schema.
    """
    environment = {**os.environ, **_kept_secrets(home / SECRETS, os.environ)}
    environment.pop("MIGRATION_DATABASE_URL", None)
    environment |= {
        "DATABASE_URL": settings.database_url or servers.app_url,
        "CALLER_DATABASE_URL": settings.caller_database_url or servers.caller_url,
        "REDIS_URL": settings.redis_url or servers.redis_url,
        "FLEET_HOME": str(home),
        "AUDIT_EXPORT_DIR": str(settings.audit_export_dir or home / "audit"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    if _loopback(settings.host):
        environment.setdefault("SIGNUP_MODE", "open")
        environment.setdefault("SELF_TOPUP", "1")
    return environment


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _kept_secrets(path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The keys of this home, made once. Those that the environment gives are used and not kept."""
    kept = read_env(path)
    made = new_secrets()
    missing = {name: key for name, key in made.items() if name not in kept | dict(given)}
    if missing:
        kept |= missing
        write_env(path, kept)
    return {name: given.get(name) or kept[name] for name in made}


def new_secrets() -> dict[str, str]:
    """A master key (32 bytes, base64) and an internal key, under their environment names."""
    return {
        "AINFERA_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "AINFERA_INTERNAL_KEY": secrets.token_urlsafe(32),
    }


def read_env(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of a file; an absent file has none."""
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in pairs}


def running_environment(home: Path) -> dict[str, str]:
    """Stores and keys of the fleet that `fleet up` runs in this home; nothing if none runs."""
    running = read_env(home / RUNNING)
    return {**read_env(home / SECRETS), **running} if running else {}


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Written whole or not at all, and never readable for others."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.writelines(f"{name}={value}\n" for name, value in values.items())
    unfinished.replace(path)


# -- while it runs ----------------------------------------------------------------------------


async def _run(
    settings: Settings,
    environment: Mapping[str, str],
    home: Path,
    servers: Servers,
    signals: StopSignals,
) -> int:
    """Start the processes, greet, wait for whatever ends it, stop them; returns the exit code."""
    asked = signals.listen()
    counts = {"inference": settings.inference_workers}
    step("processes", f"web, {settings.inference_workers} inference, books")
    running = await start_processes(read_procfile(ROOT / "Procfile"), counts, environment, ROOT)
    stop = asyncio.create_task(asked.wait())
    ends = [
        stop,
        asyncio.create_task(_greet(settings, environment, home)),
        asyncio.create_task(Supervisor(running, say).watch()),
        asyncio.create_task(_watch_servers(servers)),
    ]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            await task  # none of them ends but by an error
        return 0
    finally:
        for task in ends:
            task.cancel()
        # nothing is started any more once these have ended
        await asyncio.gather(*ends, return_exceptions=True)
        step("processes", "stopping: ingress, workers, books (again to stop at once)")
        stopping = asyncio.create_task(
            stop_processes(running, STOP_ORDER, settings.drain_grace_s + 5)
        )
        signals.on_next(stopping.cancel)
        await asyncio.wait([stopping])


async def _watch_servers(servers: Servers) -> None:
    """Raises `UpError` when one ends: it was killed, or its disk is full, and its log says more.

    They are not started again here. What they keep is the record, and a person should look first.
    """
    while True:
        for server in servers.running.values():
            if not server.running:
                raise UpError(
                    f"{server.name} ended with code {server.process.returncode}; "
                    f"its log is {server.log}."
                )
        await asyncio.sleep(5 * _POLL_S)


async def _greet(settings: Settings, environment: Mapping[str, str], home: Path) -> None:
    """Wait until the ingress is ready, see to the development agent, say how to call; then idle."""
    url = settings.local_url
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        await _ready(client)
        try:
            key = await development_key(client, environment, home / "dev.env")
        except httpx.TransportError as error:
            raise UpError(f"The ingress at {url} did not answer a signup: {error!r}") from None
    for line in greeting(settings, provider_configs(), url, key, home):
        say(line)
    await asyncio.Event().wait()


async def _ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    said = "no answer"
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            answer = await client.get("/ready")
            if answer.status_code == 200:
                return
            said = answer.text
        await asyncio.sleep(_POLL_S)
    raise UpError(f"The ingress was not ready within {_READY_TIMEOUT_S:.0f} s: {said}")


async def development_key(
    client: httpx.AsyncClient, environment: Mapping[str, str], path: Path
) -> str | None:
    """The last start's key if it still opens, else a new agent's; None where signup is closed.

    Raises `UpError` if the agent cannot be had: a fleet that cannot sign one up is not ready.
    """
    kept = read_env(path)
    if kept.get("AINFERA_API_KEY") and (tenant_id := await _tenant_of(client, kept)):
        now = {"AINFERA_BASE_URL": str(client.base_url), "AINFERA_TENANT_ID": tenant_id}
        write_env(path, {**kept, **now})
        return kept["AINFERA_API_KEY"]
    if environment.get("SIGNUP_MODE") == "closed":
        say("No development agent: SIGNUP_MODE is closed.")
        return None
    handle = f"development-{secrets.token_hex(3)}"
    answer = await client.post(
        "/v1/agents/signup",
        json={"agent_handle": handle, "owner_handle": "developer"},
        headers={"X-Ainfera-Internal-Key": environment["AINFERA_INTERNAL_KEY"]},
    )
    if answer.is_error:
        raise UpError(
            f"There is no development agent: signup answered {answer.status_code} {answer.text}"
        )
    agent: dict[str, str] = answer.json()
    values = {
        "AINFERA_BASE_URL": str(client.base_url),
        "AINFERA_API_KEY": agent["api_key"],
        "AINFERA_AGENT_ID": agent["agent_id"],
        "AINFERA_TENANT_ID": agent["tenant_id"],
    }
    topup = await client.post(
        "/v1/wallets/topup",
        json={"agent_id": agent["agent_id"], "amount_usd": _TOPUP_USD},
        headers=_bearer(values),
    )
    # where self top-up is off, the preview grant has to do
    if topup.is_error and topup.status_code != httpx.codes.FORBIDDEN:
        raise UpError(
            f"The development agent has no money: top-up answered {topup.status_code} {topup.text}"
        )
    write_env(path, values)
    return values["AINFERA_API_KEY"]


async def _tenant_of(client: httpx.AsyncClient, kept: Mapping[str, str]) -> str | None:
    """The tenant of a kept key and its agent; None for a key that does not open any more."""
    path = f"/v1/agents/{kept.get('AINFERA_AGENT_ID')}"
    answer = await client.get(path, headers=_bearer(kept))
    return str(answer.json()["tenant_id"]) if answer.status_code == httpx.codes.OK else None


def _bearer(values: Mapping[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {values['AINFERA_API_KEY']}"}


# -- what is said -----------------------------------------------------------------------------


def greeting(
    settings: Settings,
    providers: Mapping[str, ProviderConfig],
    url: str,
    key: str | None,
    home: Path,
) -> list[str]:
    """The last lines of a start: address, key, and a call to paste."""
    lines = ["", f"Ready at {url}", ""]
    if _loopback(settings.host):
        lines += ["  For development, on this machine only: anyone who reaches it may sign up and"]
        lines += ["  top up. On another HOST, SIGNUP_MODE is `internal` and top-up is off."]
    lines += about_providers(settings, providers)
    if key is None:
        return [*lines, ""]
    body = {
        "model": "ainfera-inference",
        "stream": True,
        "messages": [{"role": "user", "content": "Say hello in five words."}],
    }
    return [
        *lines,
        "",
        f"  key   {key}",
        f"        (also in {home / 'dev.env'}, as AINFERA_API_KEY)",
        "",
        f"curl -N {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
        f"  -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        "",
    ]


def about_providers(settings: Settings, providers: Mapping[str, ProviderConfig]) -> list[str]:
    """Who answers, where that is not simply the providers that were configured."""
    if not active_providers(settings, providers, ()) and not simulating(settings, providers):
        return [
            "  WARNING: No call can be answered. SIMULATE is off and no provider is configured:",
            "  every call is refused with 422 no_candidate_enrolled or model_unavailable. Set a",
            "  key (ANTHROPIC_API_KEY, OPENAI_API_KEY, …), or leave SIMULATE at auto.",
        ]
    if not simulating(settings, providers):
        return []
    if any(provider.configured for provider in providers.values()):
        return ["  SIMULATE is on: a simulation stands in for each provider without a key."]
    return [
        "  No provider key is set (ANTHROPIC_API_KEY, OPENAI_API_KEY, …): every answer is",
        "  simulated, and says so.",
    ]


def step(name: str, what: str) -> None:
    say(f"  {name:<10} {what}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this command talks to a person
