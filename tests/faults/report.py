"""What happened in one run, and its table."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.measuring import Times
from tests.faults.promises import Findings
from tests.faults.provider import Mood


@dataclass
class Report:
    """All rounds of a run together. `log` is told too what is said."""

    seed: int
    findings: Findings = field(default_factory=Findings)
    times: Times = field(default_factory=Times)
    log: Path | None = None
    seconds: float = 0.0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    moods: Counter[Mood] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    told_away: Counter[int] = field(default_factory=Counter)
    conflicts: Counter[int] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    states: dict[str, int] = field(default_factory=dict)
    memory_mb: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    asked: int = 0
    again: int = 0
    settled: int = 0

    @property
    def violations(self) -> int:
        return self.findings.violations

    @property
    def ratio(self) -> float:
        """Provider calls per settled call."""
        return self.asked / self.settled if self.settled else 0.0

    def say(self, line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        sys.stderr.write(f"{line}\n")
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{line}\n")

    def __str__(self) -> str:
        moods = {mood.value: count for mood, count in self.moods.items() if mood is not Mood.FINE}
        return "\n".join(
            [
                f"seed {self.seed}, {self.seconds:.0f} s in {self.rounds} rounds",
                "| fault | times |",
                "| --- | --- |",
                *[f"| {name} | {count} |" for name, count in self.faults.most_common()],
                f"| provider faults | {_listed(moods)} |",
                f"| seen of these | {_listed(self.seen)} |",
                "",
                "| what | how much |",
                "| --- | --- |",
                f"| faults made | {self.faults.total()} |",
                f"| processes killed or ended | {self.deaths.total()}: {_listed(self.deaths)} |",
                f"| calls of clients | {self.calls}: {_listed(self.kinds)} |",
                f"| what they were told | {_listed(self.ends)} |",
                f"| told while Postgres was away, by status | {_listed(self.told_away)} |",
                f"| another body under a known key, by status | {_listed(self.conflicts)} |",
                f"| jobs by their end | {_listed(self.states)} |",
                f"| provider calls per settled call | {self.asked}/{self.settled} = "
                f"{self.ratio:.3f} |",
                f"| of these, asked again though the provider was not at fault | {self.again} |",
                *self.times.lines(),
                f"| memory at the end, MB | {_listed(self.memory_mb)} |",
                f"| **violations** | **{self.violations}** |",
                "",
                "| promise | violations |",
                "| --- | --- |",
                *self.findings.lines(),
            ]
        )


def _listed(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
