"""What an answer of ours says of the call besides the model's words."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from shared.domain.inference import CallInfo, Failure

# what a native error body says first; a detail of the same name may not replace it
_RESERVED = frozenset({"code", "message", "detail"})


def call_fields(call: CallInfo) -> dict[str, Any]:
    """The `ainfera` object of the two vendor dialects' bodies."""
    return {
        "inference_id": call.inference_id,
        "receipt_id": call.receipt_id,
        "agent_id": call.agent_id,
        "provider": call.provider,
        "audit_url": call.audit_url,
        **notes(call),
    }


def notes(call: CallInfo) -> dict[str, Any]:
    """What must be said only where it is so: a simulated answer, client fields not served."""
    said: dict[str, Any] = {}
    if call.simulated:
        said["simulated"] = True
    if call.ignored:
        said["ignored"] = list(call.ignored)
    return said


def money(amount: Decimal | None) -> str | None:
    """Money goes out as a decimal string, never in exponent form."""
    return None if amount is None else format(amount, "f")


def failure_fields(failure: Failure, inference_id: str | None) -> dict[str, Any]:
    """A failure's details, with the inference's id where there is one."""
    said = {k: _plain(v) for k, v in failure.detail.items() if k not in _RESERVED}
    if inference_id is not None:
        said["inference_id"] = inference_id
    return said


def _plain(value: Any) -> Any:
    return money(value) if isinstance(value, Decimal) else value


def param_of(failure: Failure) -> str | None:
    """The field of the body that the failure is about, if it is about one."""
    param = failure.detail.get("param")
    return param if isinstance(param, str) else None


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one: for what a provider may leave out."""
    return value if isinstance(value, Mapping) else {}
