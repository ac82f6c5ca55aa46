"""What is counted, under the names that dashboards use. No tenant, agent or key in any label."""

from collections.abc import Iterable, Iterator, Mapping

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shared.config import VERSION

MOST_PATHS = 200
OTHER = "other"

# what workers count; the ingress shows the sum over all of them, see `FleetTotals`
FLEET = CollectorRegistry()
# what a store says when it is asked; shown only while it answers
POSTGRES_SAYS, VALKEY_SAYS = CollectorRegistry(), CollectorRegistry()

HTTP_REQUESTS = Counter(
    "ainfera_http_requests_total",
    "HTTP requests answered, by route template.",
    ["method", "path", "status"],
)
HTTP_DURATION = Histogram(
    "ainfera_http_request_duration_seconds",
    "From the request's first byte to the response's last.",
    ["method", "path"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
PROVIDER_CALLS = Counter(
    "ainfera_provider_calls_total",
    "How often a provider was asked, retries and models asked in vain included.",
    ["provider", "outcome"],
    registry=FLEET,
)
SETTLEMENTS = Counter(
    "ainfera_settlements_total",
    "Calls for which a provider was asked and whose settlement is durable.",
    ["outcome"],
    registry=FLEET,
)
TOKENS = Counter(
    "ainfera_tokens_total",
    "Tokens of settled calls: input (cached ones too) and output.",
    ["provider", "direction"],
    registry=FLEET,
)
TOKENS_PER_SECOND = Histogram(
    "ainfera_tokens_per_second",
    "Output tokens of an answer by the time from its first word to its end.",
    ["provider"],
    buckets=(5, 10, 20, 40, 80, 160, 320, 640, 1280),
    registry=FLEET,
)
JOBS = Counter(
    "ainfera_jobs_total",
    "Claimed jobs by how they ended: done, failed, retried.",
    ["kind", "outcome"],
    registry=FLEET,
)
PICK_UP = Histogram(
    "ainfera_pick_up_seconds",
    "From when a job could be claimed to its claim, by the store's clock.",
    ["kind"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=FLEET,
)
AUDIT_SIGNING_REFUSED = Counter(
    "ainfera_audit_signing_refused_total",
    "Rounds in which the audit log was not signed, or not all of it: what was exported says"
    " otherwise (fork) or cannot be read (export_unread), or a chain lacks events (hole).",
    ["reason"],
    registry=FLEET,
)
AUDIT_EXPORT_FAILURES = Counter(
    "ainfera_audit_export_failures_total",
    "Attempts to export checkpoints that failed.",
    ["target"],
    registry=FLEET,
)
ROUTER_ALIAS_HITS = Counter(
    "ainfera_router_alias_hit_total", "Calls that named a legacy routing target.", ["alias"]
)
TIME_TO_FIRST_EVENT = Histogram(
    "ainfera_time_to_first_event_seconds",
    "From the enqueuing of a call to its first event at the ingress.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
AUDIT_CHAIN_HEIGHT = Gauge(
    "ainfera_audit_chain_height", "Audit events in all chains.", registry=POSTGRES_SAYS
)
AUDIT_CHAIN_FRESHNESS = Gauge(
    "ainfera_audit_chain_freshness_seconds",
    "Age of the newest audit event.",
    registry=POSTGRES_SAYS,
)
AUDIT_LOG_SIZE = Gauge(
    "ainfera_audit_log_size",
    "Audit events under the newest checkpoint.",
    registry=POSTGRES_SAYS,
)
AUDIT_CHECKPOINT_AGE = Gauge(
    "ainfera_audit_checkpoint_age_seconds",
    "Age of the newest checkpoint; none is signed while nothing happens.",
    registry=POSTGRES_SAYS,
)
DISPATCH_WITHOUT_CAPTURE = Gauge(
    "ainfera_dispatch_without_capture_total",
    "Routed calls that ended without a routing_outcomes row; must stay 0.",
    registry=POSTGRES_SAYS,
)
PASSTHROUGH_CAPTURED = Gauge(
    "ainfera_passthrough_captured_total",
    "Pinned calls that left a routing_outcomes row; must stay 0.",
    registry=POSTGRES_SAYS,
)
CAPTURE_GUARD_AGE = Gauge(
    "ainfera_capture_guard_age_seconds",
    "Age of the newest end of a call that the guard of captures has looked at; about a minute.",
    registry=POSTGRES_SAYS,
)
HOLDS_OUTSTANDING = Gauge(
    "ainfera_holds_outstanding", "Holds neither posted nor voided.", registry=POSTGRES_SAYS
)
QUEUE_DEPTH = Gauge(
    "ainfera_queue_depth", "Jobs that wait for a worker.", ["priority"], registry=VALKEY_SAYS
)
QUEUE_OLDEST_AGE = Gauge(
    "ainfera_queue_oldest_age_seconds",
    "How long the oldest of them has waited.",
    ["priority"],
    registry=VALKEY_SAYS,
)
QUEUE_READY = Gauge(
    "ainfera_queue_ready",
    "Jobs that could be claimed now; what to scale workers by.",
    registry=VALKEY_SAYS,
)
JOBS_IN_FLIGHT = Gauge(
    "ainfera_jobs_in_flight", "Jobs that workers have claimed and not ended.", registry=VALKEY_SAYS
)
WORKERS = Gauge(
    "ainfera_workers", "Workers that are alive.", ["kind", "state"], registry=VALKEY_SAYS
)
DEAD_LETTERS = Gauge(
    "ainfera_dead_letters", "Dead letters that wait for an operator.", registry=POSTGRES_SAYS
)
DEAD_LETTERS_TOTAL = Gauge(
    "ainfera_dead_letters_total",
    "Dead letters by what has become of them; `dead` are those that still wait.",
    ["outcome"],
    registry=POSTGRES_SAYS,
)
STORE_UP = Gauge(
    "ainfera_store_up",
    "Whether a store answered: what it says is left out where it did not.",
    ["store"],
)
PREFERENCE_LIVE = Gauge(
    "ainfera_routing_preference_live",
    "Whether the preference dial moves floors: 1, or 0 while its gate is closed.",
)
KILLSWITCH_ENGAGED = Gauge(
    "ainfera_cost_killswitch_engaged",
    "Scopes (a tenant, or all of them) whose new calls are stopped.",
)
KILLSWITCH_SPENT = Gauge(
    "ainfera_cost_killswitch_spent_usd",
    "What all tenants have spent in the killswitch's window, held money included; NaN: unwatched.",
    registry=VALKEY_SAYS,
)
KILLSWITCH_THRESHOLD = Gauge(
    "ainfera_cost_killswitch_threshold_usd",
    "What they may spend in it; +Inf where no threshold is set.",
    registry=VALKEY_SAYS,
)
KILLSWITCH_CLOSEST_TENANT = Gauge(
    "ainfera_cost_killswitch_closest_tenant_ratio",
    "The largest share of its own threshold that any tenant has spent.",
    registry=VALKEY_SAYS,
)
STREAM_RESUMES = Counter(
    "ainfera_stream_resumes_total",
    "Readers of an inference's events beside its caller.",
)
STREAM_GAPS = Counter(
    "ainfera_stream_gaps_total",
    "Holes in answers on their way: filled from the replay (yes) or broken off (no).",
    ["filled"],
)
REENQUEUED = Counter(
    "ainfera_reenqueued_total", "Calls that the queue had lost and their ingress enqueued again."
)
APP_INFO = Gauge("ainfera_app_info", "The version that runs.", ["version"])
APP_INFO.labels(version=VERSION).set(1)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class PathLabels:
    """Route templates as label values: the first `most` have names, the rest are `other`."""

    def __init__(self, most: int = MOST_PATHS) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, path: str) -> str:
        if path in self._known:
            return path
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(path)
        return path


class RequestCounts:
    """Counts requests by method, route template and status.

    The children of the two metrics are kept, because finding one by its labels costs more
    than counting.
    """

    def __init__(self) -> None:
        self._paths = PathLabels()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        label = self._paths.label(path)
        key = (method if method in METHODS else OTHER, label, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                HTTP_REQUESTS.labels(key[0], label, str(status)),
                HTTP_DURATION.labels(key[0], label),
            )
        children[0].inc()
        children[1].observe(seconds)


_REQUESTS = RequestCounts()


def observe_request(method: str, path: str, status: int, seconds: float) -> None:
    """Count one answered request; `path` is the route template, never the path itself."""
    _REQUESTS.observe(method, path, status, seconds)


def counts(registry: CollectorRegistry) -> dict[bytes, float]:
    """All that a registry has counted, by sample: its name and its labels, as JSON."""
    return {
        orjson.dumps([sample.name, sample.labels]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class FleetTotals(Collector):
    """What all workers counted together, in the form of the metrics they counted with.

    And one thing more that follows from it: how often a provider was asked for each settled call.
    """

    def __init__(self, totals: Mapping[bytes, bytes | float]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        totals = [(*orjson.loads(name), float(value)) for name, value in self._totals.items()]
        totals.sort(key=lambda sample: (sample[0], _with_buckets_in_order(sample[1])))
        for family in FLEET.collect():
            shown = Metric(family.name, family.documentation, family.type)
            suffixes = ("_total",) if family.type == "counter" else ("_bucket", "_count", "_sum")
            names = {family.name + suffix for suffix in suffixes}
            for name, labels, value in totals:
                if name in names:
                    shown.add_sample(name, labels, value)
            yield shown
        yield _spend_ratio(totals)


def _spend_ratio(totals: Iterable[tuple[str, Mapping[str, str], float]]) -> Metric:
    """Over 1 where providers were asked more than once for a call; no sample before the first."""
    sums = {"ainfera_provider_calls_total": 0.0, "ainfera_settlements_total": 0.0}
    for name, _, value in totals:
        if name in sums:
            sums[name] += value
    asked, settled = sums.values()
    ratio = Metric(
        "ainfera_provider_spend_ratio", "Provider calls per settled call, over all time.", "gauge"
    )
    if settled:
        ratio.add_sample(ratio.name, {}, asked / settled)
    return ratio


def _with_buckets_in_order(labels: Mapping[str, str]) -> tuple[list[tuple[str, str]], float]:
    rest = sorted((name, value) for name, value in labels.items() if name != "le")
    return rest, float(labels.get("le", 0))
