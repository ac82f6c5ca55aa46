"""Reading a client's JSON: every fault names the field it is in, as a client would write it."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from shared.domain.inference import InvalidRequest


def fault(param: str, wrong: str) -> InvalidRequest:
    """An `InvalidRequest` whose message begins with the field's name."""
    return InvalidRequest(f"{param}: {wrong}", param)


def an_object(value: Any, param: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise fault(param, "must be an object")
    return value


def a_list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise fault(param, "must be a list")
    return value


def a_string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise fault(param, "must be a string")
    return value


LONGEST_NAME = 512
LARGEST_INT = 2**53
# Numbers of ours have at most nine decimals; an exponent may not write a gigabyte of zeros.
LONGEST_NUMBER, SMALLEST_EXPONENT, LARGEST_EXPONENT = 64, -64, 18


def storable(text: str, param: str) -> str:
    """Text that stands in the books: no zero character, which Postgres refuses, and bounded."""
    if "\0" in text or len(text) > LONGEST_NAME:
        raise fault(param, f"must be at most {LONGEST_NAME} characters, none of them zero")
    return text


def a_name(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise fault(param, "must be a string that is not empty")
    return storable(value, param)


def optional_string(body: Mapping[str, Any], key: str, at: str = "") -> str | None:
    value = body.get(key)
    return None if value is None else a_string(value, at + key)


def optional_object(body: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = body.get(key)
    return None if value is None else an_object(value, key)


def a_flag(body: Mapping[str, Any], key: str, default: bool = False, at: str = "") -> bool:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise fault(at + key, "must be true or false")
    return value


def optional_int(body: Mapping[str, Any], key: str, minimum: int = 1, at: str = "") -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise fault(at + key, "must be an integer")
    if value < minimum:
        raise fault(at + key, f"must be at least {minimum}")
    if value > LARGEST_INT:
        raise fault(at + key, f"must be at most {LARGEST_INT}")
    return value


def optional_number(
    body: Mapping[str, Any], key: str, minimum: float, maximum: float
) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault(key, "must be a number")
    if not minimum <= value <= maximum:
        raise fault(key, f"must be between {minimum:g} and {maximum:g}")
    return float(value)


def a_decimal(value: Any, param: str) -> Decimal:
    """A finite decimal, from a JSON number or from a string that holds one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise fault(param, "must be a number")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise fault(param, "must be a number") from None
    if len(str(value)) > LONGEST_NUMBER:
        raise fault(param, "has too many digits")
    if number.is_finite() and not (
        int(number.as_tuple().exponent) >= SMALLEST_EXPONENT
        and number.adjusted() <= LARGEST_EXPONENT
    ):
        raise fault(param, "is out of range")
    if not number.is_finite():
        raise fault(param, "must be a finite number")
    return number


def strings(value: Any, param: str) -> tuple[str, ...]:
    """A list of strings; one string alone counts as a list of one, null as none."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(a_string(item, f"{param}[{i}]") for i, item in enumerate(a_list(value, param)))
