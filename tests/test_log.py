"""Logs are JSON lines, they say where they belong, and no secret survives them."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.log import bind_inference, bind_trace, configure_logging
from shared.scrub import SCRUBBED, scrub, scrub_text, secret_name

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
random_part = st.text(ALPHABET, min_size=24, max_size=60).map(lambda text: "Zq" + text)
shaped = st.one_of(
    random_part.map("ainfera_{}".format),
    random_part.map("ai_infera_{}".format),
    random_part.map("sk-{}".format),
    random_part.map("sk-ant-api03-{}".format),
    random_part.map("Bearer {}".format),
    random_part.map("bearer {}".format),
    st.tuples(random_part, random_part, random_part).map(
        lambda parts: f"eyJ{parts[0]}.eyJ{parts[1]}.{parts[2]}"
    ),
)
secret_names = st.sampled_from(
    [
        *("api_key", "password", "secret", "token", "authorization", "cookie"),
        *("prompt", "messages", "content", "Authorization", "x-api-key", "Set-Cookie"),
        *("clientSecret", "access_token", "X-Ainfera-Internal-Key", "AINFERA_MASTER_KEY"),
    ]
)
# words a client could have written, which have no shape of their own
words = st.text("abcdefghijk mnop'\"\\\n,:{}[]", max_size=30).map(
    lambda text: f"vvhush{text}hushvv"
)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged during the test; pytest's own handlers come back afterwards."""
    root = logging.getLogger()
    before, level, hooks = root.handlers[:], root.level, (sys.excepthook,)
    stream = io.StringIO()
    configure_logging("test", "DEBUG", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    (sys.excepthook,) = hooks
    logging.captureWarnings(False)


def logged(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def structures(secret: str, name: str) -> list[Any]:
    """The places a secret under a name can stand in."""
    return [
        {name: secret},
        {name: [secret]},
        {name: {"inner": [secret]}},
        [{"deep": ({"deeper": {name: secret}},)}],
        {"text": repr({name: secret})},
        {"text": repr({"outer": {name: secret}})},
        {"text": json.dumps({name: secret})},
        {"text": json.dumps(json.dumps({name: secret}))},
        {"text": repr(json.dumps({name: [secret]}))},
        {"text": f"{name}={secret!r}"},
        {"text": json.dumps({name: [secret]}, indent=2)},
        {"bytes": json.dumps({name: secret}).encode()},
    ]


@given(words, secret_names)
def test_what_stands_under_a_secret_name_never_survives(secret: str, name: str) -> None:
    for value in structures(secret, name):
        assert "vvhush" not in json.dumps(scrub(value)), value


@given(shaped, st.text(max_size=20), st.text(max_size=20))
def test_what_looks_like_a_secret_never_survives(secret: str, before: str, after: str) -> None:
    """Also behind an escape, in an address, in a repr, and as the name of a field."""
    for value in (
        f"{before} {secret} {after}",
        repr(f"{before}\n{secret}\t{after}"),
        json.dumps({"note": f"{before}\n{secret}"}),
        f"https://example.test/?next%3D{secret}&x=1",
        {f"{before} {secret}": 1},
        [{"note": [before, f"({secret})"]}],
        f"{before}\n{secret}\n{after}".encode(),
    ):
        assert "Zq" not in json.dumps(scrub(value)), value


@given(shaped, words, secret_names)
def test_no_way_of_logging_lets_a_secret_through(shape: str, word: str, name: str) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:]
    configure_logging("test", "DEBUG", stream)
    log = logging.getLogger("planted")
    try:
        log.info("event", extra={"note": shape, "body": {name: word}})
        log.info("argument %s of %r", shape, {name: word})
        log.info("named %(note)s", {"note": shape, name: word})
        log.info("broken %d", shape)
        try:
            raise ValueError(f"{shape} in { ({name: word})!r}")
        except ValueError as error:
            try:
                raise RuntimeError(f"while {shape}") from error
            except RuntimeError:
                log.exception("failed", stack_info=True)
    finally:
        root.handlers[:] = before
    text = stream.getvalue()
    assert "Zq" not in text
    assert "vvhush" not in text
    assert [json.loads(line)["event"] for line in text.splitlines()][-1] == "failed"


def test_one_object_a_line_that_says_where_it_belongs(lines: io.StringIO) -> None:
    async def call(number: int) -> None:
        bind_trace(f"trace-{number}")
        bind_inference(f"inference-{number}")
        await asyncio.sleep(0)
        logging.getLogger("x").info("router_alias_hit", extra={"legacy": "a\nb", "tokens": number})

    async def both() -> None:
        await asyncio.gather(call(1), call(2))

    asyncio.run(both())
    first, second = logged(lines)[-2:]
    assert {key: first[key] for key in ("level", "process", "logger", "event")} == {
        "level": "info",
        "process": "test",
        "logger": "x",
        "event": "router_alias_hit",
    }
    assert (first["trace_id"], first["inference_id"]) == ("trace-1", "inference-1")
    assert (second["trace_id"], second["inference_id"]) == ("trace-2", "inference-2")
    assert (first["legacy"], first["tokens"]) == ("a\nb", 1)


def test_what_is_no_secret_is_left_alone() -> None:
    kept = {
        "input_tokens": 12,
        "max_tokens": 4096,
        "content_type": "text/event-stream",
        "note": "the task-force took a risk at https://example.test/a?b=1 as ainfera_app",
        "model": "ainfera-inference",
        "cost_usd": "0.000123",
        "none": None,
        "yes": True,
    }
    assert scrub(kept) == kept
    assert scrub_text("max_tokens=5, prompt_tokens: 7") == "max_tokens=5, prompt_tokens: 7"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://app:hunter2@db/ainfera", "postgresql://[scrubbed]@db/ainfera"),
        ("password=hunter2", "password=[scrubbed]"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [scrubbed]"),
        (
            "x [input_value={'a':\n1}, input_type=dict]",
            "x [input_value=[scrubbed], input_type=dict]",
        ),
        ("[SQL: x]\n[parameters: ('hush',)]", "[SQL: x]\n[parameters: [scrubbed]]"),
    ],
)
def test_texts_that_libraries_write(text: str, left: str) -> None:
    assert scrub_text(text) == left


