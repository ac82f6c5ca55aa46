"""All that the fleet runs: which worker has which functions, and the cron table."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx
from arq import cron

from shared.config import Settings, provider_configs
from shared.control import CANCEL, ControlListener
from shared.db import Database
from shared.heap import settle_heap
from shared.kept import KeptCalls
from shared.killswitch import Killswitch, guard
from shared.live_routing import LiveRouting
from shared.publisher import Publisher
from shared.queue import (
    BOOKS_QUEUE,
    INFERENCE_QUEUE,
    InferenceQueue,
    deserialize_job,
    serialize_job,
)
from shared.replay_stream import ReplayLimits
from shared.valkey import open_queue
from workers.capture_guard import guard_captures
from workers.checkpoints import Checkpointer
from workers.dead_letters import tend_dead_letters
from workers.deps import Cancellations, Deps
from workers.exports import Export, FileExport, HttpExport
from workers.fleet import FleetWorker
from workers.inference import run_inference
from workers.judging import Judge
from workers.kept import drive_kept_calls, forget_kept_calls
from workers.latencies import measure_latencies
from workers.learning import estimate_qualities
from workers.ledger import Ledger
from workers.providers import build_providers, open_transport
from workers.quotes import forget_old_quotes
from workers.rewards import Rewards, reward_outcomes
from workers.s3 import SignedForBucket
from workers.spending import SpendWatch
from workers.sweep import BooksDeps, expire_grants, release_expired_holds, sign_checkpoint

log = logging.getLogger(__name__)

# run_inference itself ends a call that was tried too often: by a settlement, not by forgetting it
NEVER_TOO_OFTEN = sys.maxsize
EXPORT_TIMEOUT_S = 5.0


def _common(settings: Settings, queue_name: str) -> dict[str, Any]:
    return {
        "queue_name": queue_name,
        "redis_pool": open_queue(settings.redis_url, queue_name),
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
        ledger = Ledger(db, guard(settings))
        await ledger.start()
        publisher = Publisher(ctx["redis"], settings.coalesce_ms / 1000, ReplayLimits.of(settings))
        publisher.start()
        http = open_transport()
        cancellations = Cancellations()

        killswitch, routing = Killswitch(db), LiveRouting(db, settings)

        def obey(order: Mapping[str, Any]) -> None:
            if order["type"] == CANCEL:
                cancellations.cancel(order["inference_id"])
            killswitch.obey(order)
            routing.obey(order)

        def missed() -> None:
            killswitch.missed()
            routing.missed()

        await killswitch.start()
        await routing.start()
        control = ControlListener(ctx["redis"], obey, missed)
        await control.start()
        catalogued = {model.provider for model in routing.catalog.current.candidates}
        ctx["opened"] = (control, routing, killswitch, publisher, ledger, http, db)
        ctx["deps"] = Deps(
            settings=settings,
            ledger=ledger,
            kept=KeptCalls(db, settings),
            publisher=publisher,
            providers=build_providers(settings, configs, http, catalogued),
            routing=routing,
            cancellations=cancellations,
            killswitch=killswitch,
            monotonic=time.perf_counter,
        )
        settle_heap()

    async def shutdown(ctx: dict[str, Any]) -> None:
        for opened in ctx.pop("opened", ()):
            await opened.aclose()

    return FleetWorker(
        functions=[run_inference],
        kind="inference",
        arq_jobs="",
        on_startup=startup,
        on_shutdown=shutdown,
        max_jobs=settings.jobs_per_worker,
        jobs_per_tenant=settings.tenant_slots,
        max_tries=NEVER_TOO_OFTEN,
        job_timeout=settings.call_deadline_s * 2,
        **_common(settings, INFERENCE_QUEUE),
    )


def audit_exports(settings: Settings, http: httpx.AsyncClient) -> list[Export]:
    """Where the audit log's checkpoints go besides the database, as the settings say.

    Nowhere is allowed, and told: then nobody sees a log that was rewritten by who has the key.
    """
    exports: list[Export] = []
    if settings.audit_export_dir is not None:
        exports.append(FileExport(settings.audit_export_dir))
    if settings.audit_export_url:
        token = settings.audit_export_token.get_secret_value()
        exports.append(HttpExport(http, settings.audit_export_url, token, _signing(settings)))
    if not exports:
        log.warning("audit_not_exported", extra={"set": "AUDIT_EXPORT_DIR or AUDIT_EXPORT_URL"})
    return exports


def _signing(settings: Settings) -> SignedForBucket | None:
    secret = settings.audit_export_s3_secret.get_secret_value()
    if not settings.audit_export_s3_key_id or not secret:
        return None
    return SignedForBucket(settings.audit_export_s3_key_id, secret, settings.audit_export_s3_region)


def books_worker(settings: Settings) -> FleetWorker:
    """The worker that keeps the books by cron."""

    async def startup(ctx: dict[str, Any]) -> None:
        db = Database(settings)
        ledger = Ledger(db)
        await ledger.start()
        redis = ctx["redis"]
        http = ctx["http"] = httpx.AsyncClient(timeout=EXPORT_TIMEOUT_S)
        watch = ctx["spending"] = SpendWatch(db, redis, settings)
        watch.start()
        ctx["rewards"] = Rewards(db, redis, Judge())
        ctx["deps"] = BooksDeps(
            settings=settings,
            db=db,
            ledger=ledger,
            kept=KeptCalls(db, settings),
            queue=InferenceQueue(redis),
            redis=redis,
            checkpointer=Checkpointer(settings, db, audit_exports(settings, http)),
        )

    async def shutdown(ctx: dict[str, Any]) -> None:
        await ctx["http"].aclose()
        await ctx["rewards"].aclose()
        await ctx["spending"].aclose()
        await ctx["deps"].ledger.aclose()
        await ctx["deps"].db.aclose()

    checkpoint_at = set(range(0, 60, settings.checkpoint_s))
    return FleetWorker(
        functions=[],
        cron_jobs=[
            cron(release_expired_holds, second={0, 15, 30, 45}, run_at_startup=True, keep_result=0),
            cron(drive_kept_calls, second=set(range(0, 60, 5)), run_at_startup=True, keep_result=0),
            cron(sign_checkpoint, second=checkpoint_at, run_at_startup=True, keep_result=0),
            cron(forget_kept_calls, minute=set(range(60)), run_at_startup=True, keep_result=0),
            cron(tend_dead_letters, second={5, 20, 35, 50}, run_at_startup=True, keep_result=0),
            cron(measure_latencies, second={10, 40}, run_at_startup=True, keep_result=0),
            cron(reward_outcomes, second=set(range(2, 60, 5)), keep_result=0),
            cron(estimate_qualities, minute={7}, run_at_startup=True, keep_result=0),
            cron(guard_captures, second={25}, run_at_startup=True, keep_result=0),
            cron(forget_old_quotes, minute=set(range(0, 60, 5)), keep_result=0),
            cron(expire_grants, minute=set(range(60)), run_at_startup=True, keep_result=0),
        ],
        kind="books",
        on_startup=startup,
        on_shutdown=shutdown,
        **_common(settings, BOOKS_QUEUE),
    )


WORKERS = {"inference": inference_worker, "books": books_worker}
