"""`fleet status|workers|drain|resume|jobs`: look at a running fleet, and drive it."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.config import StartError, read_settings
from shared.fleet import (
    ALL,
    FleetStatus,
    JobView,
    NoSuchWorker,
    WorkerView,
    as_json,
    drain,
    list_workers,
    read_status,
    resume,
    show_job,
    wait_until_drained,
)
from shared.operators import this_operator
from shared.preflight import check_valkey, refusal
from shared.valkey import open_valkey
from workers.commands.terminal import AsJson, Yes, ask_first, fail, note_act, show_whole, unnamed
from workers.development import running_environment

app = typer.Typer()
jobs = typer.Typer(no_args_is_help=True, help="Look at single jobs.")
app.add_typer(jobs, name="jobs")

WATCH_S = 1.0
Which = Annotated[
    str, typer.Argument(metavar="[WORKER|all]", help="A worker's id, or how it begins, or all.")
]

T = TypeVar("T")


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew each second.")] = False,
    json: AsJson = False,
) -> None:
    """How the fleet is: what waits and for how long, what is in work, who works, how fast.

    With --watch --json, one line a second. Ctrl-C ends it.

    Example: fleet status --watch
    """
    if not watch:
        now = ask(read_status)
        show_json(as_json(now)) if json else show_whole(status_view(now))
        return
    try:
        ask(watch_json if json else watch_live)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command("workers")
def workers_command(json: AsJson = False) -> None:
    """All workers that are alive, with what they have in flight and what they did.

    Example: fleet workers --json
    """
    alive = ask(list_workers)
    if json:
        show_json([as_json(worker) for worker in alive])
    else:
        show_whole(workers_view(alive))


@app.command("drain")
def drain_command(
    worker: Which = ALL,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when they have finished what they had.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="With --wait: give up after so many seconds (exit code 1).")
    ] = 600.0,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Tell a worker, or all of them, to claim nothing more.

    It hears within a second, finishes what it has in flight, and stays, idle, until `fleet
    resume` or its end. `all` holds for workers that start later, too, and spares the books worker,
    which takes no calls: name its id to drain it.

    Example: fleet drain all --wait --yes
    """
    ask_first(f"Drain {worker}? Calls wait or are refused while nobody claims them.", yes)
    meant = ask(lambda redis: drain(redis, worker, actor=this_operator()))
    ids = [each.id for each in meant]
    asyncio.run(note_act("fleet.drain", worker, workers=ids))
    idle = ask(lambda redis: wait_until_drained(redis, ids, timeout)) if wait else None
    if json:
        show_json({"draining": ids, "idle": idle})
    else:
        done = "drained" if idle else "told to drain"
        plain().print(f"{named(ids)} {done}. `fleet resume {worker}` takes it back.")
    if idle is False:
        fail(f"Still at work after {timeout:g} s; see `fleet workers`.")


@app.command("resume")
def resume_command(worker: Which = ALL, yes: Yes = False, json: AsJson = False) -> None:
    """Let a drained worker, or all of them, claim again; heard within a second.

    Example: fleet resume all
    """
    del yes  # taken, as by every command that changes something; there is nothing to ask
    meant = ask(lambda redis: resume(redis, worker, actor=this_operator()))
    ids = [each.id for each in meant]
    asyncio.run(note_act("fleet.resume", worker, workers=ids))
    show_json({"resumed": ids}) if json else plain().print(f"{named(ids)} told to go on.")


@jobs.command("show")
def show_command(
    job_id: Annotated[UUID, typer.Argument(metavar="ID", help="The inference's id.")],
    json: AsJson = False,
) -> None:
    """Where a job is: waiting in which lane at which place, or in work, by whom and until when.

    A job that ended is not in the queue any more (exit code 1): its inference has its state.

    Example: fleet jobs show 01981c5e-7d1a-7cc3-9f57-6d2a3a1c0b11
    """
    job = ask(lambda redis: show_job(redis, job_id))
    show_json(as_json(job)) if json else plain().print(job_view(job))
    if job.state == "unknown":
        raise typer.Exit(1)


# -- asking the fleet -------------------------------------------------------------------------