def test_names_are_told_apart() -> None:
    secret = ("api_key", "apiKey", "X-Api-Key", "APIKEY", "user_password", "Set-Cookie", "messages")
    harmless = ("input_tokens", "key_hash", "content_type", "contention", "tokenizer", "secretary")
    assert [name for name in secret if not secret_name(name)] == []
    assert [name for name in harmless if secret_name(name)] == []


def test_endless_and_huge_values_are_bounded() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "[too deep]" in json.dumps(scrub(endless))
    assert len(scrub("word " * 100_000)) < 20_000


def test_libraries_lines_and_uncaught_errors_come_out_the_same_way() -> None:
    program = """
import logging, logging.config, sys, warnings
import uvicorn.config
logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
from shared.log import configure_logging
configure_logging("web", "info")
for name in ("uvicorn.error", "uvicorn.access", "arq.worker", "sqlalchemy.engine"):
    logging.getLogger(name).info("from %s", name)
warnings.warn("careful")
raise RuntimeError("api_key='hunter2'")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in found[:4]] == [
        f"from {name}"
        for name in ("uvicorn.error", "uvicorn.access", "arq.worker", "sqlalchemy.engine")
    ]
    assert "careful" in found[4]["event"]
    assert found[5]["event"] == "uncaught"
    assert found[5]["error"]["type"] == "RuntimeError"
    assert SCRUBBED in found[5]["error"]["traceback"]
    assert "hunter2" not in done.stdout + done.stderr
