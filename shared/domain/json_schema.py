"""Whether a JSON value matches a JSON schema, for schemas and values that nobody vouches for.

The answer has three values, because a check that cannot be sure must not say that a model failed:
`PASSED`, `FAILED` and `UNSURE`. Unsure is what needs a regular expression (whose author may want
it to run for ever), what another document defines, a keyword that this module does not know to be
harmless, and all that takes more than a fixed number of steps. Keywords have the meaning of JSON
Schema 2020-12, with the array form of `items` of the drafts before; `format` is a remark, as there.

Numbers are whole numbers or Decimals (`json.loads(…, parse_float=Decimal)`), never floats.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any

STEPS, DEPTH = 50_000, 64


class Fit(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNSURE = "unsure"


def fits(schema: Any, value: Any) -> Fit:
    """Whether `value` matches `schema`; never raises, and ends after `STEPS` steps at most."""
    try:
        return _Checking(schema).check(schema, value, DEPTH)
    except (_TooMuch, RecursionError):
        return Fit.UNSURE


def every(found: Iterable[Fit]) -> Fit:
    """One that failed decides; else one that is unsure does."""
    result = Fit.PASSED
    for each in found:
        if each is Fit.FAILED:
            return each
        if each is Fit.UNSURE:
            result = each
    return result


def some(found: Iterable[Fit]) -> Fit:
    return _not(every(_not(each) for each in found))


def _not(found: Fit) -> Fit:
    return {Fit.PASSED: Fit.FAILED, Fit.FAILED: Fit.PASSED}.get(found, found)


def _is(holds: bool) -> Fit:
    return Fit.PASSED if holds else Fit.FAILED


class _TooMuch(Exception):
    """The check has taken all the steps that one check may take."""


# What can be said of a value without looking at another part of the schema.
_REMARKS = frozenset(
    {
        *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary"),
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("format", "contentEncoding", "contentMediaType", "contentSchema", "strict", "nullable"),
        # taken together with their neighbours
        *("then", "else", "minContains", "maxContains", "additionalItems"),
    }
)
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "number": lambda v: _is_number(v),
    "integer": lambda v: _is_number(v) and (isinstance(v, int) or v == v.to_integral_value()),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


class _Checking:
    """One check: the whole schema, for its references, and the steps that are left."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = STEPS

    def check(self, schema: Any, value: Any, depth: int) -> Fit:
        self._spend(1)
        if isinstance(schema, bool):
            return _is(schema)
        if not isinstance(schema, Mapping) or not depth:
            return Fit.UNSURE
        if schema.get("nullable") is True and value is None:  # the OpenAPI way to say so
            return Fit.PASSED
        return every([self._keyword(name, schema, value, depth - 1) for name in schema])

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise _TooMuch

    def _keyword(self, name: str, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        if name in _REMARKS:
            return Fit.PASSED
        plain = _PLAIN.get(name)
        if plain is not None:
            kind, rule = plain
            if not kind(value):
                return Fit.PASSED
            self._spend(len(value) if isinstance(value, list | dict) else 1)
            try:
                return rule(schema[name], value)
            except (TypeError, ValueError, ArithmeticError):
                return Fit.UNSURE  # the schema says what no schema says
        nested = _NESTED.get(name)
        return Fit.UNSURE if nested is None else nested(self, schema, value, depth)

    # -- keywords that hold schemas ------------------------------------------------------------

    def _each(self, schemas: Any, value: Any, depth: int) -> list[Fit]:
        if not isinstance(schemas, list):
            return [Fit.UNSURE]
        return [self.check(schema, value, depth) for schema in schemas]

    def _all_of(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        return every(self._each(schema["allOf"], value, depth))

    def _any_of(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        return some(self._each(schema["anyOf"], value, depth))

    def _one_of(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        found = self._each(schema["oneOf"], value, depth)
        passed, unsure = found.count(Fit.PASSED), found.count(Fit.UNSURE)
        if passed > 1 or (not passed and not unsure):
            return Fit.FAILED
        return Fit.UNSURE if unsure else Fit.PASSED

    def _no(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        return _not(self.check(schema["not"], value, depth))

    def _if(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        condition = self.check(schema["if"], value, depth)
        branches = {
            Fit.PASSED: self.check(schema.get("then", True), value, depth),
            Fit.FAILED: self.check(schema.get("else", True), value, depth),
        }
        if condition is not Fit.UNSURE:
            return branches[condition]
        return branches[Fit.PASSED] if len(set(branches.values())) == 1 else Fit.UNSURE

    def _ref(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        target = self._root
        path = schema["$ref"]
        if not isinstance(path, str) or not (path == "#" or path.startswith("#/")):
            return Fit.UNSURE
        for part in path.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                return Fit.UNSURE
            target = target[part]
        return self.check(target, value, depth)

    def _properties(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        known = schema["properties"]
        if not isinstance(value, dict):
            return Fit.PASSED
        if not isinstance(known, Mapping):
            return Fit.UNSURE
        return every([self.check(known[k], v, depth) for k, v in value.items() if k in known])

    def _additional(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        if not isinstance(value, dict):
            return Fit.PASSED
        known = schema.get("properties", {})
        others = [v for k, v in value.items() if k not in known]
        self._spend(len(value))
        found = every([self.check(schema["additionalProperties"], v, depth) for v in others])
        # which of them a pattern names is not known
        return Fit.UNSURE if "patternProperties" in schema and found is Fit.FAILED else found

    def _names(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        if not isinstance(value, dict):
            return Fit.PASSED
        return every([self.check(schema["propertyNames"], name, depth) for name in value])

    def _dependent(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        asked = schema["dependentSchemas"]
        if not isinstance(value, dict):
            return Fit.PASSED
        if not isinstance(asked, Mapping):
            return Fit.UNSURE
        return every([self.check(s, value, depth) for name, s in asked.items() if name in value])

    def _items(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        if not isinstance(value, list):
            return Fit.PASSED
        asked = schema["items"]
        if isinstance(asked, list):
            rest = schema.get("additionalItems", True)
            return every([self._places(asked, value, depth), self._rest(asked, rest, value, depth)])
        first = schema.get("prefixItems")
        return self._rest(first if isinstance(first, list) else [], asked, value, depth)

    def _prefix(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        asked = schema["prefixItems"]
        if not isinstance(asked, list):
            return Fit.UNSURE
        return self._places(asked, value, depth) if isinstance(value, list) else Fit.PASSED

    def _places(self, asked: Sequence[Any], value: Sequence[Any], depth: int) -> Fit:
        return every([self.check(s, v, depth) for s, v in zip(asked, value, strict=False)])

    def _rest(self, first: Sequence[Any], asked: Any, value: Sequence[Any], depth: int) -> Fit:
        return every([self.check(asked, each, depth) for each in value[len(first) :]])

    def _contains(self, schema: Mapping[str, Any], value: Any, depth: int) -> Fit:
        if not isinstance(value, list):
            return Fit.PASSED
        found = [self.check(schema["contains"], each, depth) for each in value]
        sure, unsure = found.count(Fit.PASSED), found.count(Fit.UNSURE)
        least, most = schema.get("minContains", 1), schema.get("maxContains", len(value))
        if not (_is_number(least) and _is_number(most)):
            return Fit.UNSURE
        if sure > most or sure + unsure < least:
            return Fit.FAILED
        return _is(True) if sure >= least and sure + unsure <= most else Fit.UNSURE


_NESTED: Mapping[str, Callable[[_Checking, Mapping[str, Any], Any, int], Fit]] = {
    "allOf": _Checking._all_of,
    "anyOf": _Checking._any_of,
    "oneOf": _Checking._one_of,
    "not": _Checking._no,
    "if": _Checking._if,
    "$ref": _Checking._ref,
    "properties": _Checking._properties,
    "additionalProperties": _Checking._additional,
    "propertyNames": _Checking._names,
    "dependentSchemas": _Checking._dependent,
    "items": _Checking._items,
    "prefixItems": _Checking._prefix,
    "contains": _Checking._contains,
}


# -- keywords that look at the value alone -----------------------------------------------------


def _anything(_: Any) -> bool:
    return True


def _type(asked: Any, value: Any) -> Fit:
    names = asked if isinstance(asked, list) else [asked]
    known = [_TYPES[name](value) for name in names if name in _TYPES]
    if any(known):
        return Fit.PASSED
    return _is(False) if len(known) == len(names) else Fit.UNSURE


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: `1` is `1.0` but not `true`."""
    return _key(one) == _key(other)


def _key(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if _is_number(value):
        return {"number": _digits(Decimal(value))}
    return value


def _digits(value: Decimal) -> str:
    """The same text for equal numbers, however many digits they have."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    whole = text.rstrip("0")
    assert isinstance(exponent, int), "JSON has no infinity and nothing that is not a number"
    return f"{sign}:{whole}:{exponent + len(text) - len(whole)}" if whole else "0"


def _enum(asked: Any, value: Any) -> Fit:
    if not isinstance(asked, list):
        return Fit.UNSURE
    wanted = _key(value)
    return _is(any(_key(each) == wanted for each in asked))


def _required(asked: Any, value: dict[str, Any]) -> Fit:
    return _is(all(name in value for name in asked)) if isinstance(asked, list) else Fit.UNSURE


def _dependent_required(asked: Any, value: dict[str, Any]) -> Fit:
    return every([_required(names, value) for name, names in asked.items() if name in value])


def _limit(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Fit]:
    """A bound on a number, or on the size of a text, a list or an object."""

    def check(bound: Any, value: Any) -> Fit:
        if not _is_number(bound):
            return Fit.UNSURE
        return _is(holds(value if _is_number(value) else len(value), bound))

    return check


_NUMBER, _TEXT, _LIST, _OBJECT = (_TYPES[kind] for kind in ("number", "string", "array", "object"))
_AT_LEAST, _AT_MOST = _limit(lambda v, bound: v >= bound), _limit(lambda v, bound: v <= bound)

_PLAIN: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any, Any], Fit]]] = {
    "type": (_anything, _type),
    "enum": (_anything, _enum),
    "const": (_anything, lambda asked, value: _is(_same(asked, value))),
    "required": (_OBJECT, _required),
    "dependentRequired": (_OBJECT, _dependent_required),
    "minProperties": (_OBJECT, _AT_LEAST),
    "maxProperties": (_OBJECT, _AT_MOST),
    "minItems": (_LIST, _AT_LEAST),
    "maxItems": (_LIST, _AT_MOST),
    "uniqueItems": (
        _LIST,
        lambda asked, value: _is(not asked or len({_key(v) for v in value}) == len(value)),
    ),
    "minLength": (_TEXT, _AT_LEAST),
    "maxLength": (_TEXT, _AT_MOST),
    "minimum": (_NUMBER, _AT_LEAST),
    "maximum": (_NUMBER, _AT_MOST),
    "exclusiveMinimum": (_NUMBER, _limit(lambda v, bound: v > bound)),
    "exclusiveMaximum": (_NUMBER, _limit(lambda v, bound: v < bound)),
    "multipleOf": (_NUMBER, _limit(lambda v, step: v % step == 0)),
}
