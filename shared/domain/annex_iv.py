"""Annex IV of the EU AI Act, and what an inference gateway can and cannot say for it.

Regulation (EU) 2024/1689, Annex IV, "Technical documentation referred to in Article 11(1)". It is
owed by the provider of a high-risk AI system. The gateway is a component that such a system may
use: it knows which models were called under which policy, when, at what cost and with what
outcome, and can prove that its record is whole. It does not know what the system is for, on whom
it is used, or how the models were trained; those points are named as the provider's to write.
"""

from dataclasses import dataclass
from typing import Literal

REGULATION = "Regulation (EU) 2024/1689, Annex IV"
Coverage = Literal["partly", "none"]


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the annex: where this document speaks to it, and what the provider must add."""

    point: str
    heading: str
    coverage: Coverage
    sections: tuple[str, ...]
    provider_adds: str


POINTS: tuple[Point, ...] = (
    Point(
        "1",
        "General description of the AI system",
        "partly",
        ("agent", "gateway", "models"),
        "Intended purpose, name of the provider, version of the system and its relation to earlier "
        "ones, forms in which it is placed on the market, hardware, user interface, instructions "
        "for use. From here: the gateway's version, and the third-party models it reached (1(b), "
        "1(c)).",
    ),
    Point(
        "2",
        "Detailed description of the elements of the AI system and of the process for its "
        "development",
        "partly",
        ("policies", "models"),
        "Development methods, design choices, data requirements, human oversight (Article 14), "
        "validation and testing, cybersecurity; the model vendors' own documentation. From here: "
        "which pre-trained systems of third parties were used (2(a)), and the rule that chose "
        "between them, by its version and hash (2(b)).",
    ),
    Point(
        "3",
        "Monitoring, functioning and control of the AI system",
        "partly",
        ("outcomes", "policies", "audit"),
        "Capabilities and limitations, expected accuracy, foreseeable unintended outcomes, "
        "oversight measures, input data. From here: logs of each call (Article 12) that can be "
        "shown to be whole, outcomes, and the limits that were enforced.",
    ),
    Point(
        "4",
        "Appropriateness of the performance metrics",
        "none",
        (),
        "All of it. The gateway measures latency, cost and completion; whether these are the right "
        "metrics for the system is the provider's to argue.",
    ),
    Point(
        "5",
        "Risk management system in accordance with Article 9",
        "none",
        (),
        "All of it. Spend caps and quality floors that are in force are under `policies`.",
    ),
    Point(
        "6",
        "Relevant changes made by the provider to the system through its lifecycle",
        "partly",
        ("audit",),
        "Changes to the system itself. From here: changes of spend policies and keys are events "
        "of the chain, and each decision names the policy version and ruleset it was made by.",
    ),
    Point(
        "7",
        "Harmonised standards applied",
        "none",
        (),
        "All of it. The audit log follows RFC 9162, C2SP tlog-checkpoint and RFC 8032; these are "
        "not harmonised standards under the Act.",
    ),
    Point("8", "Copy of the EU declaration of conformity (Article 47)", "none", (), "All of it."),
    Point(
        "9",
        "System in place to evaluate performance after the system is on the market (Article 72)",
        "partly",
        ("outcomes", "models"),
        "The post-market monitoring plan. From here: outcomes and models used in the period, "
        "which such a plan may draw on.",
    ),
)
