"""A job as a worker claims it from the queue, and how it gives it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Claim:
    """One job as it was claimed; `attempt` counts from 1, over all workers.

    `stop`: an order to stop was given before the claim. `late`: the client was told that the job
    will not be begun any more. `handed_back` are earlier tries that ended because their worker
    was stopped, not because of the job. `age_us`: since it was accepted.
    """

    job_id: str
    job: bytes
    attempt: int
    payload: bytes | None
    tenant: str
    waited_us: int
    age_us: int
    stop: bool
    late: bool
    handed_back: frozenset[int]

    @classmethod
    def unpack(cls, row: Sequence[Any]) -> "Claim":
        """One row of the CLAIM script's answer."""
        job_id, job, attempt, payload, tenant, waited_us, age_us, stop, back = row
        return cls(
            job_id.decode(),
            job,
            attempt,
            payload or None,
            tenant.decode(),
            waited_us,
            age_us,
            stop=stop == b"1",
            late=stop == b"late",
            handed_back=frozenset(map(int, back.split())),
        )

    @property
    def key(self) -> str:
        """This run of the job; another attempt of the same job is another run."""
        return f"{self.job_id}:{self.attempt}"


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: `wait` is a word of lanes.py, or in how many ms the job is due again.

    `tokens` are what it used, -1 where that is not known.
    """

    job_id: str
    attempt: int
    wait: int
    tokens: int = -1
