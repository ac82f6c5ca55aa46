"""Whether JSON matches a schema: against another implementation, and against who means harm."""

import json
from decimal import Decimal
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.json_schema import STEPS, Fit, fits
from shared.domain.reward import read_json

steady = settings(max_examples=150, deadline=None)

NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "bcd", 1.5, 2.0])
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=6
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SIZES = st.integers(0, 3)
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "const": VALUES,
    "required": st.lists(NAMES, unique=True, max_size=2),
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=2)),
    "minimum": st.integers(-2, 2),
    "exclusiveMaximum": st.integers(-2, 2),
    "multipleOf": st.sampled_from([1, 2, 0.5]),
    "uniqueItems": st.booleans(),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), SIZES),
    **dict.fromkeys(("minProperties", "maxProperties"), SIZES),
}


def nested(schemas: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(schemas, min_size=1, max_size=3)
    single = dict.fromkeys(
        ("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"),
        schemas,
    )
    named = dict.fromkeys(
        ("properties", "dependentSchemas"), st.dictionaries(NAMES, schemas, max_size=2)
    )
    groups = dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), several)
    return st.fixed_dictionaries({}, optional={**PLAIN, **single, **named, **groups})


SCHEMAS = st.recursive(
    st.booleans() | st.fixed_dictionaries({}, optional=PLAIN), nested, max_leaves=6
)


@steady
@given(SCHEMAS, VALUES)
def test_it_says_what_another_implementation_says(schema: Any, value: Any) -> None:
    expected = jsonschema_rs.Draft202012Validator(schema).is_valid(value)
    found = fits(read_json(json.dumps(schema)), read_json(json.dumps(value)))
    assert found is (Fit.PASSED if expected else Fit.FAILED)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "(a+)+$"}, "aaaa!"),
        ({"$ref": "https://example.com/schema"}, 1),
        ({"$ref": "#/nowhere"}, 1),
        ({"$ref": "#"}, 1),
        ({"unevaluatedProperties": False}, {"a": 1}),
        ({"type": "quaternion"}, 1),
        ({"type": [[]]}, 1),
        ({"minimum": "zero"}, 1),
        ({"multipleOf": 0}, 1),
        ({"required": 7}, {}),
        ({"properties": []}, {"a": 1}),
        ({"additionalProperties": False, "patternProperties": {"^a": {}}}, {"a": 1}),
        ("no schema", 1),
        ({"multipleOf": Decimal("1e-999999")}, Decimal("1e999999")),
    ],
)
def test_what_cannot_be_told_is_not_held_against_anybody(schema: Any, value: Any) -> None:
    assert fits(schema, value) is Fit.UNSURE


def test_what_fails_anyway_fails_whatever_else_is_unsure() -> None:
    assert fits({"pattern": "x", "type": "string"}, 7) is Fit.FAILED
    assert fits({"anyOf": [{"pattern": "x"}, {"type": "string"}]}, "a") is Fit.PASSED


def test_references_within_the_schema_are_followed() -> None:
    tree = {
        "$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}},
        "$ref": "#/$defs/a~1b",
    }
    assert fits(tree, [[], [[]]]) is Fit.PASSED
    assert fits(tree, [[], [1]]) is Fit.FAILED


def test_a_check_ends_after_its_steps() -> None:
    doubling: Any = {"$ref": "#/$defs/0"}
    defs = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)}
    assert fits({"$defs": {**defs, "40": True}, **doubling}, 1) is Fit.UNSURE
    assert fits({"items": {"type": "integer"}}, [1] * (STEPS + 1)) is Fit.UNSURE


def test_a_value_may_be_nested_deeper_than_the_interpreter_likes() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert fits({"items": {"$ref": "#"}}, deep) is Fit.UNSURE


def test_numbers_are_compared_exactly() -> None:
    near = read_json("10000000000000000000000000000000000000001")
    assert fits({"const": near - 1}, near) is Fit.FAILED
    assert fits({"const": 1}, Decimal("1.0")) is Fit.PASSED
    assert fits({"const": 1}, True) is Fit.FAILED
