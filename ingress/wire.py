"""How money and moments are written in our own JSON, and what a client may write in text."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

# Postgres has no text with a zero character in it.
Text = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")]
Handle = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PerCallCap = Annotated[Decimal, Field(ge=Decimal("0.001"), le=100, decimal_places=9)]
DailyCap = Annotated[Decimal, Field(ge=Decimal("0.01"), le=10_000, decimal_places=9)]

_FEWEST_PLACES = 2


def in_utc(at: datetime) -> datetime:
    """The same moment in UTC, which is meant where no zone is named. Raises `ValueError` for one
    that only other zones have in the years 1 to 9999."""
    try:
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("is not between the years 1 and 9999 in UTC") from error


Moment = Annotated[datetime, AfterValidator(in_utc)]
AwareMoment = Annotated[AwareDatetime, AfterValidator(in_utc)]


class Body(BaseModel):
    """The body of one of our own routes. A field that is not known is refused: who mistypes a
    limit must not be given a key without one. (Dialects pass on what they do not know.)"""

    model_config = ConfigDict(extra="forbid")


def usd(amount: Decimal) -> str:
    """US dollars as plain digits, two to nine places: `5.00`, `0.000123`."""
    whole, _, fraction = f"{amount:.9f}".partition(".")
    fraction = fraction.rstrip("0").ljust(_FEWEST_PLACES, "0")
    return f"{whole}.{fraction}"


def cap(amount: Decimal | None) -> str | None:
    """A cap in US dollars; None is no cap."""
    return None if amount is None else usd(amount)


def moment(at: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond, with a Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
