"""Frames are the same however the bytes of a stream arrive."""

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.dialects import WIRES
from shared.domain.inference import Completed, Dialect, Failed, Forwarded, StreamEvent
from shared.stream import decode_frames
from tests.standins.calls import canonical
from workers.providers import anthropic, framing, openai
from workers.providers.faults import provider_error
from workers.providers.framing import Framer, FrameTooLong
from workers.providers.reading import Forms, Forwarding, Reading, Translating

RECORDED = Path(__file__).parent.parent / "recorded"
SAMPLES = sorted(str(path.relative_to(RECORDED)) for path in RECORDED.rglob("*.sse"))
FORMS: dict[Dialect, Forms] = {Dialect.ANTHROPIC: anthropic.FORMS, Dialect.OPENAI: openai.FORMS}

CONTENT = st.text(alphabet="ab \u2028\u2029\x85é😀:", min_size=1, max_size=12)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def framed(chunks: list[bytes]) -> list[bytes]:
    framer = Framer()
    return [frame for chunk in chunks for frame in framer.feed(chunk)]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(
    st.lists(st.lists(CONTENT, min_size=1, max_size=3), min_size=1, max_size=5),
    ENDS,
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_frames_do_not_depend_on_how_they_are_cut(
    frames: list[list[str]], end: str, cuts: list[int]
) -> None:
    data = "".join(end.join(lines) + end + end for lines in frames).encode()
    expected = ["\n".join(lines).encode() for lines in frames]
    assert framed(split(data, cuts)) == expected
    assert framed([bytes([byte]) for byte in data]) == expected


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_recorded_stream_cut_in_two_at_every_place(sample: str, end: bytes) -> None:
    data = (RECORDED / sample).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end)
    whole = framed([data])
    assert len(whole) > 1
    step = 1 if len(data) < 20_000 else 7
    for place in range(0, len(data), step):
        assert framed([data[:place], data[place:]]) == whole


def test_a_frame_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 100)
    framer = Framer()
    framer.feed(b"x" * 60)
    with pytest.raises(FrameTooLong):
        framer.feed(b"x" * 60)


def read(reading: Reading, chunks: list[bytes]) -> list[StreamEvent]:
    """The events as the provider would yield them."""
    framer = Framer()
    events: list[StreamEvent] = []
    for chunk in chunks:
        if not reading.over:
            events.extend(reading.take(framer.feed(chunk)))
    if not reading.over:
        events.extend(reading.close(framer.rest()))
    return events


def readings(dialect: Dialect) -> tuple[Forwarding, Translating]:
    wire = WIRES[dialect]
    return (
        Forwarding(wire, dialect, (), FORMS[dialect], include_usage=True),
        Translating(wire, dialect, ()),
    )


def joined(events: list[StreamEvent]) -> list[StreamEvent]:
    """Events that do not depend on how many deltas travelled together."""
    return [event for event in events if isinstance(event, Completed | Failed)]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("size", [1, 7, 61, 1 << 20])
def test_recorded_streams_forwarded_and_translated(sample: str, size: int) -> None:
    dialect = Dialect(sample.split("/")[0])
    data = (RECORDED / sample).read_bytes()
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    forwarding, translating = readings(dialect)
    forwarded, translated = read(forwarding, chunks), read(translating, chunks)
    told = bytearray()
    for event in forwarded:
        if isinstance(event, Forwarded):
            told += event.frames
        elif isinstance(event, Completed):
            told += event.tail
    ends, translated_ends = joined(forwarded), joined(translated)
    assert len(ends) == len(translated_ends) == 1
    if isinstance(ends[0], Completed) and isinstance(translated_ends[0], Completed):
        sent = list(decode_frames(data))
        last = ("message_stop", {"type": "message_stop"})
        if last in sent:  # what comes after the end is for nobody
            sent = sent[: sent.index(last) + 1]
        assert list(decode_frames(bytes(told))) == sent
        assert ends[0].usage == translated_ends[0].usage
        assert ends[0].finish_reason == translated_ends[0].finish_reason
        assert text(canonical(forwarded, dialect)) == text(translated)
    else:
        assert type(ends[0]) is type(translated_ends[0])


