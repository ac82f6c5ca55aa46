"""Streams that break somewhere between the provider and the client, and how they go on."""

from collections.abc import Iterator

import ainfera
import httpx
import pytest

from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, call, frames_of
from tests.e2e.conftest import Signup
from tests.e2e.readers import EVENT_ID, asking_for, following
from tests.e2e.stack import Stack, running_stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually

WORDS = tuple(f"word{n} " for n in range(8))
# -- reading again ------------------------------------------------------------------------------


@EVERY_DIALECT
def test_at_every_event_exactly_the_rest_is_there(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, dialect: str
) -> None:
    word = upstream.will(Say(texts=WORDS, gap_s=0.01))
    unbroken = asking_for(stack, agent.api_key, dialect, word)
    whole = unbroken.to_the_end()
    inference_id = unbroken.inference_id

    again = following(stack, agent.api_key, inference_id)
    assert again.to_the_end() == whole
    for name in ("inference-id", "agent-id", "receipt-id", "audit-url", "model", "stream-mode"):
        assert again.headers[f"x-ainfera-{name}"] == unbroken.headers[f"x-ainfera-{name}"]

    boundaries = list(EVENT_ID.finditer(whole))
    assert len(boundaries) > 5
    assert whole.endswith(boundaries[-1][0])
    for boundary in boundaries[:-1]:
        rest = following(stack, agent.api_key, inference_id, boundary[1].decode())
        assert rest.to_the_end() == whole[boundary.end() :]
        assert rest.headers["x-ainfera-model"] == unbroken.headers["x-ainfera-model"]
    nothing_left = following(stack, agent.api_key, inference_id, boundaries[-1][1].decode())
    assert nothing_left.to_the_end() == b""
    assert nothing_left.status == 204
    assert len(upstream.all_asked(word)) == 1


@EVERY_DIALECT
def test_an_answer_in_one_piece_is_told_as_events(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, dialect: str
) -> None:
    word = upstream.will(Say(texts=WORDS, tools=(("look", '{"at": "you"}'),), finish="tool_calls"))
    answer = call(stack, agent.api_key, dialect, word)
    reader = following(stack, agent.api_key, answer.inference_id)
    frames = list(frames_of(reader.to_the_end()))
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert EVENT_ID.search(reader.content)
    if dialect == "native":
        assert frames == [("completed", answer.body)]
    else:
        assert b"".join(WORD.encode() for WORD in WORDS) in reader.content
        assert b"look" in reader.content
        assert frames[-1][0] == {"anthropic": "message_stop", "openai": "[DONE]"}[dialect]


def test_the_events_of_a_refusal_are_its_error(stack: Stack, agent: ainfera.SignupResult) -> None:
    refused = call(stack, agent.api_key, "native", "Hi.", routing_hint={"min_quality": 0.99})
    assert refused.status == 422
    reader = following(stack, agent.api_key, refused.inference_id)
    (event,) = frames_of(reader.to_the_end())
    assert event[0] == "error"
    assert event[1]["code"] == refused.body["code"]
    again = following(stack, agent.api_key, refused.inference_id, reader.last_id)
    again.to_the_end()
    assert again.status == 204


def test_ids_that_no_event_has(stack: Stack, agent: ainfera.SignupResult) -> None:
    inference_id = call(stack, agent.api_key, "native", "Hi.").inference_id
    for said in ("x", "-1", "1.5", "99999999999", "77"):
        reader = following(stack, agent.api_key, inference_id, said)
        reader.to_the_end()
        assert reader.status == 400, said
        assert b"Last-Event-ID" in reader.content


@STREAMED_OR_NOT
def test_what_is_not_kept_any_more_says_how_it_ended(
    stack: Stack, agent: ainfera.SignupResult, signup: Signup, witness: Witness, stream: bool
) -> None:
    answer = call(stack, agent.api_key, "native", "Hi.", stream=stream)
    key = f"ainfera:events:{{{answer.inference_id}}}"
    assert 0 < witness.redis.ttl(key) <= 6  # type: ignore[operator]
    witness.redis.delete(key)
    reader = following(stack, agent.api_key, answer.inference_id)
    reader.to_the_end()
    assert reader.status == 410
    assert b"events_expired" in reader.content
    assert b"succeeded" in reader.content
    stranger = following(stack, signup("stranger").api_key, answer.inference_id)
    stranger.to_the_end()
    assert stranger.status == 404


@EVERY_DIALECT
def test_the_events_of_a_kept_call_outlive_its_replay(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
) -> None:
    """Its result is in the database, for longer, and on any ingress."""
    word = upstream.will(Say(texts=WORDS))
    headers = {"idempotency-key": f"key of {word}"}
    answer = call(stack, agent.api_key, dialect, word, stream=True, headers=headers)
    key = f"ainfera:events:{{{answer.inference_id}}}"
    assert following(stack, agent.api_key, answer.inference_id).to_the_end() == answer.content
    assert witness.redis.delete(key) == 1
    again = following(stack, agent.api_key, answer.inference_id)
    assert again.to_the_end() == answer.content
    assert again.headers["x-ainfera-model"] == answer.headers["x-ainfera-model"]
    boundary = next(EVENT_ID.finditer(answer.content))
    rest = following(stack, agent.api_key, answer.inference_id, boundary[1].decode())
    assert rest.to_the_end() == answer.content[boundary.end() :]
    after = following(stack, agent.api_key, answer.inference_id, again.last_id)
    after.to_the_end()
    assert after.status == 204


