"""`fleet learning`: what answers have taught, and whether that speaks for a change of rule."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markdown import Markdown

from shared.config import Settings
from shared.db import APPLICATION_NAME, Connection, Database
from shared.domain.comparison import Chooser, Compared, Gathered, Recorded, compare, gather
from shared.domain.learning import Terms
from shared.domain.learning_report import as_json, as_text
from shared.preflight import check_postgres
from workers.commands.terminal import AsJson, fleet_settings, moment_ago, run, say_json
from workers.learning import terms_of

learning = typer.Typer(
    no_args_is_help=True, help="What answers teach about models, and what would follow from it."
)

# The newest calls of the time that is looked at; a decision is a wide thing.
_RECORDED = """
SELECT w.inference_id, w.task_type, w.band, o.chosen_model_slug AS chosen, w.model,
       w.failed_models, w.reward, w.checked,
       greatest(0, floor(extract(epoch FROM now() - w.ended_at) / 86400))::int AS age_days,
       o.decision
  FROM routing_rewards w JOIN routing_outcomes o ON o.inference_id = w.inference_id
 WHERE w.ended_at >= $1 AND o.chosen_model_slug IS NOT NULL
 ORDER BY w.ended_at DESC LIMIT $2
"""
_CATALOGS = "SELECT hash, models FROM catalog_snapshots WHERE hash = ANY($1)"

Since = Annotated[
    datetime, typer.Option(parser=moment_ago, metavar="WHEN", help="From when on: 7d, a moment.")
]


@learning.command("report")
def report_command(
    since: Since = "7d",  # type: ignore[assignment]
    calls: Annotated[int, typer.Option(help="At most so many calls, the newest.")] = 20_000,
    seed: Annotated[str, typer.Option(help="Which calls are held out; any word.")] = "1",
    as_json_: AsJson = False,
) -> None:
    """Compare the rule with what it would choose if observed qualities took the place of priors.

    Qualities are estimated from one half of the recorded calls; the other half says whether the
    other choice is an improvement, where it can tell, and says where it cannot. Nothing is
    changed: a policy version has to ask for observed qualities.

    Example: fleet learning report --since 30d
    """
    settings = fleet_settings()
    found, judged = run(_compared(settings, since, calls, seed))
    if as_json_:
        say_json(as_json(found, judged, settings.empirical_min_support))
        return
    text = as_text(found, judged, settings.empirical_min_support)
    if sys.stdout.isatty():
        Console().print(Markdown(text))
    else:
        sys.stdout.write(text)


async def _compared(
    settings: Settings, since: datetime, calls: int, seed: str
) -> tuple[Gathered, list[Compared]]:
    """Raises `StartError` where there is no database to ask."""
    await check_postgres("DATABASE_URL", settings.database_url)
    connection = await Database(settings).connect_raw(f"{APPLICATION_NAME} learning")
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            recorded = await recorded_calls(connection, since, calls)
            catalogs = await recorded_catalogs(connection, recorded)
    finally:
        await connection.close()
    return compared(recorded, catalogs, terms_of(settings), seed)


def compared(
    recorded: Sequence[Recorded],
    catalogs: dict[str, list[dict[str, Any]]],
    terms: Terms,
    seed: str,
) -> tuple[Gathered, list[Compared]]:
    """The split, the estimates and the verdicts; what is compared with a lost catalogue is not."""
    known = [call for call in recorded if call.catalog_hash in catalogs]
    found = gather(known, Chooser(catalogs), terms, seed)
    return found, compare(found, terms.min_support)


async def recorded_calls(connection: Connection, since: datetime, most: int) -> list[Recorded]:
    """Routed calls with their rewards and decisions, the newest first."""
    found = []
    async for row in connection.cursor(_RECORDED, since, most):
        fields = dict(row)
        decision = orjson.loads(fields.pop("decision"))
        if "terms" in decision:
            found.append(
                Recorded(
                    **fields | {"inference_id": str(fields["inference_id"])},
                    terms=decision["terms"],
                    catalog_hash=decision["catalog_hash"],
                    quoted="quote_id" in decision,
                )
            )
    return found


async def recorded_catalogs(
    connection: Connection, calls: Sequence[Recorded]
) -> dict[str, list[dict[str, Any]]]:
    """The catalogues that the calls were decided from, by their hash."""
    rows = await connection.fetch(_CATALOGS, list({call.catalog_hash for call in calls}))
    return {row["hash"]: orjson.loads(row["models"]) for row in rows}
