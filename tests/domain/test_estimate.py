"""The count of input tokens that needs no tokenizer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.estimate import (
    DOCUMENT_TOKENS,
    IMAGE_TOKENS,
    PER_MESSAGE,
    PER_REQUEST,
    PER_TOOL,
    estimate_input_tokens,
)
from shared.domain.inference import Dialect, InferenceRequest, Message, Tool
from tests.domain.routing_cases import steady

FRAME = PER_REQUEST + PER_MESSAGE


def request(*blocks: dict[str, Any], **other: Any) -> InferenceRequest:
    return InferenceRequest(Dialect.NATIVE, "m", (Message("user", blocks),), **other)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("", 0),
        ("a", 1),
        ("abcd", 1),
        ("abcde", 2),
        ("word " * 100, 125),
        ("12", 1),
        ("1234", 2),
        ("é", 1),
        ("éé", 2),
        ("天", 2),
        ("天气很好", 6),
        ("😀", 2),
        ("ab天", 2),
        ("\ud800", 2),
    ],
)
def test_text(words: str, tokens: int) -> None:
    assert estimate_input_tokens(request(text(words))) == FRAME + tokens


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        ({"type": "image", "source": {"type": "base64", "data": "A" * 999}}, IMAGE_TOKENS),
        ({"type": "image", "source": {"type": "url", "url": "x"}}, IMAGE_TOKENS),
        ({"type": "thinking", "thinking": "abcdefgh", "signature": "zzzz"}, 2),
        ({"type": "tool_use", "id": "i", "name": "find", "input": {}}, PER_TOOL + 2),
        ({"type": "tool_result", "tool_use_id": "i", "content": "abcd"}, PER_TOOL + 1),
        ({"type": "tool_result", "tool_use_id": "i", "content": [text("abcd")]}, PER_TOOL + 1),
        ({"type": "tool_result", "tool_use_id": "i"}, PER_TOOL),
        ({"type": "document", "source": {"type": "text", "data": "abcd"}}, 1),
        ({"type": "document", "source": {"type": "base64", "data": "A"}}, DOCUMENT_TOKENS),
        ({"type": "document", "source": {"type": "base64", "data": "A" * 400_000}}, 10_000),
        ({"type": "document", "source": {"type": "url", "url": "x"}}, DOCUMENT_TOKENS),
        ({"type": "document", "source": {"type": "content", "content": [text("abcd")]}}, 1),
        ({"type": "document"}, DOCUMENT_TOKENS),
        ({"type": "novel", "of": "shape"}, 8),
    ],
)
def test_blocks(block: dict[str, Any], tokens: int) -> None:
    assert estimate_input_tokens(request(block)) == FRAME + tokens


def test_an_image_inside_a_tool_result_counts() -> None:
    shown = {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "image"}]}
    assert estimate_input_tokens(request(shown)) == FRAME + PER_TOOL + IMAGE_TOKENS


def test_system_tools_and_schema_count() -> None:
    bare = estimate_input_tokens(request(text("hi")))
    system = estimate_input_tokens(request(text("hi"), system=(text("abcd"),)))
    assert system == bare + 1
    tool = Tool("look", "abcd", {})
    assert estimate_input_tokens(request(text("hi"), tools=(tool,))) == bare + PER_TOOL + 3
    wanted = {"type": "json_object"}
    assert estimate_input_tokens(request(text("hi"), response_format=wanted)) == bare + 6


@steady
@given(st.text(), st.text())
def test_more_text_never_counts_less(one: str, other: str) -> None:
    longer = estimate_input_tokens(request(text(one + other)))
    assert longer >= estimate_input_tokens(request(text(one)))
    apart = estimate_input_tokens(request(text(one), text(other)))
    assert longer <= apart


@steady
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_shape_of_content_is_counted(value: Any) -> None:
    for kind in ("text", "tool_use", "tool_result", "thinking", "document", "other"):
        names = ("text", "input", "content", "thinking", "source", "data")
        block = {"type": kind, **dict.fromkeys(names, value)}
        assert estimate_input_tokens(request(block)) >= FRAME