def text(events: list[StreamEvent]) -> str:
    return "".join(getattr(event, "text", "") for event in events)


@pytest.mark.parametrize("data", [b'data: {"a"', b"data: [1]", b'data: "x"', b"data: 1"])
@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC, Dialect.OPENAI])
def test_data_that_is_no_object_is_malformed(data: bytes, dialect: Dialect) -> None:
    for reading in readings(dialect):
        (event,) = reading.take([data])
        assert isinstance(event, Failed)
        assert event.failure.code == "provider_error"
        assert reading.over


@pytest.mark.parametrize(
    ("dialect", "sample"),
    [(Dialect.ANTHROPIC, "anthropic/basic.sse"), (Dialect.OPENAI, "openai/text.sse")],
)
def test_the_models_words_are_not_parsed(dialect: Dialect, sample: str) -> None:
    """Forwarding parses the first frame and those from the finish reason on, no other."""
    frames = framed([(RECORDED / sample).read_bytes() + b"\n\n"])
    forms = FORMS[dialect]
    speaking = [frame for frame in frames if b'delta":{' in frame and b'"usage":{' not in frame]
    parsed = [frame for frame in frames if not forms.is_plain(frame)]
    assert len(speaking) > 2
    assert len(parsed) <= 3
    assert all(forms.size(frame) > 0 for frame in frames if b'"text":"H' in frame)


def chunk(**of_choice: object) -> bytes:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None} | of_choice
    return b"data: " + orjson.dumps({"id": "c", "choices": [choice]})


@pytest.mark.parametrize(
    ("frame", "plain"),
    [
        (chunk(), True),
        (chunk(delta={"content": 'of "error" and "finish_reason":null'}), True),
        (chunk(delta={"content": '"usage":{"tool_calls":["refusal":"'}), True),
        (chunk(finish_reason="stop"), False),
        (chunk(delta={"tool_calls": [{"index": 0}]}), False),
        (chunk(delta={"refusal": "no"}), False),
        (chunk()[:-1] + b',"usage":{"total_tokens":1}}', False),
        (chunk()[:-1] + b',"error":{"message":"m"}}', False),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}', False),
        (b"data: [DONE]", False),
        (b": keep-alive", False),
    ],
)
def test_a_chunk_is_plain_only_where_its_bytes_prove_it(frame: bytes, plain: bool) -> None:
    assert openai.FORMS.is_plain(frame) is plain


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC, Dialect.OPENAI])
def test_an_error_in_the_read_of_the_first_word_leaves_the_client_untold(dialect: Dialect) -> None:
    sample = "anthropic/basic.sse" if dialect is Dialect.ANTHROPIC else "openai/text.sse"
    frames = framed([(RECORDED / sample).read_bytes()])[:5]
    error = b'data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    forwarding, _ = readings(dialect)
    (event,) = forwarding.take([*frames, error])
    assert isinstance(event, Failed)
    assert event.usage is None


def test_a_stream_that_ends_without_done_is_given_its_end() -> None:
    forwarding, _ = readings(Dialect.OPENAI)
    list(forwarding.take([chunk(), chunk(), chunk(finish_reason="stop")]))
    (event,) = forwarding.close()
    assert isinstance(event, Completed)
    assert event.tail.endswith(b"\n\ndata: [DONE]\n\n")
    assert event.usage.estimated


def test_a_break_after_the_usage_is_an_end() -> None:
    forwarding, _ = readings(Dialect.OPENAI)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1}}'
    list(forwarding.take([chunk(), chunk(), chunk(finish_reason="stop"), usage]))
    (event,) = forwarding.broke(provider_error("openai", "broke"))
    assert isinstance(event, Completed)
    assert (event.usage.input_tokens, event.usage.output_tokens) == (2, 1)
