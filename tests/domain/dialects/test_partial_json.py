"""Cut-off JSON is read as the Anthropic SDK reads it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from shared.domain.dialects.partial_json import parse_partial

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@given(
    _values | st.text(alphabet='"\\{}[]:, a', max_size=12),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.data(),
)
def test_any_prefix_is_read_as_the_vendor_reads_it(
    value: Any, ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    prefix = text[: data.draw(st.integers(1, len(text)))]
    assert _outcome(parse_partial, prefix) == _outcome(_vendor, prefix)


def _vendor(text: str) -> Any:
    return from_json(text.encode(), partial_mode=True)


def _outcome(read: Any, text: str) -> Any:
    try:
        return ("value", read(text))
    except ValueError:
        return "refused"


@pytest.mark.parametrize(
    "text", ['{"a": celsius}', '{"a": celsius', '{"a" 1', '{"a":1,,', "}", "nul!", '{"a": tru}']
)
def test_what_is_no_prefix_of_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_partial(text)


def test_what_is_complete_is_kept() -> None:
    cut = '{"file": "taxes.txt", "lines": ["# GUIDE", "", "Filing tax'
    assert parse_partial(cut) == {"file": "taxes.txt", "lines": ["# GUIDE", ""]}
