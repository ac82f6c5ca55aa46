"""Two running stacks for the whole session, and the clients that drive them.

`stack` asks a stand-in that speaks both vendors' wires and that a test tells what to say;
`simulated_stack` has no provider at all. Every test signs up an agent of its own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ainfera
import anthropic
import asyncpg
import openai
import pytest

from shared.catalog import seed_catalog
from shared.embedded import APP_ROLE, OWNER_ROLE, Servers, postgres_url
from tests.e2e.stack import Stack, running_stack
from tests.e2e.upstream import Upstream
from tests.e2e.witness import Backstage, Witness

# Nobody's keys: the stand-in checks that they are what it is asked with.
ANTHROPIC_KEY, OPENAI_KEY = "sk-ant-standin", "sk-standin"

# A model of an active provider that can do nothing but talk: no vendor has one any more.
ONLY_WORDS = "words-only"
_ONLY_WORDS_ROW = f"""
INSERT INTO models (slug, brand, provider, provider_model_id, display_name, context_window,
                    max_output_tokens, price_in, price_out, verdict)
VALUES ('{ONLY_WORDS}', 'openai', 'openai', '{ONLY_WORDS}', 'Words only', 8000, 1000, 1, 1, 'PASS')
"""

# One that takes public data from the EU only, and is too dear to be chosen by chance.
EU_ONLY = "eu-only"
_EU_ONLY_ROW = f"""
INSERT INTO models (slug, brand, provider, provider_model_id, display_name, context_window,
                    max_output_tokens, price_in, price_out, q_prior, verdict, conditions)
VALUES ('{EU_ONLY}', 'careful', 'openai', '{EU_ONLY}', 'EU only', 8000, 1000, 500, 500, 0.8,
        'CONDITIONAL', '{{"data_class": ["public"], "region": ["eu"]}}')
"""

# Without the SDKs' own retries each call of a test is one call; who waits for ever has failed.
ONCE: Any = {"max_retries": 0, "timeout": 30}

Signup = Callable[..., ainfera.SignupResult]


@pytest.fixture(scope="session")
def backstage() -> Iterator[Backstage]:
    running = Backstage()
    yield running
    running.close()


@pytest.fixture(scope="session")
def upstream(backstage: Backstage) -> Iterator[Upstream]:
    standing_in = Upstream(backstage)
    yield standing_in
    standing_in.close()


def two_providers(upstream: Upstream) -> dict[str, str]:
    """Settings with two configured providers; the others are inactive."""
    return {
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "OPENAI_API_KEY": OPENAI_KEY,
        "AINFERA_ANTHROPIC_BASE_URL": upstream.anthropic_url,
        "AINFERA_OPENAI_BASE_URL": upstream.openai_url,
    }


@pytest.fixture(scope="session")
def stack(
    servers: Servers,
    template: str,
    backstage: Backstage,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """The stack with two configured providers; the others are inactive."""
    changes = two_providers(upstream)
    home = tmp_path_factory.mktemp("stack")
    yield from started_stack(servers, template, backstage, "e2e", 2, home, changes)


@pytest.fixture(scope="session")
def simulated_stack(
    servers: Servers,
    template: str,
    backstage: Backstage,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """The stack as it comes: no provider key, so that every answer is simulated."""
    changes = {"SIMULATED_FIRST_TOKEN_MS": "0", "SIMULATED_TOKEN_MS": "0"}
    home = tmp_path_factory.mktemp("simulated")
    yield from started_stack(servers, template, backstage, "e2e_simulated", 3, home, changes)


def started_stack(
    servers: Servers,
    template: str,
    backstage: Backstage,
    name: str,
    redis_number: int,
    home: Path,
    changes: dict[str, str],
) -> Iterator[Stack]:
    """A stack on a database of its own, and on the Valkey database of this number."""
    backstage.run(new_database(servers, template, name))
    with running_stack(
        home,
        postgres_url(servers.sockets, APP_ROLE, name),
        postgres_url(servers.sockets, "postgres", name),
        f"{servers.redis_url}?db={redis_number}",
        changes,
    ) as stack:
        yield stack


async def new_database(servers: Servers, template: str, name: str) -> None:
    connection = await asyncpg.connect(servers.superuser_url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER_ROLE}")
    finally:
        await connection.close()
    owner_url = postgres_url(servers.sockets, OWNER_ROLE, name)
    await seed_catalog(owner_url)
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute(_ONLY_WORDS_ROW + ";" + _EU_ONLY_ROW)
    finally:
        await owner.close()


@pytest.fixture(scope="session")
def witness(backstage: Backstage, stack: Stack) -> Iterator[Witness]:
    looking = Witness(backstage, stack.superuser_url, stack.redis_url)
    yield looking
    looking.close()


@pytest.fixture(scope="session")
def simulated_witness(backstage: Backstage, simulated_stack: Stack) -> Iterator[Witness]:
    looking = Witness(backstage, simulated_stack.superuser_url, simulated_stack.redis_url)
    yield looking
    looking.close()


@pytest.fixture(scope="session")
def stranger(stack: Stack) -> Iterator[ainfera.AinferaClient]:
    """A client without a key, as one that has not signed up yet."""
    with ainfera.AinferaClient(api_key="", base_url=stack.url) as client:
        yield client


@pytest.fixture(scope="session")
def any_claude(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="none yet", base_url=stack.url, **ONCE) as client:
        yield client


@pytest.fixture(scope="session")
def any_gpt(stack: Stack) -> Iterator[openai.OpenAI]:
    base_url = f"{stack.url}/v1"
    with openai.OpenAI(api_key="none yet", base_url=base_url, **ONCE) as client:
        yield client


@pytest.fixture
def signup(stranger: ainfera.AinferaClient) -> Signup:
    """Sign up as a stranger does; caps and the like may be given."""

    def sign_up(handle: str, **fields: Any) -> ainfera.SignupResult:
        return stranger.agents.signup(agent_handle=handle, **fields)

    return sign_up


@pytest.fixture
def agent(signup: Signup) -> ainfera.SignupResult:
    """A tenant, its agent and its key, all of this test's own; the wallet holds the grant."""
    return signup("tester")


@pytest.fixture
def claude(any_claude: anthropic.Anthropic, agent: ainfera.SignupResult) -> anthropic.Anthropic:
    return any_claude.with_options(api_key=agent.api_key)


@pytest.fixture
def gpt(any_gpt: openai.OpenAI, agent: ainfera.SignupResult) -> openai.OpenAI:
    return any_gpt.with_options(api_key=agent.api_key)


@pytest.fixture
def ours(stack: Stack, agent: ainfera.SignupResult) -> Iterator[ainfera.Agent]:
    """The agent as the `ainfera` package has it, bound to a client."""
    with ainfera.AinferaClient(agent.api_key, base_url=stack.url) as client:
        yield client.agents.retrieve(agent.agent_id)