def ask(question: Callable[[Redis], Awaitable[T]]) -> T:
    """Put a question to the fleet's store; exits with an explanation where it cannot be put."""

    async def put(url: str) -> T:
        await check_valkey(url)
        async with open_valkey(url) as redis:
            return await question(redis)

    try:
        return asyncio.run(put(redis_url()))
    except NoSuchWorker as error:
        fail(str(error))
    except StartError as error:
        raise typer.Exit(refusal(error)) from None
    except (RedisError, OSError) as error:
        fail(f"REDIS_URL: Valkey went away: {error}")


def redis_url() -> str:
    """REDIS_URL of the environment, else of the `fleet up` that runs on this machine.

    Raises `SettingsError`.
    """
    settings = read_settings()
    url = settings.redis_url or running_environment(settings.fleet_home).get("REDIS_URL", "")
    if not url:
        fail(str(unnamed("REDIS_URL", settings.fleet_home)))
    return url


# -- what is shown ------------------------------------------------------------------------------


def plain() -> Console:
    """For sentences: an id in them is neither coloured nor broken, so that it can be copied."""
    return Console(soft_wrap=True, highlight=False)


def show_json(what: Any) -> None:
    sys.stdout.write(orjson.dumps(what).decode() + "\n")
    sys.stdout.flush()


async def watch_json(redis: Redis) -> None:
    while True:
        show_json(as_json(await read_status(redis)))
        await asyncio.sleep(WATCH_S)


async def watch_live(redis: Redis) -> None:
    with Live(status_view(await read_status(redis)), auto_refresh=False, screen=False) as live:
        while True:
            await asyncio.sleep(WATCH_S)
            live.update(status_view(await read_status(redis)), refresh=True)


def status_view(now: FleetStatus) -> RenderableType:
    """The queue by priority, then the fleet's figures, then its workers."""
    queue = Table("priority", box=None, pad_edge=False)
    for heading in ("waiting", "oldest"):
        queue.add_column(heading, justify="right")
    for priority, depth in now.depth.items():
        oldest = f"{now.oldest_age_s[priority]:.1f} s" if depth else "-"
        queue.add_row(priority, str(depth), oldest)
    figures = Text(
        f"in work {now.leased}   deferred {now.deferred}   "
        f"claims/s {now.claims_per_second:g}   jobs ended/s {now.jobs_per_second:g}   "
        f"picked up after p50 {ms(now.pick_up_p50_ms)}, p99 {ms(now.pick_up_p99_ms)}"
    )
    parts: list[RenderableType] = [queue, Text(), figures, Text()]
    if now.drained:
        parts += [
            Text("All but the books are told to drain: `fleet resume` lets them go on."),
            Text(),
        ]
    return Group(*parts, workers_view(now.workers))


def workers_view(workers: list[WorkerView]) -> RenderableType:
    """One line a worker, whose id stays whole, to be copied."""
    if not workers:
        return Text("No worker is alive.")
    table = Table(box=None, pad_edge=False)
    for heading in ("worker", "kind", "state"):
        table.add_column(heading, no_wrap=True, overflow="ignore")
    for heading in ("in flight", "jobs/s", "done", "failed", "retried", "up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in workers:
        table.add_row(
            Text(each.id),
            each.kind,
            each.state if each.silent_s < 3 else f"{each.state}, silent {each.silent_s:.0f} s",
            f"{each.jobs}/{each.max_jobs}",
            f"{each.per_second:g}",
            str(each.done),
            str(each.failed),
            str(each.retried),
            since(each.started_at),
        )
    return table


def job_view(job: JobView) -> RenderableType:
    """One job in a sentence."""
    if job.state == "unknown":
        return Text(f"{job.id} is not in the queue: it has ended, or never was.")
    if job.state == "waiting":
        where = f"waits in lane {job.lane} at place {job.place}, one of {job.lanes} in all"
    elif job.state == "deferred":
        where = f"is due again in {job.due_in_s:.1f} s"
    elif job.state == "leased":
        where = f"is in work by {job.worker}, leased for {job.lease_ends_in_s:.1f} s more"
    else:
        where = f"was in work by {job.worker}, which is lost; it will be claimed anew"
    return Text(
        f"{job.id} {where}.\n"
        f"priority {job.priority}, attempts so far: {job.attempts}, enqueued {job.age_s:.1f} s ago"
    )


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def since(moment: str) -> str:
    """How long ago, in the largest whole unit."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(0, seconds)} s"


def named(ids: list[str]) -> str:
    return ", ".join(ids) if ids else "No worker is alive; those that start will be"
