"""The errors a client can meet. Each leaf knows its status, its code and whether to retry.

AinferaError
├── InvalidBody             400  invalid_request
│   └── MethodNotAllowed      405  invalid_request
├── MissingSignatureHeader  400  missing_signature_header
├── Unauthorized
│   ├── InvalidApiKey       401  invalid_api_key
│   ├── InvalidInternalKey  401  invalid_internal_key
│   └── InvalidSignature    401  invalid_signature
├── InsufficientFunds       402  insufficient_funds
├── SpendPolicyExceeded     403  spend_policy_exceeded
├── Forbidden               403  forbidden
├── NotFound                404  not_found
├── UnknownRail             404  unknown_rail
├── IdempotencyConflict     409  idempotency_conflict
├── HandleTaken             409  handle_taken
├── QuoteUsed               409  quote_used
├── QuoteMismatch           409  quote_mismatch
├── Cancelled               410  cancelled
├── QuoteExpired            410  quote_expired
├── LetterNotDead           409  letter_not_dead            operators only
├── EventsExpired           410  events_expired
├── RequestTooLarge         413  request_too_large
├── Unroutable
│   ├── ModelUnavailable      422  model_unavailable
│   ├── NoCandidateClearsFloor 422 no_candidate_clears_floor
│   ├── NoCandidateEnrolled   422  no_candidate_enrolled
│   └── ToolsNotSupported     422  tools_not_supported_by_backend
├── RateLimited             429  rate_limited               retryable
├── InternalError           500  internal_error             retryable
├── ProviderError           502  provider_error             retryable
├── Unavailable             503, with Retry-After           retryable
│   ├── Overloaded               overloaded
│   ├── Draining                 draining
│   ├── PaymentsDormant          payments_dormant
│   └── KillswitchEngaged        cost_killswitch_engaged
└── DeadlineExceeded        504  deadline_exceeded          retryable
"""

from typing import Any, ClassVar

from shared.domain.inference import Failure


class AinferaError(Exception):
    """Base of all; `detail` goes to the top level of the native error body."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    default_retry_after: ClassVar[float | None] = None

    def __init__(self, message: str, *, retry_after: float | None = None, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after if retry_after is not None else self.default_retry_after

    def failure(self) -> Failure:
        """The same error as a value that crosses the queue and that dialects render."""
        return Failure(
            code=self.code,
            status=self.status,
            message=self.message,
            detail=self.detail,
            retry_after=self.retry_after,
            retryable=self.retryable,
        )


class InvalidBody(AinferaError):
    status, code = 400, "invalid_request"


class MethodNotAllowed(InvalidBody):
    status = 405


class MissingSignatureHeader(AinferaError):
    status, code = 400, "missing_signature_header"


class Unauthorized(AinferaError):
    status, code = 401, "invalid_api_key"


class InvalidApiKey(Unauthorized):
    code = "invalid_api_key"


class InvalidInternalKey(Unauthorized):
    code = "invalid_internal_key"


class InvalidSignature(Unauthorized):
    code = "invalid_signature"


class InsufficientFunds(AinferaError):
    status, code = 402, "insufficient_funds"


class SpendPolicyExceeded(AinferaError):
    status, code = 403, "spend_policy_exceeded"


class Forbidden(AinferaError):
    status, code = 403, "forbidden"


class NotFound(AinferaError):
    status, code = 404, "not_found"


class UnknownRail(AinferaError):
    status, code = 404, "unknown_rail"


class IdempotencyConflict(AinferaError):
    status, code = 409, "idempotency_conflict"


class HandleTaken(AinferaError):
    status, code = 409, "handle_taken"


class QuoteUsed(AinferaError):
    status, code = 409, "quote_used"


class QuoteMismatch(AinferaError):
    status, code = 409, "quote_mismatch"


class QuoteExpired(AinferaError):
    status, code = 410, "quote_expired"


class Cancelled(AinferaError):
    """Told to whoever still waits for a call that was cancelled; no status that SDKs retry."""

    status, code = 410, "cancelled"


class LetterNotDead(AinferaError):
    status, code = 409, "letter_not_dead"


class EventsExpired(AinferaError):
    status, code = 410, "events_expired"


class RequestTooLarge(AinferaError):
    status, code = 413, "request_too_large"


class Unroutable(AinferaError):
    status = 422


class ModelUnavailable(Unroutable):
    code = "model_unavailable"


class NoCandidateClearsFloor(Unroutable):
    code = "no_candidate_clears_floor"


class NoCandidateEnrolled(Unroutable):
    code = "no_candidate_enrolled"


class ToolsNotSupported(Unroutable):
    code = "tools_not_supported_by_backend"


class RateLimited(AinferaError):
    status, code, retryable, default_retry_after = 429, "rate_limited", True, 1.0


class InternalError(AinferaError):
    status, code, retryable = 500, "internal_error", True


class ProviderError(AinferaError):
    status, code, retryable = 502, "provider_error", True


class Unavailable(AinferaError):
    status, code, retryable, default_retry_after = 503, "overloaded", True, 1.0


class Overloaded(Unavailable):
    code = "overloaded"


class Draining(Unavailable):
    code = "draining"


class PaymentsDormant(Unavailable):
    code, default_retry_after = "payments_dormant", 3600.0


class KillswitchEngaged(Unavailable):
    code, default_retry_after = "cost_killswitch_engaged", 60.0

    def __init__(
        self,
        message: str = (
            "The cost killswitch is engaged: no new calls are taken until an operator releases it. "
            "Nothing was charged."
        ),
        **detail: Any,
    ) -> None:
        super().__init__(message, **detail)


class DeadlineExceeded(AinferaError):
    status, code, retryable = 504, "deadline_exceeded", True
