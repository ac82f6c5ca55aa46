"""Who may come in where: every route, and what a key needs for it, in one table.

A route that is not here needs a key with the scope `admin`, and a test says that it is missing.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from starlette.routing import compile_path
from starlette.types import Scope as Connection

from shared.domain.counting import listed
from shared.domain.keys import Scope, in_order


class Open(Enum):
    """Routes for which no key is needed: for everybody, for everybody but so often from one
    address, at signup as `SIGNUP_MODE` says, and for operators, whose own key they ask for."""

    TO_ALL = "all"
    METERED = "metered"
    SIGNUP = "signup"
    TO_OPERATORS = "operators"


Access = frozenset[Scope] | Open

CALL: Final = frozenset({Scope.CALL})
READ: Final = frozenset({Scope.READ})
ADMIN: Final = frozenset({Scope.ADMIN})
# what a caller may see of its own calls, and a reader of all
OUTCOME: Final = CALL | READ
STOP: Final = CALL | ADMIN

ROUTES: Mapping[tuple[str, str], Access] = {
    ("POST", "/v1/inference"): CALL,
    ("POST", "/v1/messages"): CALL,
    ("POST", "/v1/messages/count_tokens"): CALL,
    ("POST", "/v1/chat/completions"): CALL,
    ("POST", "/v1/quote"): CALL,
    ("GET", "/v1/inferences/{inference_id}"): OUTCOME,
    ("GET", "/v1/inferences/{inference_id}/events"): OUTCOME,
    ("GET", "/v1/inferences/{inference_id}/decision"): OUTCOME,
    ("GET", "/v1/receipts/{receipt_id}"): OUTCOME,
    ("POST", "/v1/inferences/{inference_id}/cancel"): STOP,
    ("GET", "/v1/agents/{agent_id}"): READ,
    ("GET", "/v1/agents/{agent_id}/card"): READ,
    ("POST", "/v1/agents/{agent_id}/card"): READ,
    ("GET", "/v1/agents/{agent_id}/metrics"): READ,
    ("GET", "/v1/wallets"): READ,
    ("GET", "/v1/wallets/{agent_id}"): READ,
    ("GET", "/v1/ledger/{agent_id}"): READ,
    ("GET", "/v1/usage/daily"): READ,
    ("GET", "/v1/usage/by-session"): READ,
    ("GET", "/v1/usage/by-parent-agent"): READ,
    ("GET", "/v1/caps/rollup"): READ,
    ("GET", "/v1/routing-policy"): READ,
    ("GET", "/v1/audit/{agent_id}"): READ,
    ("GET", "/v1/audit/{agent_id}/proof"): READ,
    ("GET", "/v1/audit/{agent_id}/annex-iv"): READ,
    ("POST", "/v1/agents/register"): ADMIN,
    ("PATCH", "/v1/agents/{agent_id}/spend-policy"): ADMIN,
    ("PATCH", "/v1/agents/{agent_id}/routing-policy"): ADMIN,
    ("PUT", "/v1/routing-policy"): ADMIN,
    ("POST", "/v1/wallets/topup"): ADMIN,
    ("GET", "/v1/keys"): ADMIN,
    ("POST", "/v1/keys"): ADMIN,
    ("POST", "/v1/keys/{key_id}/rotate"): ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): ADMIN,
    ("POST", "/v1/agents/signup"): Open.SIGNUP,
    ("POST", "/v1/agents/cards/verify"): Open.METERED,
    ("GET", "/v1/audit/public"): Open.METERED,
    ("GET", "/v1/audit/{agent_id}/verify"): Open.METERED,
    ("GET", "/v1/audit/checkpoint"): Open.METERED,
    ("GET", "/v1/audit/consistency"): Open.METERED,
    ("GET", "/v1/audit/log-key"): Open.TO_ALL,
    ("GET", "/"): Open.TO_ALL,
    ("GET", "/health"): Open.TO_ALL,
    ("GET", "/ready"): Open.TO_ALL,
    ("GET", "/.well-known/agent-card.json"): Open.TO_ALL,
    ("GET", "/.well-known/jwks.json"): Open.TO_ALL,
    ("GET", "/.well-known/ainfera-receipt-verifier.py"): Open.TO_ALL,
    ("GET", "/llms.txt"): Open.TO_ALL,
    ("GET", "/v1/models"): Open.TO_ALL,
    ("GET", "/v1/models/{model_id:path}"): Open.TO_ALL,
    ("GET", "/v1/providers"): Open.TO_ALL,
    ("GET", "/v1/payments/status"): Open.TO_ALL,
    ("GET", "/metrics"): Open.TO_OPERATORS,
    ("GET", "/internal/queue"): Open.TO_OPERATORS,
    ("GET", "/internal/workers"): Open.TO_OPERATORS,
    ("GET", "/internal/jobs/{job_id}"): Open.TO_OPERATORS,
    ("POST", "/internal/drain"): Open.TO_OPERATORS,
    ("POST", "/internal/resume"): Open.TO_OPERATORS,
    ("GET", "/internal/routing-preference"): Open.TO_OPERATORS,
    ("POST", "/internal/routing-preference"): Open.TO_OPERATORS,
    ("GET", "/internal/killswitches"): Open.TO_OPERATORS,
    ("GET", "/internal/killswitches/thresholds"): Open.TO_OPERATORS,
    ("GET", "/internal/killswitches/{switch}/statement"): Open.TO_OPERATORS,
    ("GET", "/internal/dead-letters"): Open.TO_OPERATORS,
    ("GET", "/internal/dead-letters/{inference_id}"): Open.TO_OPERATORS,
    ("POST", "/internal/dead-letters/{inference_id}/replay"): Open.TO_OPERATORS,
    ("POST", "/internal/dead-letters/{inference_id}/discard"): Open.TO_OPERATORS,
}


def access_of(connection: Connection) -> Access:
    """What the route of a request needs; inference calls are reached without the framework's
    routing, and their path is their route's."""
    route: Any = connection.get("route")
    path = connection["path"] if route is None else route.path
    return ROUTES.get((connection["method"], path), ADMIN)


def named(scopes: frozenset[Scope], last: str) -> str:
    """Scopes in words: `call` or `read`."""
    return listed([f"`{each}`" for each in in_order(scopes)], last)


_PATTERNS = tuple((compile_path(path)[0], method) for method, path in ROUTES)


def methods_at(path: str) -> list[str]:
    """The methods of all routes that lie at a path, in alphabetical order."""
    return sorted({method for pattern, method in _PATTERNS if pattern.match(path)})
