"""The load: clients of every kind, each with notes of what it was told."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.e2e.calls import PATHS
from tests.faults.provider import WORD, Mood, NumberingProvider, Part

EVENT_ID = re.compile(rb"\nid: (\d+)\n\n")
# promise 1: deadline, lease, one round of the books; and the time that a store was away
PATIENCE_S = 45.0
KINDS = ("streamed", "folded", "leaves", "background", "with a key")
WEIGHTS = (35, 20, 12, 13, 20)
POISONED = "poisoned"
FAULTY = 0.25


@dataclass(frozen=True, slots=True)
class Agent:
    id: str
    api_key: str
    poor: bool = False


@dataclass
class Heard:
    """What one client was told. `ends`: done, error, refused, left; broken if its ingress died."""

    call: int
    kind: str
    dialect: str
    routed: bool
    key: str = ""
    says: str = ""
    status: int = 0
    inference_id: str = ""
    content: bytes = b""
    ends: list[str] = field(default_factory=list)
    resumed: int = 0
    ended_at: float = 0.0

    @property
    def words(self) -> list[tuple[int, ...]]:
        """(call, answer, word) in the order heard, without a summary that repeats them."""
        spoken = self.content.partition(b"event: completed")[0].partition(b'"content_blocks"')[0]
        return [(int(a), int(b), int(c)) for a, b, c in WORD.findall(spoken)]

    @property
    def accepted(self) -> bool:
        return self.status in (200, 202) and bool(self.inference_id)


@dataclass
class Clients:
    """All clients of a run; `heard` is in the order in which they ended."""

    urls: list[str]
    agents: list[Agent]
    provider: NumberingProvider
    rng: random.Random
    heard: list[Heard] = field(default_factory=list)
    calls: int = 0
    until: float = 0.0
    patience_s: float = PATIENCE_S
    conflicts: Counter[int] = field(default_factory=Counter)
    extras: set["asyncio.Task[None]"] = field(default_factory=set)
    session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """The connections of all clients: one for each call, as they come from anywhere."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=self.patience_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.session:
            yield
            await asyncio.gather(*self.extras)

    def begin(
        self,
        heard: Heard,
        part: Part,
        *,
        leaves_after_s: float | None = None,
        web: int | None = None,
    ) -> Heard:
        """One call beside the load: `heard` is filled by and by."""
        self.calls += 1
        heard.call = self.calls
        self.provider.parts[heard.call] = part
        assert self.session is not None
        asking = self._carry_out(
            self.session,
            self.agents[0],
            heard,
            stream=heard.kind not in ("background", "folded"),
            leaves_after_s=leaves_after_s,
            web=web,
        )
        task = asyncio.create_task(asking)
        self.extras.add(task)
        task.add_done_callback(self.extras.discard)
        return heard

    async def ended(self) -> None:
        """All calls beside the load are over."""
        await asyncio.gather(*self.extras)

    def forget(self) -> None:
        """What was heard has been looked at."""
        self.heard.clear()
        self.provider.forget()

    async def load(self, clients: int, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        assert self.session is not None
        await asyncio.gather(*[self._client(self.session) for _ in range(clients)])
        await self.ended()

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while time.monotonic() < self.until:
            heard = self._next()
            agent = self.rng.choice(self.agents)
            if heard.key:
                await self._with_a_key(session, agent, heard)
            else:
                await self._carry_out(session, agent, heard)
            # a refusal comes at once: who is refused waits a little
            pause_s = 0.5 if heard.ends != ["done"] else 0.05
            await asyncio.sleep(self.rng.uniform(0, pause_s))

    def _next(self) -> Heard:
        """A call of a kind, and how the provider takes it."""
        self.calls += 1
        rng, call = self.rng, self.calls
        mood = rng.choice(list(Mood)) if rng.random() < FAULTY else Mood.FINE
        self.provider.parts[call] = Part(
            rng.randint(2, 12), rng.choice((0.0, 0.02, 0.1, 0.25)), mood, rng.random() < 0.6
        )
        kind = rng.choices(KINDS, WEIGHTS)[0]
        heard = Heard(call, kind, rng.choice(list(PATHS)), rng.random() < 0.7)
        if kind == "background":
            heard.dialect = "native"
        heard.key = f"key {call}" if kind == "with a key" else ""
        return heard

    async def _with_a_key(self, session: aiohttp.ClientSession, agent: Agent, heard: Heard) -> None:
        """The same request two or three times, some at once and one when the first have ended."""
        stream = self.rng.random() < 0.5
        twins = [
            Heard(heard.call, heard.kind, heard.dialect, heard.routed, heard.key)
            for _ in range(self.rng.randint(1, 2))
        ]
        await asyncio.gather(*[self._carry_out(session, agent, each, stream) for each in twins])
        await self._carry_out(session, agent, heard, stream)
        if heard.accepted and heard.ends == ["done"]:
            await self._ask_otherwise(session, agent, heard)

    async def _ask_otherwise(
        self, session: aiohttp.ClientSession, agent: Agent, heard: Heard
    ) -> None:
        """Another request with a key that a call has; the status of the answer is noted."""
        body = {
            "model": "gpt-5-mini",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "?"}],
        }
        headers = {"authorization": f"Bearer {agent.api_key}", "idempotency-key": heard.key}
        url = f"{self.rng.choice(self.urls)}{PATHS[heard.dialect]}"
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(url, json=body, headers=headers) as answer:
                self.conflicts[answer.status] += 1

    async def _carry_out(
        self,
        session: aiohttp.ClientSession,
        agent: Agent,
        heard: Heard,
        stream: bool | None = None,
        leaves_after_s: float | None = None,
        web: int | None = None,
    ) -> None:
        if stream is None:
            stream = heard.kind == "streamed" or (
                heard.kind == "leaves" and self.rng.random() < 0.7
            )
        body: dict[str, Any] = {
            "model": "ainfera-inference" if heard.routed else "gpt-5-mini",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": f"Say call-{heard.call}-end.{heard.says}"}],
            "stream": stream,
        }
        if heard.kind == "background":
            body["background"] = True
        headers = {"authorization": f"Bearer {agent.api_key}"}
        if heard.key:
            headers["idempotency-key"] = heard.key
        if heard.kind == "leaves" and leaves_after_s is None:
            leaves_after_s = self.rng.uniform(0, 0.8)
        if web is None:
            web = self.rng.randrange(len(self.urls))
        try:
            async with asyncio.timeout(leaves_after_s):
                await self._ask(session, web, heard, body, headers)
        except TimeoutError:
            # one who left while resuming what had broken left all the same
            heard.ends = ["left"] if leaves_after_s is not None else [*heard.ends, "waited in vain"]
        heard.ended_at = time.time()
        self.heard.append(heard)

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        web: int,
        heard: Heard,
        body: dict[str, Any],
        headers: dict[str, str],
    ) -> None:
        url = f"{self.urls[web]}{PATHS[heard.dialect]}"
        try:
            async with session.post(url, json=body, headers=headers) as answer:
                heard.status = answer.status
                heard.inference_id = answer.headers.get("x-ainfera-inference-id", "")
                async for piece in answer.content.iter_any():
                    heard.content += piece
        except aiohttp.ClientError:
            heard.ends.append("broken" if heard.status else "not connected")
            if heard.status == 0:
                return
        if heard.ends == ["broken"]:
            if heard.inference_id and body["stream"] and heard.status == 200:
                await self._resume(session, 1 - web, heard, headers)
        elif heard.status == 200:
            heard.ends += ends_of(heard, streamed=body["stream"])
        elif heard.status == 202:
            heard.inference_id = orjson.loads(heard.content)["inference_id"]
            await self._poll(session, heard, headers)
        else:
            heard.ends.append("refused")

    async def _resume(
        self, session: aiohttp.ClientSession, web: int, heard: Heard, headers: dict[str, str]
    ) -> None:
        """At the other ingress, from the last event that came whole."""
        found = list(EVENT_ID.finditer(heard.content))
        heard.content = heard.content[: found[-1].end()] if found else b""
        more = {"last-event-id": found[-1][1].decode()} if found else {}
        url = f"{self.urls[web]}/v1/inferences/{heard.inference_id}/events"
        with suppress(aiohttp.ClientError):
            async with session.get(url, headers={**headers, **more}) as answer:
                if answer.status != 200:
                    return
                heard.resumed += 1
                async for piece in answer.content.iter_any():
                    heard.content += piece
            heard.ends = ends_of(heard, streamed=True)

    async def _poll(
        self, session: aiohttp.ClientSession, heard: Heard, headers: dict[str, str]
    ) -> None:
        """Ask for a call in the background until it is over, whichever ingress answers."""
        ends_at = time.monotonic() + self.patience_s
        while time.monotonic() < ends_at:
            url = f"{self.rng.choice(self.urls)}/v1/inferences/{heard.inference_id}"
            with suppress(aiohttp.ClientError):
                async with session.get(url, headers=headers) as answer:
                    if answer.status == 404:
                        heard.ends.append("forgotten")
                        return
                    body = orjson.loads(await answer.read()) if answer.status == 200 else {}
                    if body.get("status") not in ("queued", "running", None):
                        heard.content = orjson.dumps(body.get("result"))
                        heard.ends.append("done" if body["status"] == "succeeded" else "error")
                        return
            await asyncio.sleep(0.3)
        heard.ends.append("waited in vain")


def ends_of(heard: Heard, *, streamed: bool) -> list[str]:
    """Each end that an answer has, in its dialect: there must be one."""
    if not streamed:
        return ["done"]
    content = heard.content
    done = {"native": b"event: completed\n", "anthropic": b"event: message_stop\n"}.get(
        heard.dialect, b"data: [DONE]\n"
    )
    failed = b"event: error\n"
    if heard.dialect == "openai":
        failed = b'data: {"error"'
        # there the stream's end mark follows an error too
        content = re.sub(rb'(data: {"error".*\n\n)data: \[DONE\]\n', rb"\1", content)
    return ["done"] * content.count(done) + ["error"] * content.count(failed)
