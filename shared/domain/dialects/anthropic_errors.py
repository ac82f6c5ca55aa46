"""A failure in the Anthropic dialect.

Source: https://docs.anthropic.com/en/api/errors
"""

from typing import Any

from shared.domain.dialects.answer_fields import failure_fields
from shared.domain.inference import Failure, Frame

OVERLOADED = 529
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def http_status(failure: Failure) -> int:
    """Anthropic clients know an overloaded service by 529."""
    return OVERLOADED if failure.status == 503 else failure.status


def error_type(failure: Failure) -> str:
    status = http_status(failure)
    return _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def render_failure(failure: Failure, inference_id: str | None) -> dict[str, Any]:
    """The HTTP body of a failure; what the vendor's shape has no word for is in `ainfera`."""
    return {
        "type": "error",
        "error": {"type": error_type(failure), "message": failure.message},
        "request_id": inference_id,
        "ainfera": {"code": failure.code, **failure_fields(failure, inference_id)},
    }


def error_frame(failure: Failure, inference_id: str) -> Frame:
    """The same within a stream, where it is the last frame."""
    return ("error", render_failure(failure, inference_id))
