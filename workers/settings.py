"""All that the fleet runs: which worker has which functions, and the cron table."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from arq import cron
from arq.connections import RedisSettings
from redis.asyncio import Redis

from shared.catalog import open_catalog
from shared.config import Settings, provider_configs
from shared.control import CANCEL, ControlListener
from shared.db import Database
from shared.heap import settle_heap
from shared.queue import (
    BOOKS_QUEUE,
    INFERENCE_QUEUE,
    deserialize_job,
    redis_settings,
    serialize_job,
)
from shared.stream import Publisher
from workers.deps import Cancellations, Deps
from workers.fleet import FleetWorker
from workers.inference import run_inference
from workers.ledger import Ledger
from workers.providers import build_providers, open_transport
from workers.sweep import BooksDeps, expire_grants, release_expired_holds

log = logging.getLogger(__name__)

# run_inference itself ends a call that was tried too often: by a settlement, not by forgetting it
NEVER_TOO_OFTEN = sys.maxsize


def _common(settings: Settings) -> dict[str, Any]:
    redis: RedisSettings = redis_settings(settings.redis_url)
    return {
        "redis_settings": redis,
        "job_serializer": serialize_job,
        "job_deserializer": deserialize_job,
        "keep_result": 0,
        "log_results": False,
        "lease_s": settings.lease_s,
        "job_completion_wait": max(1, int(settings.drain_grace_s)),
    }


def inference_worker(settings: Settings) -> FleetWorker:
    """The worker that answers calls."""

    async def startup(ctx: dict[str, Any]) -> None:
        configs = provider_configs()
        db = Database(settings)
        ledger = Ledger(db)
        await ledger.start()
        # one flusher uses it, one command at a time: a pool would only check it out and in
        line = Redis.from_url(settings.redis_url, single_connection_client=True)
        publisher = Publisher(line, settings.coalesce_ms / 1000)
        publisher.start()
        http = open_transport()
        cancellations = Cancellations()

        def obey(order: Mapping[str, Any]) -> None:
            if order["type"] == CANCEL:
                cancellations.cancel(order["inference_id"])

        control = ControlListener(ctx["redis"], obey)
        await control.start()
        catalog = await open_catalog(db)
        catalogued = {model.provider for model in catalog.candidates}
        ctx["opened"] = (control, publisher, line, ledger, http, db)
        ctx["deps"] = Deps(
            settings=settings,
            ledger=ledger,
            publisher=publisher,
            providers=build_providers(settings, configs, http, catalogued),
            catalog=catalog,
            cancellations=cancellations,
            clock=time.time,
            monotonic=time.perf_counter,
        )
        settle_heap()

    async def shutdown(ctx: dict[str, Any]) -> None:
        for opened in ctx.pop("opened", ()):
            await opened.aclose()

    return FleetWorker(
        functions=[run_inference],
        kind="inference",
        queue_name=INFERENCE_QUEUE,
        arq_jobs="",
        on_startup=startup,
        on_shutdown=shutdown,
        max_jobs=settings.jobs_per_worker,
        jobs_per_tenant=settings.tenant_slots,
        max_tries=NEVER_TOO_OFTEN,
        job_timeout=settings.call_deadline_s * 2,
        **_common(settings),
    )


def books_worker(settings: Settings) -> FleetWorker:
    """The worker that keeps the books by cron."""

    async def startup(ctx: dict[str, Any]) -> None:
        db = Database(settings)
        ledger = Ledger(db)
        await ledger.start()
        ctx["deps"] = BooksDeps(settings=settings, db=db, ledger=ledger)

    async def shutdown(ctx: dict[str, Any]) -> None:
        await ctx["deps"].ledger.aclose()
        await ctx["deps"].db.aclose()

    return FleetWorker(
        functions=[],
        cron_jobs=[
            cron(release_expired_holds, second={0, 15, 30, 45}, run_at_startup=True, keep_result=0),
            cron(expire_grants, minute={0, 15, 30, 45}, run_at_startup=True, keep_result=0),
        ],
        kind="books",
        queue_name=BOOKS_QUEUE,
        on_startup=startup,
        on_shutdown=shutdown,
        **_common(settings),
    )


WORKERS = {"inference": inference_worker, "books": books_worker}
