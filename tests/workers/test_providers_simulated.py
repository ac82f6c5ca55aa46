"""The simulation: the same answer to the same request, and what it can be asked to do."""

import enum
import random
from datetime import date
from typing import Annotated, Any, Literal, Optional

import orjson
import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel, ConfigDict, TypeAdapter

from shared.config import Settings
from shared.domain.inference import (
    Completed,
    Dialect,
    Failed,
    FinishReason,
    Started,
    StreamEvent,
    ThinkingDelta,
    ToolCallStarted,
)
from tests.standins.calls import (
    SETTINGS,
    a_call,
    a_request,
    a_tool,
    arguments_of,
    events_of,
    text_of,
)
from workers.providers.schema_example import example
from workers.providers.simulated import SimulatedProvider


def simulated(**settings: Any) -> SimulatedProvider:
    return SimulatedProvider(Settings(**{**SETTINGS, **settings}))


async def answer(
    text: str = "Hello", *, seed: str = "1", model: str = "m", settings: Any = None, **body: Any
) -> list[StreamEvent]:
    provider = simulated(**(settings or {}))
    request = a_request(Dialect.NATIVE, text, **body)
    return await events_of(provider, a_call(request, provider, seed=seed, model=model))


def end_of(events: list[StreamEvent]) -> Completed:
    assert isinstance(events[-1], Completed)
    return events[-1]


async def test_the_same_request_is_given_the_same_answer() -> None:
    first = await answer(seed="1")
    assert first == await answer(seed="2", metadata={"other": 1})
    assert first != await answer("Goodbye")
    assert first != await answer(model="n")


async def test_it_says_that_it_is_simulated() -> None:
    events = await answer()
    assert isinstance(events[0], Started)
    assert events[0].upstream_id.startswith("simulated-")
    assert "simulated" in text_of(events)
    assert simulated().simulated
    assert simulated().dialect is None


async def test_it_streams_word_by_word() -> None:
    events = await answer(metadata={"simulate": {"tokens": 30}})
    assert len(events) == 32
    assert end_of(events).usage.output_tokens == 30


@pytest.mark.parametrize("fail", ["nonsense", 1, ["midstream"]])
async def test_a_failure_that_it_does_not_know_is_refused(fail: Any) -> None:
    (refused,) = await answer(metadata={"simulate": {"fail": fail}})
    assert isinstance(refused, Failed)
    assert (refused.failure.code, refused.failure.status) == ("invalid_request", 400)
    assert refused.failure.detail == {"param": "metadata.simulate.fail"}
    assert "before_first_token, midstream, hang" in refused.failure.message


@pytest.mark.parametrize("limit", [1, 7])
async def test_it_keeps_to_max_tokens(limit: int) -> None:
    events = await answer(max_tokens=limit, metadata={"simulate": {"tokens": 30}})
    completed = end_of(events)
    assert len(events) == limit + 2
    assert completed.finish_reason is FinishReason.LENGTH
    assert completed.usage.output_tokens == limit


async def test_it_stops_at_a_stop_sequence() -> None:
    whole = text_of(await answer())
    events = await answer(stop=["no such text", "is sim"])
    completed = end_of(events)
    assert text_of(events) == whole[: whole.index("is sim")]
    assert completed.finish_reason is FinishReason.STOP
    assert completed.stop_sequence == "is sim"


@pytest.mark.parametrize(
    ("choice", "called"),
    [(None, True), ("auto", True), ("none", False), ("required", True)],
)
async def test_it_calls_tools_as_it_may(choice: Any, called: bool) -> None:
    body = {} if choice is None else {"tool_choice": choice}
    events = await answer(tools=[a_tool(Dialect.OPENAI)], **body)
    assert any(isinstance(event, ToolCallStarted) for event in events) is called


