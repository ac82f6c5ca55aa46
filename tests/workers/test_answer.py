"""What a client is told, record by record, in every dialect."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from shared.domain.dialects import DIALECTS
from shared.domain.inference import (
    CallInfo,
    Completed,
    Dialect,
    FinishReason,
    Forwarded,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from shared.errors import ProviderError
from shared.ids import mint_id
from shared.publisher import Line, Publisher
from shared.queue import Envelope
from shared.stream import Record, RecordKind, decode_frames, unpack_failure
from workers.answer import Answer

BODIES: dict[Dialect, dict[str, Any]] = {
    Dialect.NATIVE: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Dialect.OPENAI: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    Dialect.ANTHROPIC: {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
    },
}
DONE = Completed(FinishReason.STOP, "stop", Usage(5, 2), cost_usd=Decimal("0.000001234"))


class Told(Publisher):
    """A publisher that keeps what it was given instead of sending it."""

    def __init__(self) -> None:
        super().__init__(Redis(), 0)
        self.records: list[Record] = []
        self.urgent: list[bool] = []

    def publish(self, line: Line, records: Sequence[Record], *, urgent: bool) -> None:
        assert line.channel == "reply"
        self.records.extend(records)
        self.urgent.append(urgent)

    @property
    def kinds(self) -> list[RecordKind]:
        return [record.kind for record in self.records]


def begun(dialect: Dialect, *, stream: bool) -> tuple[Answer, Told]:
    told = Told()
    request = DIALECTS[dialect].parse_request({**BODIES[dialect], "stream": stream})
    caller = {"tenant_id": "t", "agent_id": "a"}
    envelope = Envelope(mint_id(), mint_id(), dialect, "reply", caller, 1.0, "trace", b"")
    answer = Answer(told, envelope, request, attempt=1)
    answer.begin(CallInfo("i", "r", "a", "url", "model-x", "prov", 1))
    return answer, told


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_of_a_replay_with_a_hole_only_what_comes_before_it_is_kept(lost: int) -> None:
    """Words without those before them are no answer: who asks later hears none of them."""
    request = DIALECTS[Dialect.NATIVE].parse_request({**BODIES[Dialect.NATIVE], "stream": True})
    caller = {"tenant_id": "t", "agent_id": "a"}
    envelope = Envelope(
        mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", b"", kept=True
    )
    kinds = (RecordKind.OPEN, *[RecordKind.DATA] * 4)
    spoken = [Record(b"i" * 16, 1, kind, seq, b"") for seq, kind in enumerate(kinds)]
    answer = Answer(Told(), envelope, request, attempt=2)
    answer.come_after([*spoken[:lost], *spoken[lost + 1 :]])
    kept = [record.kind for record in answer.whole(ProviderError("lost").failure()).told()]
    heard = kinds[:lost] if RecordKind.DATA in kinds[:lost] else ()
    assert kept == [*heard, RecordKind.FAIL]


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_streamed_answer_opens_with_its_first_word(dialect: Dialect) -> None:
    answer, told = begun(dialect, stream=True)
    answer.tell(Started("up-1"))
    assert told.records == []
    answer.tell(TextDelta("Hel"))
    assert set(told.kinds[1:]) == {RecordKind.DATA}
    assert orjson.loads(told.records[0].body)["model"] == "model-x"
    assert told.kinds[0] is RecordKind.OPEN
    answer.tell(TextDelta("lo"))
    answer.finish(DONE)
    assert told.kinds[-2:] == [RecordKind.DATA, RecordKind.DONE]
    assert [record.seq for record in told.records] == list(range(len(told.records)))
    assert told.urgent == [True, False, True]
    words = b"".join(record.body for record in told.records)
    assert words.index(b"Hel") < words.index(b'"lo"')


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_folded_answer_is_one_body_with_words_tools_and_cost(dialect: Dialect) -> None:
    answer, told = begun(dialect, stream=False)
    for event in (
        Started("up-1"),
        TextDelta("Hello"),
        ToolCallStarted(0, "call_1", "look"),
        ToolCallDelta(0, '{"at":'),
        ToolCallDelta(0, '"you"}'),
    ):
        answer.tell(event)
    assert told.records == []
    answer.finish(DONE)
    assert told.kinds == [RecordKind.OPEN, RecordKind.DONE]
    body = told.records[1].body
    assert b"Hello" in body
    assert b"look" in body
    parsed = orjson.loads(body)
    told_by = parsed if dialect is Dialect.NATIVE else parsed["ainfera"]
    assert told_by["inference_id"] == "i"
    if dialect is Dialect.NATIVE:
        assert parsed["cost_usd"] == "0.000001234"


def test_what_a_first_provider_began_is_forgotten_by_the_next() -> None:
    answer, told = begun(Dialect.ANTHROPIC, stream=True)
    answer.tell(Started("first"))
    answer.begin(CallInfo("i", "r", "a", "url", "model-y", "other", 1))
    answer.tell(Started("second"))
    answer.tell(TextDelta("x"))
    frames = list(decode_frames(b"".join(record.body for record in told.records[1:])))
    assert [name for name, _ in frames].count("message_start") == 1
    assert frames[0][1]["message"]["model"] == "model-y"


def test_a_tail_is_told_only_at_the_end() -> None:
    answer, told = begun(Dialect.OPENAI, stream=True)
    answer.tell(Started("up"))
    answer.tell(Forwarded(b'data: {"a":1}\n\n', 1))
    answer.finish(Completed(FinishReason.STOP, "stop", Usage(), tail=b"data: [DONE]\n\n"))
    assert told.records[1].body.endswith(b'data: {"a":1}\n\n')
    assert told.records[2].body == b"data: [DONE]\n\n"


def test_a_failure_before_the_first_word_is_the_only_record() -> None:
    answer, told = begun(Dialect.OPENAI, stream=True)
    answer.tell(Started("up"))
    answer.fail(ProviderError("broken", upstream_status=500).failure())
    assert told.kinds == [RecordKind.FAIL]
    failure = unpack_failure(told.records[0].body)
    assert (failure.status, failure.detail["upstream_status"]) == (502, 500)
