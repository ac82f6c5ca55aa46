"""What is accepted is kept: the queue's store loses everything, workers die, clients leave."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ainfera
import httpx
import pytest

from shared.embedded import Servers
from tests.e2e.calls import STREAMED_OR_NOT, call
from tests.e2e.conftest import started_stack, two_providers
from tests.e2e.stack import Stack
from tests.e2e.test_kept import OVER, WORDS, Ours, charged_once, in_background, key
from tests.e2e.test_leaving import begin, sent
from tests.e2e.upstream import Asked, Say, Upstream
from tests.e2e.witness import Backstage, Witness, eventually

PACED = Say(texts=WORDS, in_lockstep=True, first_waits=True)


@pytest.fixture(scope="module")
def stack(
    servers: Servers,
    template: str,
    backstage: Backstage,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A stack that may be broken: its own Valkey database, a sweeper that soon drives again."""
    changes = {
        **two_providers(upstream),
        "LEASE_SECONDS": "2",
        "REDRIVE_AFTER_SECONDS": "1",
        "ON_DISCONNECT": "drain",
    }
    home = tmp_path_factory.mktemp("kept")
    yield from started_stack(servers, template, backstage, "e2e_kept", 4, home, changes)


@pytest.fixture(scope="module")
def witness(backstage: Backstage, stack: Stack) -> Iterator[Witness]:
    looking = Witness(backstage, stack.superuser_url, stack.redis_url)
    yield looking
    looking.close()


@pytest.fixture
def agent(stack: Stack) -> ainfera.SignupResult:
    with ainfera.AinferaClient(api_key="", base_url=stack.url) as stranger:
        return stranger.agents.signup(agent_handle="tester")


@pytest.fixture
def mine(stack: Stack, agent: ainfera.SignupResult) -> Ours:
    return Ours(stack, agent.api_key)


def nth_asked(upstream: Upstream, word: str, n: int) -> Asked:
    return eventually(lambda: upstream.all_asked(word)[n - 1 : n], f"attempt {n} of {word}")[0]


def let_speak(asked: Asked) -> None:
    for _ in WORDS:
        asked.step()


