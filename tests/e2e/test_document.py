"""The document of the API, put to the test: whatever it allows to be asked, and a good deal that it
does not, is answered as it says, never with a 500, and never with anything of another tenant.

Requests are made by Schemathesis from /openapi.json and sent to a running fleet with one tenant's
key, its ids replaced by real ones now and then: the tenant's own, and another tenant's. The seed
is fixed. A longer run, with seeds of its own:

    DOCUMENT_EXAMPLES=500 python -m pytest tests/e2e/test_document.py
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.stack import Stack

EXAMPLES = int(os.environ.get("DOCUMENT_EXAMPLES", "0"))
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MARK = "quite-another-tenant"
PROMPT = "a prompt that only its own tenant knows"
ID_NAMES = {"agent_id", "inference_id", "receipt_id", "tenant_id"}
# they name owners and agents by handle, and by no id
PUBLIC = {"/v1/audit/public"}


@dataclass(frozen=True, slots=True)
class Tenant:
    auth: dict[str, str]
    ids: dict[str, str]

    @property
    def words(self) -> set[str]:
        return {*self.ids.values(), *self.auth.values(), MARK, PROMPT}


def signed_up(stack: Stack, handle: str) -> Tenant:
    """A tenant that has made a call, and kept it."""
    said = stack.request("POST", "/v1/agents/signup", json={"agent_handle": handle}).json()
    auth = {"x-api-key": said["api_key"]}
    call = {"model": "ainfera-inference", "messages": [{"role": "user", "content": PROMPT}]}
    answer = stack.request(
        "POST", "/v1/inference", json=call, headers={**auth, "idempotency-key": handle}
    )
    assert answer.status_code == 200, answer.text
    names = ("inference_id", "receipt_id")
    ids = {name: said[name] for name in ("tenant_id", "agent_id")}
    return Tenant(auth, ids | {name: answer.json()[name] for name in names})


@pytest.fixture(scope="module")
def ours(simulated_stack: Stack) -> Tenant:
    return signed_up(simulated_stack, "the-asking-tenant")


@pytest.fixture(scope="module")
def theirs(simulated_stack: Stack) -> Tenant:
    return signed_up(simulated_stack, MARK)


@pytest.fixture(scope="module")
def connection() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def with_real_ids(case: schemathesis.Case[Any], source: Tenant) -> None:
    """Put a tenant's ids where the request has a place for them."""
    for place in (case.path_parameters, case.query, case.body):
        if isinstance(place, dict):
            for name in ID_NAMES & place.keys():
                place[name] = source.ids[name]


def leaked(case: schemathesis.Case[Any], text: str, theirs: Tenant) -> set[str]:
    """What an answer tells of another tenant beyond what was asked."""
    asked = f"{case.path_parameters} {case.query} {case.body!r} {case.headers}"
    known = {MARK} if case.path in PUBLIC else set()
    return {word for word in theirs.words - known if word in text and word not in asked}


class Findings:
    """What was wrong, each kind once for each operation, with the request that shows it."""

    def __init__(self) -> None:
        self.asked = 0
        self.wrong: dict[tuple[str, ...], str] = {}

    def look(self, label: str, case: schemathesis.Case[Any], response: Any, theirs: Tenant) -> None:
        self.asked += 1
        request = f"{case.as_curl_command()} -> {response.status_code} {response.text[:300]}"
        streamed = "text/event-stream" in str(response.headers.get("content-type"))
        # a stream has a description, and no schema of its events
        excluded = [response_schema_conformance] if streamed else []
        try:
            case.validate_response(response, checks=CHECKS, excluded_checks=excluded)
        except BaseExceptionGroup as found:
            for failure in found.exceptions:
                kind = (label, type(failure).__name__, str(response.status_code))
                self.wrong.setdefault(kind, f"{failure} {request}")
        if words := leaked(case, response.text, theirs):
            self.wrong.setdefault((label, "leak", *sorted(words)), request)


def put_to_the_test(
    operation: Any,
    stack: Stack,
    session: requests.Session,
    both: tuple[Tenant, Tenant],
    f: Findings,
) -> None:
    ours, theirs = both
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @hypothesis.given(case=st.one_of(modes), ids=st.sampled_from([None, ours, theirs, theirs]))
    @hypothesis.settings(
        max_examples=EXAMPLES or 8,
        derandomize=not EXAMPLES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case[Any], ids: Tenant | None) -> None:
        if ids is not None:
            with_real_ids(case, ids)
        response = case.call(
            base_url=stack.url, session=session, headers=dict(ours.auth), timeout=20
        )
        f.look(operation.label, case, response, theirs)

    ask()


def test_what_the_document_allows_is_answered_as_it_says(
    simulated_stack: Stack, connection: requests.Session, ours: Tenant, theirs: Tenant
) -> None:
    findings, operations = Findings(), 0
    schema = schemathesis.openapi.from_url(f"{simulated_stack.url}/openapi.json")
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        put_to_the_test(found.ok(), simulated_stack, connection, (ours, theirs), findings)
        operations += 1
    if findings.wrong:
        pytest.fail("\n".join(f"{kind}: {told}" for kind, told in findings.wrong.items()), False)
    assert operations > 30
    assert findings.asked > 5 * operations
