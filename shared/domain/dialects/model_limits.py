"""Fields of a vendor's own wire that some of its models refuse with a 400.

They matter where a client could not know the model: a routed call, or a client of another
dialect. There such a field is left out and named. A client that pinned the model in the
vendor's dialect is sent the vendor's own words instead.

Sources: https://platform.claude.com/docs/en/about-claude/models/migration-guide (sampling and
thinking budgets), https://platform.openai.com/docs/guides/latest-model (reasoning models).
"""

import re
from typing import Any

from shared.domain.inference import Dialect, InferenceRequest

# Claude models up to 4.6; every later one has no sampling parameters and no thinking budget
_CLAUDE_SAMPLED = re.compile(r"claude-(?:[23]|(?:opus|sonnet|haiku)-4(?:-[0-6])?(?:-\d{8})?$)")
# Claude models before 4.6, which know no adaptive thinking
_CLAUDE_BUDGETED = re.compile(r"claude-(?:3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8})?$)")
_OPENAI_REASONING = re.compile(r"(?:o[134]|gpt-5)(?!.*chat)")

_SAMPLING = ("temperature", "top_p", "top_k")
_REASONING_REFUSES = (
    "temperature",
    "top_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
)
# from how large a thinking budget on an effort is asked for, and the least budget there is
EFFORTS = ((10_000, "high"), (5_000, "medium"), (0, "low"))
_LEAST_BUDGET = 1024


def effort_for(budget: int) -> str:
    return next(effort for least, effort in EFFORTS if budget >= least)


def knows_its_model(request: InferenceRequest, wire: Dialect) -> bool:
    """Whether the client itself chose this vendor's model, in this vendor's dialect."""
    return request.dialect is wire and not request.routed


def leave_out_for_claude(body: dict[str, Any], model: str) -> list[str]:
    """Take from `body` what this Claude model refuses; the names of what was taken."""
    taken = []
    if not _CLAUDE_SAMPLED.match(model):
        taken = _take(body, _SAMPLING)
    elif body.get("temperature") is not None and body.get("top_p") is not None:
        taken = _take(body, ("top_p",))  # from 4.1 on one of the two at most
    return taken + _settle_thinking(body, model)


def leave_out_for_openai(body: dict[str, Any], model: str) -> list[str]:
    """Take from `body` what this OpenAI model refuses; the names of what was taken."""
    return _take(body, _REASONING_REFUSES) if _OPENAI_REASONING.match(model) else []


def _take(body: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if body.pop(name, None) is not None]


def _settle_thinking(body: dict[str, Any], model: str) -> list[str]:
    """Ask for thinking in the form that the model knows: adaptive, or with a budget."""
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled" and not _CLAUDE_SAMPLED.match(model):
        body["thinking"] = {"type": "adaptive"}
        effort = effort_for(thinking.get("budget_tokens", 0))
        body["output_config"] = {"effort": effort, **(body.get("output_config") or {})}
        return ["thinking.budget_tokens"]
    if thinking.get("type") == "adaptive" and _CLAUDE_BUDGETED.match(model):
        budget = max(_LEAST_BUDGET, body["max_tokens"] // 2)
        if budget >= body["max_tokens"]:
            return _take(body, ("thinking",))
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return []
