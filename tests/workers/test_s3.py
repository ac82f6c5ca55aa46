"""Signatures for buckets, held against the examples that AWS has published."""

import re
from datetime import UTC, datetime

import httpx

from workers.s3 import SignedForBucket

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
BUCKET = "https://examplebucket.s3.amazonaws.com"


def signed(request: httpx.Request) -> httpx.Request:
    auth = SignedForBucket(KEY_ID, SECRET, "us-east-1", lambda: datetime(2013, 5, 24, tzinfo=UTC))
    return next(auth.auth_flow(request))


def signature(request: httpx.Request) -> str:
    found = re.search(r"Signature=(\w+)$", signed(request).headers["authorization"])
    assert found is not None
    return found[1]


def test_the_published_examples() -> None:
    """GET Object, GET Bucket Lifecycle and GET Bucket of the page on signing in a header."""
    get = httpx.Request("GET", f"{BUCKET}/test.txt", headers={"range": "bytes=0-9"})
    assert signature(get) == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    lifecycle = httpx.Request("GET", f"{BUCKET}/?lifecycle")
    assert signature(lifecycle) == (
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    )
    listed = httpx.Request("GET", f"{BUCKET}/?max-keys=2&prefix=J")
    assert signature(listed) == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"


def test_the_body_is_signed_and_the_secret_is_nowhere() -> None:
    one, other = (
        signed(httpx.Request("PUT", f"{BUCKET}/audit/a b", content=body)) for body in (b"x", b"y")
    )
    assert one.headers["authorization"] != other.headers["authorization"]
    assert one.headers["x-amz-content-sha256"] != other.headers["x-amz-content-sha256"]
    assert SECRET not in str(one.headers.raw)
