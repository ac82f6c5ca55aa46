"""What a sweep over all ways out of a call needs: many calls at once, and what became of them.

Each way out has an agent of its own, so that its calls are known without their ids: a client that
leaves early is told none. What is found of them must be what was asked for, no call more or less.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ainfera
import httpx

from shared.domain.inference import ROUTING_ALIASES, ROUTING_TARGET
from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE
from tests.e2e.calls import PATHS, Answer, call
from tests.e2e.stack import Stack
from tests.e2e.upstream import Asked, Say, Upstream
from tests.e2e.witness import PATIENCE_S, Row, Witness, eventually

T = TypeVar("T")
ROUTED = (ROUTING_TARGET, *sorted(ROUTING_ALIASES))
# one by its slug, one by its vendor's id, each of a provider of its own
PINNED = ("claude-haiku-4-5", "gpt-5.5")
KEYS = QueueKeys(INFERENCE_QUEUE)

_CALLS = """
SELECT i.id, i.dialect, i.model, i.routed, i.state,
       ARRAY (SELECT o.outcome_status::text FROM routing_outcomes o WHERE o.inference_id = i.id)
         AS captured,
       (SELECT count(*) FROM receipts r WHERE r.inference_id = i.id) AS receipts
  FROM inferences i WHERE i.agent_id = $1::uuid
"""
_TOLD = """
SELECT payload::jsonb ->> 'inference_id' AS id, payload::jsonb ->> 'router' AS router,
       payload::jsonb ->> 'outcome' AS outcome
  FROM audit_events WHERE agent_id = $1::uuid AND payload::jsonb ? 'router' ORDER BY seq
