"""How a proof keeps to what it is asked about: one tenant or all, one day (UTC) or all."""


def of_tenant(alias: str) -> str:
    """The condition that a row is of the tenant $1; null is every tenant."""
    return f"($1::uuid IS NULL OR {alias}.tenant_id = $1)"


def of_day(moment: str) -> str:
    """The condition that a moment lies in the day $2; null is any day."""
    return (
        f"($2::date IS NULL OR {moment} >= $2::timestamp AT TIME ZONE 'UTC' "
        f"AND {moment} < ($2 + 1)::timestamp AT TIME ZONE 'UTC')"
    )
