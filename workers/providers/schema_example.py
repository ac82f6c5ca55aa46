"""A value that satisfies a JSON schema, for a simulation to call a tool with.

Covers what tool schemas are made of: types, `enum`, `const`, `$ref`, `allOf`, `anyOf`, `oneOf`,
bounds of numbers, strings and lists, and common formats; not `pattern`, `not` and conditions.
Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

import math
import random
from collections.abc import Mapping
from typing import Any

FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "agent@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
STRINGS = ("example", "simulated", "sample", "plain", "short")
# below this depth only what a schema demands is given, so that recursive schemas end
DEEPEST_OPTIONAL = 4
DEEPEST = 32


def example(schema: Any, draw: random.Random) -> Any:
    """A value the schema allows; the same for the same schema and state of `draw`."""
    return _Example(schema, draw).value(schema, 0)


class _Example:
    def __init__(self, root: Any, draw: random.Random) -> None:
        self._root = root
        self._draw = draw

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, Mapping) or depth > DEEPEST:
            return None
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._draw.choice(schema["enum"])
        match self._type(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return int(self._number(schema, whole=True))
            case "number":
                return self._number(schema, whole=False)
            case "boolean":
                return self._draw.random() < 0.5
            case _:
                return None

    def _resolved(self, schema: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        """The schema with its reference, its `allOf` and one of its alternatives merged in."""
        merged = dict(schema)
        for _ in range(DEEPEST):
            if "$ref" in merged:
                merged = {**self._target(merged.pop("$ref")), **merged}
            elif merged.get("allOf"):
                for part in merged.pop("allOf"):
                    merged = _joined(merged, self._resolved(part, depth + 1))
            elif merged.get("anyOf") or merged.get("oneOf"):
                options = merged.pop("anyOf", None) or merged.pop("oneOf")
                merged = _joined(merged, self._option(options, depth))
            else:
                break
        return merged

    def _option(self, options: list[Any], depth: int) -> Mapping[str, Any]:
        """The first alternative; deep down the one that ends soonest."""
        if depth >= DEEPEST_OPTIONAL:
            for option in options:
                if isinstance(option, Mapping) and option.get("type") == "null":
                    return option
        first = options[0]
        return first if isinstance(first, Mapping) else {}

    def _target(self, reference: Any) -> dict[str, Any]:
        target = self._root
        for step in str(reference).removeprefix("#").strip("/").split("/"):
            if step:
                name = step.replace("~1", "/").replace("~0", "~")
                target = target.get(name, {}) if isinstance(target, Mapping) else {}
        return dict(target) if isinstance(target, Mapping) else {}

    def _type(self, schema: Mapping[str, Any]) -> str | None:
        kind = schema.get("type")
        if isinstance(kind, list):
            return next((one for one in kind if one != "null"), "null")
        if kind is not None:
            return str(kind)
        if "properties" in schema or "required" in schema:
            return "object"
        return "array" if "items" in schema or "prefixItems" in schema else "string"

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        names = list(properties) if depth < DEEPEST_OPTIONAL else []
        names += [name for name in required if name not in names]
        return {name: self.value(properties.get(name, {}), depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems") or []
        found = [self.value(item, depth + 1) for item in first]
        items = schema.get("items", {})
        least = schema.get("minItems", 0)
        wanted = least if depth >= DEEPEST_OPTIONAL else max(least, 1)
        wanted = min(wanted, schema.get("maxItems", wanted))
        for _ in range(wanted * 20):
            if len(found) >= wanted:
                break
            item = self.value(items, depth + 1)
            if not schema.get("uniqueItems") or item not in found:
                found.append(item)
        return found

    def _string(self, schema: Mapping[str, Any]) -> str:
        text = FORMATS.get(schema.get("format", "")) or self._draw.choice(STRINGS)
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        text = text.ljust(least, "x")
        return text if most is None else text[:most]

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> float:
        step: float = schema.get("multipleOf", 1 if whole else 0.5)
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        floors: list[float] = [bound for bound in (low, above) if bound is not None]
        ceilings: list[float] = [bound for bound in (high, below) if bound is not None]
        floor = max(floors) if floors else min(0, *(top - 10 * step for top in ceilings), 0)
        least = math.ceil(floor / step)
        if above is not None and least * step <= above:
            least += 1
        number = (least + self._draw.randrange(8)) * step
        too_high = (high is not None and number > high) or (below is not None and number >= below)
        return least * step if too_high else number


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both schemas at once: properties and demands add up, of anything else the first wins."""
    both = {**other, **one}
    if "properties" in one and "properties" in other:
        both["properties"] = {**other["properties"], **one["properties"]}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both
