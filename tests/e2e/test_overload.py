"""An ingress whose queue is away: the call is refused before anything is charged, and says when
to come again. Anthropic clients know that by 529."""

from collections.abc import Iterator
from dataclasses import dataclass

import ainfera
import anthropic
import openai
import pytest

from shared.embedded import Servers, embedded_servers
from tests.e2e.calls import call
from tests.e2e.stack import Stack, running_stack
from tests.e2e.test_anthropic_sdk import asking

HELLO = asking("Say hello.")


@dataclass
class Orphan:
    """An ingress of its own on a Valkey of its own, which then went away."""

    stack: Stack
    agent: ainfera.SignupResult


@pytest.fixture(scope="module")
def orphan(
    stack: Stack, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orphan]:
    home = tmp_path_factory.mktemp("orphan")
    database_url = stack.superuser_url.replace("//postgres@", "//ainfera_app@")
    with (
        embedded_servers(home / "valkey", postgres=False, durable=False) as own,
        running_stack(home, database_url, stack.superuser_url, own.redis_url, {}, ("web",)) as web,
        ainfera.AinferaClient(api_key="", base_url=web.url) as stranger,
    ):
        agent = stranger.agents.signup(agent_handle="orphan")
        # the key is known by now, as it is on any ingress that has served for a while
        web.request(
            "GET",
            f"/v1/wallets/{agent.agent_id}",
            headers={"authorization": f"Bearer {agent.api_key}"},
        ).raise_for_status()
        own.running["valkey"].stop()
        yield Orphan(web, agent)


@pytest.mark.parametrize("stream", [True, False])
def test_the_anthropic_sdk_sees_an_overloaded_service(orphan: Orphan, stream: bool) -> None:
    with (
        anthropic.Anthropic(
            api_key=orphan.agent.api_key, base_url=orphan.stack.url, max_retries=0
        ) as client,
        pytest.raises(anthropic.APIStatusError) as refused,
    ):
        client.messages.create(
            model="claude-haiku-4-5", max_tokens=9, messages=HELLO, stream=stream
        )
    assert refused.value.status_code == 529
    assert refused.value.type == "overloaded_error"
    assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
def test_the_openai_sdk_sees_a_503(orphan: Orphan, stream: bool) -> None:
    with (
        openai.OpenAI(
            api_key=orphan.agent.api_key, base_url=f"{orphan.stack.url}/v1", max_retries=0
        ) as client,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        client.chat.completions.create(model="gpt-5-mini", messages=HELLO, stream=stream)
    assert refused.value.status_code == 503
    assert refused.value.code == "overloaded"
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_sdks_try_again_by_themselves(orphan: Orphan) -> None:
    """What we answer makes the SDK's own retries start: no `x-should-retry: false`."""
    answer = call(orphan.stack, orphan.agent.api_key, "native", "Hi.")
    assert (answer.status, answer.error_code) == (503, "overloaded")
    assert answer.headers.get("x-should-retry") != "false"


def test_ready_names_what_is_missing_and_health_stays_well(orphan: Orphan) -> None:
    ready = orphan.stack.request("GET", "/ready")
    assert ready.status_code == 503
    assert ready.json()["failing"] == "valkey"
    assert orphan.stack.request("GET", "/health").json() == {"status": "ok"}


def test_nothing_was_charged(orphan: Orphan) -> None:
    with ainfera.AinferaClient(orphan.agent.api_key, base_url=orphan.stack.url) as client:
        assert client.agents.retrieve(orphan.agent.agent_id).wallet.balance_usd == 5
