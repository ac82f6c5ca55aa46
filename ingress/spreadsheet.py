"""Answers as CSV for spreadsheets: asked for by `?format=csv` or `Accept: text/csv`."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from shared.domain.spreadsheet import Cell, csv_line

MEDIA_TYPE = "text/csv"

Format = Annotated[
    Literal["json", "csv"] | None,
    Query(description="`csv` for a spreadsheet; without it, what `Accept` asks for."),
]


def wants_csv(request: Request, format: str | None) -> bool:
    """Whether a table is meant; the parameter wins over the header."""
    if format is not None:
        return format == "csv"
    offered = (part.split(";")[0].strip() for part in request.headers.get("accept", "").split(","))
    return next((kind for kind in offered if kind in (MEDIA_TYPE, "application/json")), "") == (
        MEDIA_TYPE
    )


def as_csv(name: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Response:
    """A table that fits into memory."""
    body = "".join(csv_line(row) for row in (header, *rows))
    return Response(body, media_type=_CHARSET, headers=_download(name))


def stream_csv(
    name: str, header: Sequence[str], pages: AsyncIterator[Sequence[Sequence[Cell]]]
) -> Response:
    """A table of any length, sent page by page as it is read.

    What goes wrong after the first page breaks the connection off, so that nobody takes a part
    for the whole.
    """

    async def lines() -> AsyncIterator[str]:
        yield csv_line(header)
        async for page in pages:
            yield "".join(csv_line(row) for row in page)

    return StreamingResponse(lines(), media_type=_CHARSET, headers=_download(name))


_CHARSET = f"{MEDIA_TYPE}; charset=utf-8"


def _download(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}.csv"'}