"""


@dataclass(frozen=True)
class Ask:
    """One call of the table: what its `model` says, in which dialect and form."""

    target: str
    stream: bool
    dialect: str

    @property
    def router(self) -> str:
        return ROUTING_TARGET if self.target in ROUTED else "direct"

    @property
    def row(self) -> tuple[str, str]:
        """As the call stands in the database: an alias by the name that it stands for."""
        return self.dialect, ROUTING_TARGET if self.target in ROUTED else self.target

    def body(self, word: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": word}]
        asked = {"model": self.target, "max_tokens": 64, "messages": messages}
        return {**asked, "stream": self.stream, **more}


@dataclass
class Line:
    """A connection of one client, closed when its time has come; `heard` is what came over it."""

    ask: Ask
    word: str
    connection: socket.socket
    heard: bytes = b""

    def hears(self, text: bytes) -> None:
        while text not in self.heard:
            piece = self.connection.recv(65536)
            assert piece, f"the stream ended without {text!r}"
            self.heard += piece


@dataclass
class Sweep:
    """The stack and its witnesses. `agent` is fresh for each way out, `impatient` is an ingress
    whose clients do not wait for a worker."""

    stack: Stack
    impatient: Stack
    upstream: Upstream
    witness: Witness
    pool: ThreadPoolExecutor
    agent: ainfera.SignupResult
    outside: set[str] = field(default_factory=set)

    # -- asking -----------------------------------------------------------------------------

    def sign_up(self, **caps: Any) -> None:
        """Another agent makes the calls."""
        with ainfera.AinferaClient(api_key="", base_url=self.stack.url) as stranger:
            self.agent = stranger.agents.signup(agent_handle="sweeper", **caps)

    def ask(self, ask: Ask, word: str, *, at: Stack | None = None, **more: Any) -> Answer:
        """One call to its end. Whoever is told its id is told who chose its model."""
        sent = {"model": ask.target, "stream": ask.stream, **more}
        answer = call(at or self.stack, self.agent.api_key, ask.dialect, word, **sent)
        if "x-ainfera-inference-id" in answer.headers:
            assert answer.headers["x-ainfera-router"] == ask.router
        return answer

    def begin(self, asks: Sequence[Ask], say: Say, **more: Any) -> dict[str, Future[Answer]]:
        """All of them at once, each by the word of its prompt."""
        words = [self.upstream.will(say) for _ in asks]
        return {
            w: self.pool.submit(self.ask, a, w, **more) for a, w in zip(asks, words, strict=True)
        }

    def ask_all(self, asks: Sequence[Ask], say: Say, **more: Any) -> list[Answer]:
        return heard(self.begin(asks, say, **more).values())

    @contextmanager
    def lines(self, asks: Sequence[Ask], say: Say) -> Iterator[list[Line]]:
        """As many clients as calls, who all leave when the block ends, whatever they have heard."""
        with ExitStack() as opened:
            yield [opened.enter_context(self._line(ask, self.upstream.will(say))) for ask in asks]

    @contextmanager
    def _line(self, ask: Ask, word: str) -> Iterator[Line]:
        key = {"authorization": f"Bearer {self.agent.api_key}"}
        url = f"{self.stack.url}{PATHS[ask.dialect]}"
        request = httpx.Request("POST", url, json=ask.body(word), headers=key)
        head = [f"POST {PATHS[ask.dialect]} HTTP/1.1"]
        head += [f"{name}: {value}" for name, value in request.headers.items()]
        address = request.url.host, request.url.port
        with socket.create_connection(address, PATIENCE_S) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode() + request.read())
            yield Line(ask, word, connection)

    def asked(self, word: str) -> Asked:
        """The provider's side of a call, as soon as its first word has left."""
        eventually(lambda: self.upstream.asked(word).sent_texts, "the first word")
        return self.upstream.asked(word)

    def at_once(self, work: Callable[[T], Any], things: Iterable[T]) -> list[Any]:
        return list(self.pool.map(work, things))

    def post(self, path: str, body: Any = None) -> httpx.Response:
        key = {"authorization": f"Bearer {self.agent.api_key}"}
        return self.stack.request("POST", path, json=body, headers=key)

    def let_go(self) -> None:
        """Stop what still runs, which is something only where a test has failed."""
        for each in self.calls():
            if each["state"] == "held":
                self.post(f"/v1/inferences/{each['id']}/cancel")

    def operate(self, path: str) -> None:
        key = {"x-ainfera-internal-key": self.stack.internal_key}
        self.stack.request("POST", path, headers=key).raise_for_status()

    # -- the queue --------------------------------------------------------------------------

    @contextmanager
    def no_worker(self) -> Iterator[None]:
        """The one worker stands still; what it had to do until then it has done."""
        self.at_rest()
        worker = self.stack.processes["inference"].pid
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def waiting(self, count: int) -> list[str]:
        """The ids of the calls in the queue, as soon as there are so many."""
        redis: Any = self.witness.redis
        eventually(lambda: redis.zcard(KEYS.waiting) == count, f"{count} calls in the queue")
        return [each.decode() for each in redis.zrange(KEYS.waiting, 0, -1)]

    def note(self, inference_id: str, **fields: int) -> None:
        """Write at a job that waits, as the queue itself does."""
        assert self.witness.redis.hset(KEYS.job(inference_id), mapping=fields) == 0

    def told_to_stop(self, inference_id: str) -> None:
        job = KEYS.job(inference_id)
        eventually(lambda: self.witness.redis.hexists(job, "stop"), "the order to stop")

    def at_rest(self) -> None:
        """No call waits or is worked on: nobody writes anything any more."""
        redis: Any = self.witness.redis
        names = (KEYS.queue, KEYS.waiting, KEYS.lease)
        eventually(lambda: not any(map(redis.zcard, names)), "an empty queue")

    # -- what became of them ----------------------------------------------------------------

    def calls(self) -> list[Row]:
        found = self.witness.rows(_CALLS, self.agent.agent_id)
        return [each for each in found if each["id"] not in self.outside]

    def in_state(self, state: str, count: int) -> list[str]:
        def found() -> list[str]:
            ids = [each["id"] for each in self.calls() if each["state"] == state]
            return ids if len(ids) == count else []

        return eventually(found, f"{count} calls {state}")

    def leave_out(self) -> None:
        """The calls until now were only made to see whether the next ones can be."""
        self.outside |= {each["id"] for each in self.calls()}

    def wrong(self, asks: Sequence[Ask], outcome: str) -> list[Any]:
        """What is not as the rule says it: a line for each call, empty if all are right."""
        over = len(asks), ("settled", "refused")
        eventually(lambda: sum(c["state"] in over[1] for c in self.calls()) >= over[0], "the ends")
        self.at_rest()
        calls = self.calls()
        assert Counter((c["dialect"], c["model"]) for c in calls) == Counter(a.row for a in asks)
        routers: dict[str, set[str]] = {}
        outcomes: dict[str, list[str]] = {}
        for event in self.witness.rows(_TOLD, self.agent.agent_id):
            routers.setdefault(event["id"], set()).add(event["router"])
            if event["outcome"] is not None:
                outcomes.setdefault(event["id"], []).append(event["outcome"])
        wrong = []
        for each in calls:
            routed = each["model"] == ROUTING_TARGET
            router = ROUTING_TARGET if routed else "direct"
            seen = (each["captured"], each["routed"], routers.get(each["id"]), each["receipts"] > 1)
            right = ([outcome] if routed else [], routed, {router}, False)
            if seen != right or outcomes.get(each["id"], [])[-1:] != [outcome]:
                wrong.append((each, seen, outcomes.get(each["id"])))
        return wrong


def heard(calls: Iterable[Future[Answer]]) -> list[Answer]:
    return [each.result(60) for each in calls]


def codes(answers: Iterable[Answer]) -> set[str | None]:
    """What went wrong, as the clients were told."""
    return {each.error_code for each in answers}