async def test_it_calls_the_tool_that_is_named() -> None:
    tools = [
        {"type": "function", "function": {"name": f"tool{n}", "parameters": {}}} for n in range(5)
    ]
    choice = {"type": "function", "function": {"name": "tool3"}}
    events = await answer(tools=tools, tool_choice=choice)
    assert [e.name for e in events if isinstance(e, ToolCallStarted)] == ["tool3"]
    assert orjson.loads(arguments_of(events)) == {} or arguments_of(events)


async def test_it_thinks_where_it_is_asked_to() -> None:
    events = await answer(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    assert any(isinstance(event, ThinkingDelta) for event in events)


async def test_it_fails_on_demand_before_the_first_word() -> None:
    events = await answer(metadata={"simulate": {"fail": "before_first_token"}})
    assert len(events) == 1
    assert isinstance(events[0], Failed)
    assert events[0].failure.code == "provider_error"
    assert events[0].failure.status == 502


async def test_it_fails_on_demand_in_mid_stream_and_says_what_was_used() -> None:
    events = await answer(metadata={"simulate": '{"fail": "midstream", "tokens": 10}'})
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Failed)
    assert len(events) == 7
    assert events[-1].usage is not None
    assert events[-1].usage.output_tokens == 5


async def test_its_failure_rate_is_drawn_from_the_call() -> None:
    settings = {"simulated_failure_rate": 0.5}
    failed = [
        isinstance((await answer(seed=str(n), settings=settings))[-1], Failed) for n in range(60)
    ]
    again = [
        isinstance((await answer(seed=str(n), settings=settings))[-1], Failed) for n in range(60)
    ]
    assert failed == again
    assert 10 < sum(failed) < 50


@pytest.mark.parametrize(
    "simulate", ["no json", [1], {"tokens": -1}, {"latency_ms": "x"}, {"tokens": "9"}]
)
async def test_wishes_that_make_no_sense_are_passed_over(simulate: Any) -> None:
    assert end_of(await answer(metadata={"simulate": simulate})) == end_of(await answer())


async def test_it_has_no_more_time_than_others() -> None:
    events = await answer(
        metadata={"simulate": {"tokens": 1000, "token_ms": 10}}, settings={"call_deadline_s": 0.05}
    )
    assert isinstance(events[-1], Failed)
    assert events[-1].failure.code == "deadline_exceeded"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    when: date
    colour: Colour
    note: Annotated[str, MinLen(12), MaxLen(20)]


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["tree"]
    leaf: Leaf
    leaves: Annotated[list[Leaf], MinLen(2), MaxLen(3)]
    parent: Optional["Tree"] = None
    either: int | str
    ratio: Annotated[float, Gt(0), Lt(1)]
    count: Annotated[int, Ge(7), Le(9)]
    even: Annotated[int, MultipleOf(2), Gt(-9), Le(-3)]
    pair: tuple[int, str]
    flags: dict[str, bool] = {}
    unique: Annotated[set[Literal["a", "b", "c"]], MinLen(2)]
    nothing: None = None


@pytest.mark.parametrize("seed", range(25))
def test_examples_satisfy_their_schema(seed: int) -> None:
    made = example(Tree.model_json_schema(), random.Random(seed))
    Tree.model_validate_json(orjson.dumps(made))


@pytest.mark.parametrize(
    "kind", [int, str, bool, list[int], dict[str, int], float, int | None, list[Colour]]
)
def test_examples_of_plain_types(kind: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    made = example(adapter.json_schema(), random.Random(1))
    adapter.validate_json(orjson.dumps(made), strict=True)


@pytest.mark.parametrize("schema", [{}, None, True, {"$ref": "#"}, {"type": "unheard of"}])
def test_odd_schemas_end(schema: Any) -> None:
    example(schema, random.Random(1))


async def test_a_json_schema_is_kept_to() -> None:
    schema = {"name": "leaf", "schema": Leaf.model_json_schema()}
    wanted = {"type": "json_schema", "json_schema": schema}
    provider = simulated()
    request = a_request(Dialect.OPENAI, response_format=wanted)
    events = await events_of(provider, a_call(request, provider))
    Leaf.model_validate_json(text_of(events))