def test_the_store_forgets_a_call_that_no_worker_has_seen(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    word = upstream.will(Say(texts=WORDS))
    stack.kill("inference")
    said = in_background(stack, agent.api_key, "native", word)
    assert witness.keys_with(word)
    assert mine.get(said["inference_id"])["status"] == "queued"
    witness.redis.flushdb()
    stack.start("inference")

    assert mine.ended(said["inference_id"])["result"]["content"] == "".join(WORDS)
    charged_once(witness, said["inference_id"], agent.agent_id)
    assert len(upstream.all_asked(word)) == 1


def test_the_store_forgets_a_call_that_runs(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    """Its worker has lost it and stops; it runs again as another attempt."""
    word = upstream.will(PACED)
    said = in_background(stack, agent.api_key, "native", word)
    eventually(lambda: upstream.asked(word).sent, "the provider asked")
    witness.redis.flushdb()

    let_speak(nth_asked(upstream, word, 2))
    assert mine.ended(said["inference_id"])["result"]["content"] == "".join(WORDS)
    inference = charged_once(witness, said["inference_id"], agent.agent_id)
    assert inference["attempt"] == 2
    (kept,) = witness.rows("SELECT * FROM kept_calls WHERE agent_id = $1::uuid", agent.agent_id)
    assert (kept["state"], kept["attempts"]) == ("done", 2)


@STREAMED_OR_NOT
def test_who_waits_with_a_key_while_the_store_forgets_is_answered(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, stream: bool
) -> None:
    word, headers = upstream.will(PACED), key()
    with ThreadPoolExecutor(1) as one:
        waiting = one.submit(
            call, stack, agent.api_key, "native", word, stream=stream, headers=headers
        )
        nth_asked(upstream, word, 1)
        witness.redis.flushdb()
        let_speak(nth_asked(upstream, word, 2))
        answer = waiting.result()
    assert answer.text == "".join(WORDS)
    charged_once(witness, answer.inference_id, agent.agent_id)
    again = call(stack, agent.api_key, "native", word, stream=stream, headers=headers)
    assert again.text == answer.text
    assert len(upstream.all_asked(word)) == 2


def test_a_worker_dies_in_the_middle(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    word = upstream.will(PACED)
    said = in_background(stack, agent.api_key, "native", word)
    nth_asked(upstream, word, 1)
    stack.kill("inference")
    stack.start("inference")

    let_speak(nth_asked(upstream, word, 2))
    assert mine.ended(said["inference_id"])["status"] == "succeeded"
    charged_once(witness, said["inference_id"], agent.agent_id)


def test_a_call_that_kills_its_workers_is_set_aside_until_it_is_replayed(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    """The database counts the attempts, also those that the queue has forgotten."""
    word = upstream.will(PACED)
    said = in_background(stack, agent.api_key, "native", word)
    for n in (1, 2, 3):
        nth_asked(upstream, word, n)
        stack.kill("inference")
        witness.redis.flushdb()
        stack.start("inference")

    inference_id = said["inference_id"]
    eventually(lambda: mine.get(inference_id)["status"] == "dead", "a dead letter")
    assert mine.get(inference_id)["error"]["code"] == "overloaded"
    assert len(upstream.all_asked(word)) == 3
    assert witness.wallet(agent.agent_id)["held"] == 0
    assert witness.captures(inference_id) == []

    operator = {"x-ainfera-internal-key": stack.internal_key}
    path = f"/internal/dead-letters/{inference_id}/replay"
    assert stack.request("POST", path, headers=operator).status_code == 200
    let_speak(nth_asked(upstream, word, 4))
    assert mine.ended(inference_id)["result"]["content"] == "".join(WORDS)
    charged_once(witness, inference_id, agent.agent_id)


def test_a_call_is_cancelled_while_no_worker_is_there(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    """The order stands in the database: a worker that starts later has not heard it."""
    word = upstream.will(PACED)
    stack.kill("inference")
    said = in_background(stack, agent.api_key, "native", word)
    cancelled = mine.cancel(said["inference_id"])
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelling")
    stack.start("inference")

    assert mine.ended(said["inference_id"])["status"] == "cancelled"
    assert upstream.all_asked(word) == []
    wallet = witness.wallet(agent.agent_id)
    assert (wallet["held"], wallet["balance"]) == (0, 5)
    assert mine.cancel(said["inference_id"]).json()["status"] == "cancelled"


@STREAMED_OR_NOT
def test_where_the_operator_says_so_a_call_outlives_its_client(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    mine: Ours,
    stream: bool,
) -> None:
    """`ON_DISCONNECT=drain`: it ends, and is settled, as if the client were there."""
    word = upstream.will(PACED)
    with sent(stack, agent.api_key, begin("native", "ainfera-inference", word, stream)):
        asked = nth_asked(upstream, word, 1)
        eventually(lambda: asked.sent, "the provider's first frame")
    let_speak(asked)

    (row,) = eventually(
        lambda: witness.rows(
            "SELECT id FROM inferences WHERE agent_id = $1::uuid AND state = 'settled'",
            agent.agent_id,
        ),
        "the settlement",
    )
    assert not asked.hung_up
    assert mine.get(row["id"])["status"] == "succeeded"
    charged_once(witness, row["id"], agent.agent_id)


def test_a_call_in_the_queue_is_seen_by_its_tenant_alone(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    """An interactive one: until a worker has it, only the queue knows of it."""
    word = upstream.will(Say(texts=WORDS))
    stack.kill("inference")
    with ThreadPoolExecutor(1) as one:
        waiting = one.submit(call, stack, agent.api_key, "native", word)
        (payload,) = eventually(lambda: witness.keys_with(word), "the call in the queue")
        inference_id = payload.decode().rpartition(":")[2]
        found = mine.get(inference_id)
        assert (found["status"], found["result"]) == ("queued", None)
        with ainfera.AinferaClient(api_key="", base_url=stack.url) as stranger:
            other = stranger.agents.signup(agent_handle="intruder")
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = httpx.request(
                method,
                f"{stack.url}/v1/inferences/{inference_id}{path}",
                headers={"authorization": f"Bearer {other.api_key}"},
                verify=False,
            )
            assert answer.status_code == 404
        stack.start("inference")
        assert waiting.result().text == "".join(WORDS)
    assert mine.get(inference_id)["status"] in OVER
