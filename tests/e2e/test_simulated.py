"""The stack as it comes, without any provider: answers are simulated, and say so everywhere."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ainfera
import anthropic
import openai
import pytest

from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, call, models_told
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import WEATHER, asking
from tests.e2e.test_openai_sdk import WEATHER as OPENAI_WEATHER
from tests.e2e.witness import Witness

HELLO = asking("Say hello.")
EACH_MODEL = pytest.mark.parametrize(
    "model", ["ainfera-inference", "claude-opus-4-7", "gpt-5.5", "gemini-3-1-pro", "grok-4"]
)


@pytest.fixture(scope="module")
def visitor(simulated_stack: Stack) -> ainfera.SignupResult:
    with ainfera.AinferaClient(api_key="", base_url=simulated_stack.url) as client:
        return client.agents.signup(agent_handle="visitor")


@pytest.fixture(scope="module")
def claude(simulated_stack: Stack, visitor: ainfera.SignupResult) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key=visitor.api_key, base_url=simulated_stack.url, max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(simulated_stack: Stack, visitor: ainfera.SignupResult) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key=visitor.api_key, base_url=f"{simulated_stack.url}/v1", max_retries=0
    ) as client:
        yield client


@EVERY_DIALECT
@STREAMED_OR_NOT
@EACH_MODEL
def test_every_catalogued_model_answers(
    simulated_stack: Stack,
    visitor: ainfera.SignupResult,
    simulated_witness: Witness,
    dialect: str,
    stream: bool,
    model: str,
) -> None:
    answer = call(
        simulated_stack, visitor.api_key, dialect, "Say hello.", model=model, stream=stream
    )
    assert answer.status == 200
    assert answer.text
    assert answer.headers["x-ainfera-simulated"] == "true"
    assert '"simulated":true' in answer.content.decode().replace(" ", "")
    (receipt,) = simulated_witness.receipts(answer.inference_id)
    assert receipt["simulated"] is True
    vendor_ids = {row["id"] for row in simulated_stack.request("GET", "/v1/models").json()}
    assert models_told(answer) == {receipt["model_used"]} <= vendor_ids
    assert answer.headers["x-ainfera-model"] == receipt["model_used"]
    assert receipt["cost_usd"] > 0


@EVERY_DIALECT
def test_the_same_prompt_is_given_the_same_words(
    simulated_stack: Stack, visitor: ainfera.SignupResult, dialect: str
) -> None:
    texts = {
        call(simulated_stack, visitor.api_key, dialect, "Again.", stream=stream).text
        for stream in (True, False, True)
    }
    assert len(texts) == 1
    other = call(simulated_stack, visitor.api_key, dialect, "Something else.")
    assert other.text not in texts


def test_the_logs_say_so(simulated_stack: Stack, visitor: ainfera.SignupResult) -> None:
    call(simulated_stack, visitor.api_key, "native", "Hi.")
    assert "simulated" in (simulated_stack.logs / "inference.log").read_text()


def test_tools_are_called_where_they_are_offered(
    claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    with claude.messages.stream(
        model="ainfera-inference", max_tokens=200, messages=HELLO, tools=[WEATHER]
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    (call_,) = [block for block in message.content if block.type == "tool_use"]
    assert call_.name == "get_weather"
    assert isinstance(call_.input, dict)
    assert set(call_.input) == {"city"}

    completion: Any = gpt.chat.completions.create(
        model="ainfera-inference", messages=HELLO, tools=[OPENAI_WEATHER]
    )
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "get_weather"


def test_a_stream_comes_in_many_pieces(gpt: openai.OpenAI) -> None:
    chunks = list(gpt.chat.completions.create(model="gpt-5.5", messages=HELLO, stream=True))
    assert len([c for chunk in chunks for c in chunk.choices if c.delta.content]) > 1


def test_failures_on_demand(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    wish: Any = {"metadata": {"simulate": {"fail": "before_first_token"}}}
    with pytest.raises(openai.InternalServerError) as refused:
        gpt.chat.completions.create(model="gpt-5.5", messages=HELLO, extra_body=wish)
    assert refused.value.status_code == 502
    wish = {"metadata": {"simulate": {"fail": "midstream"}}}
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(
            model="claude-opus-4-7", max_tokens=99, messages=HELLO, extra_body=wish
        ) as stream,
    ):
        list(stream.text_stream)


def test_the_books_balance_and_the_chain_holds(
    simulated_stack: Stack, visitor: ainfera.SignupResult, simulated_witness: Witness
) -> None:
    with ainfera.AinferaClient(visitor.api_key, base_url=simulated_stack.url) as client:
        agent = client.agents.retrieve(visitor.agent_id)
        before = agent.wallet.balance_usd
        answer = agent.inference(model="ainfera-inference", messages=HELLO)
        assert agent.refresh().wallet.balance_usd == before - answer.cost_usd
        assert answer.cost_usd > Decimal(0)
        assert agent.audit_chain.verify()
        assert agent.audit_chain.verify_remote().valid
    assert simulated_witness.ledger_sum() == 0
    assert simulated_witness.unbalanced_wallets() == []
