"""A failure in the OpenAI dialect.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from typing import Any

from shared.domain.dialects.answer_fields import failure_fields, param_of
from shared.domain.inference import DONE_FRAME, Failure, Frame

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


def http_status(failure: Failure) -> int:
    return failure.status


def error_type(failure: Failure) -> str:
    status = failure.status
    return _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


def render_failure(failure: Failure, inference_id: str | None) -> dict[str, Any]:
    """The HTTP body of a failure; what the vendor's shape has no word for is in `ainfera`."""
    return {
        "error": {
            "message": failure.message,
            "type": error_type(failure),
            "param": param_of(failure),
            "code": failure.code,
        },
        "ainfera": failure_fields(failure, inference_id),
    }


def error_frames(failure: Failure, inference_id: str) -> list[Frame]:
    """The same within a stream: one frame with the error, then the stream's end."""
    return [(None, render_failure(failure, inference_id)), DONE_FRAME]
