"""What a provider's fault means to the client: which code, which status, whose words.

A refusal that is the client's own doing keeps the vendor's wording, because clients' recovery
matches it ("prompt is too long: 210000 tokens > 200000 maximum"). A refusal of the gateway's
own key does not: vendors repeat parts of the key in it.
"""

import logging
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from shared.domain.inference import Failure
from workers.providers.watch import OutOfTime, Silent

log = logging.getLogger(__name__)

# Statuses after which the same provider may well answer; 5xx are added by `_again`.
RETRYABLE = frozenset({408, 409, 429})
OF_THE_CLIENT = {400: ("invalid_request", 400), 422: ("invalid_request", 400)}
# Vendors answer these with 400, though it is the gateway's account that is at fault.
OF_THE_ACCOUNT = re.compile(r"api[ _-]?key|credit balance|billing", re.IGNORECASE)


class ProviderFault(Exception):
    """A call that broke; `again` says that the same provider may be asked once more."""

    def __init__(self, failure: Failure, *, again: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.again = again


def provider_error(
    provider: str, message: str, upstream_status: int | None = None, **more: Any
) -> Failure:
    """A fault of the provider's, so that another may be asked."""
    return Failure(
        code="provider_error",
        status=502,
        message=message,
        detail={"provider": provider, "upstream_status": upstream_status},
        retryable=True,
        **more,
    )


def unreachable(provider: str, error: BaseException) -> ProviderFault:
    """The connection could not be made, broke, or took too long."""
    if isinstance(error, OutOfTime):
        return ProviderFault(
            Failure(
                code="deadline_exceeded",
                status=504,
                message=f"{provider} did not finish the answer in time.",
                detail={"provider": provider, "upstream_status": None},
                retryable=True,
            )
        )
    if isinstance(error, Silent):
        return ProviderFault(provider_error(provider, f"{provider} fell silent."), again=True)
    log.warning("provider_unreachable", extra={"provider": provider, "error": repr(error)})
    message = f"The connection to {provider} could not be made or broke."
    return ProviderFault(provider_error(provider, message), again=True)


def refused(provider: str, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
    """An answer with another status than 200."""
    message = upstream_message(body) or f"{provider} answered with status {status}."
    if status == 413:
        return ProviderFault(_of_the_client("request_too_large", 413, provider, status, message))
    if _blames_the_account(status, message):
        # not the vendor's words: a 400 may quote the prompt
        log.error("provider_account", extra={"provider": provider, "status": status})
        message = f"{provider} does not accept the gateway's own credentials or account."
        return ProviderFault(provider_error(provider, message, status))
    if status in OF_THE_CLIENT:
        code, ours = OF_THE_CLIENT[status]
        return ProviderFault(_of_the_client(code, ours, provider, status, message))
    failure = provider_error(provider, message, status, retry_after=retry_after(headers))
    return ProviderFault(failure, again=_again(status, headers))


def no_stream(provider: str, body: bytes) -> ProviderFault:
    """A 200 that is no event stream: an error in disguise, or something between us and them."""
    message = upstream_message(body) or f"{provider} answered with something that is no stream."
    return ProviderFault(provider_error(provider, message, 200))


def upstream_message(body: bytes) -> str:
    """The vendor's own words in an error body of any of the families, "" if there are none."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    if isinstance(told, list) and told:
        told = told[0]  # Google's
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after`; a date counts from the answer's."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return float(value) * unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, (until - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (TypeError, ValueError):
        return None


def _of_the_client(code: str, ours: int, provider: str, status: int, message: str) -> Failure:
    return Failure(code, ours, message, {"provider": provider, "upstream_status": status})


def _blames_the_account(status: int, message: str) -> bool:
    return status in (401, 402) or (status == 400 and bool(OF_THE_ACCOUNT.search(message)))


def _again(status: int, headers: Mapping[str, str]) -> bool:
    """Vendors may overrule the status by a header that their own clients obey."""
    said = headers.get("x-should-retry")
    if said in ("true", "false"):
        return said == "true"
    return status in RETRYABLE or status >= 500