# -- while it runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second_web(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Another ingress of the same stack."""
    database_url = stack.superuser_url.replace("//postgres@", "//ainfera_app@")
    home = tmp_path_factory.mktemp("second")
    with running_stack(
        home, database_url, stack.superuser_url, stack.redis_url, {}, ("web",)
    ) as web:
        yield web


@EVERY_DIALECT
def test_readers_on_every_ingress_hear_the_same(
    stack: Stack,
    second_web: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    dialect: str,
) -> None:
    word = upstream.will(Say(texts=WORDS, in_lockstep=True))
    first = asking_for(stack, agent.api_key, dialect, word)
    first.has(b"word0")
    readers = [
        following(web, agent.api_key, first.inference_id) for web in (stack, second_web, second_web)
    ]
    for reader in readers:
        reader.has(b"word0")
    for _ in WORDS[1:4]:
        upstream.asked(word).step()
    for reader in (first, *readers):
        reader.has(b"word3")
    later = following(second_web, agent.api_key, first.inference_id, first.last_id)
    for _ in WORDS[4:]:
        upstream.asked(word).step()
    whole = first.to_the_end()
    assert first.words == "".join(WORDS)
    assert [reader.to_the_end() for reader in readers] == [whole] * 3
    assert whole.endswith(later.to_the_end())
    assert later.words == "".join(WORDS[4:])
    assert len(upstream.all_asked(word)) == 1


@EVERY_DIALECT
def test_who_sends_the_same_again_hears_the_stream_as_it_comes(
    stack: Stack,
    second_web: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    dialect: str,
) -> None:
    """The second caller joins the stream, on any ingress: it waits for words, not for the end."""
    word = upstream.will(Say(texts=WORDS, in_lockstep=True, first_waits=True))
    key = f"key of {word}"
    first = asking_for(stack, agent.api_key, dialect, word, idempotency_key=key)
    eventually(lambda: upstream.all_asked(word), "the provider asked")
    early = asking_for(second_web, agent.api_key, dialect, word, idempotency_key=key)
    for _ in WORDS[:2]:
        upstream.asked(word).step()
    first.has(b"word1")
    late = asking_for(stack, agent.api_key, dialect, word, idempotency_key=key)
    for joined in (early, late):
        joined.has(b"word1")
        assert joined.headers["idempotent-replayed"] == "true"
        assert joined.inference_id == first.inference_id
    assert not upstream.asked(word).over
    for _ in WORDS[2:]:
        upstream.asked(word).step()
    whole = first.to_the_end()
    assert [joined.to_the_end().replace(b": ping\n\n", b"") for joined in (early, late)] == [
        whole.replace(b": ping\n\n", b"")
    ] * 2
    assert len(upstream.all_asked(word)) == 1


def test_a_follower_that_leaves_stops_nothing(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(Say(texts=WORDS, in_lockstep=True))
    first = asking_for(stack, agent.api_key, "native", word)
    first.has(b"word0")
    url = f"{stack.url}/v1/inferences/{first.inference_id}/events"
    headers = {"authorization": f"Bearer {agent.api_key}"}
    left_before = stack.log_text().count("client_left")
    with witness.orders() as heard:
        with httpx.stream("GET", url, headers=headers, timeout=30, verify=False) as response:
            assert b"started" in next(response.iter_raw())
        eventually(
            lambda: stack.log_text().count("client_left") > left_before, "the follower leaving"
        )
        following(stack, agent.api_key, first.inference_id).has(b"word0")
        assert heard() is None
    for _ in WORDS[1:]:
        upstream.asked(word).step()
    first.to_the_end()
    assert first.words == "".join(WORDS)
    assert witness.inference(first.inference_id)["state"] == "settled"


def test_the_subscription_is_cut_and_nothing_is_lost(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    """What is published while nobody listens is read from the replay, the end too."""
    for steps_before in (0, 3):
        word = upstream.will(Say(texts=WORDS, in_lockstep=True))
        reader = asking_for(stack, agent.api_key, "anthropic", word)
        reader.has(b"word0")
        for _ in range(steps_before):
            upstream.asked(word).step()
        reader.has(f"word{steps_before}".encode())
        witness.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        for _ in WORDS[1 + steps_before :]:
            upstream.asked(word).step()
        assert b"message_stop" in reader.to_the_end()
        assert reader.words == "".join(WORDS)
        assert witness.inference(reader.inference_id)["state"] == "settled"
