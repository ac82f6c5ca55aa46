"""Requests to a bucket, signed for it: AWS Signature Version 4, which S3 and its kin ask for.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; only as much as small
objects need: the body is in one piece, and what is signed are the host, its hash and the time.
"""

import hashlib
import hmac
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from urllib.parse import quote, unquote

import httpx

ALGORITHM = "AWS4-HMAC-SHA256"
SIGNED = ("host", "range", "x-amz-content-sha256", "x-amz-date")


def utc_now() -> datetime:
    return datetime.now(UTC)


class SignedForBucket(httpx.Auth):
    """Signs each request with an access key of `region`."""

    requires_request_body = True

    def __init__(
        self, key_id: str, secret: str, region: str, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._key_id, self._secret, self._region = key_id, secret, region
        self._now = now

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        moment = self._now().strftime("%Y%m%dT%H%M%SZ")
        request.headers["x-amz-date"] = moment
        request.headers["x-amz-content-sha256"] = hashlib.sha256(request.content).hexdigest()
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        asked, names = _canonical(request)
        told = "\n".join([ALGORITHM, moment, scope, hashlib.sha256(asked).hexdigest()])
        signature = hmac.new(self._key(moment[:8]), told.encode(), hashlib.sha256).hexdigest()
        request.headers["authorization"] = (
            f"{ALGORITHM} Credential={self._key_id}/{scope},SignedHeaders={names},"
            f"Signature={signature}"
        )
        yield request

    def _key(self, day: str) -> bytes:
        key = f"AWS4{self._secret}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key


def _canonical(request: httpx.Request) -> tuple[bytes, str]:
    """The request as it is signed, and the names of its signed headers."""
    headers = {name: request.headers[name].strip() for name in SIGNED if name in request.headers}
    names = ";".join(headers)
    query = "&".join(
        sorted(f"{_quoted(name)}={_quoted(value)}" for name, value in request.url.params.items())
    )
    asked = [
        request.method,
        quote(unquote(request.url.path), safe="/-_.~"),
        query,
        *[f"{name}:{value}" for name, value in headers.items()],
        "",
        names,
        headers["x-amz-content-sha256"],
    ]
    return "\n".join(asked).encode(), names


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
