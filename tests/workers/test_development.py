"""What `fleet up` says and does about its development agent and about providers."""

from pathlib import Path

import httpx
import pytest

from shared.config import Settings, provider_configs
from workers.development import UpError, development_key, greeting, write_env

SIGNED_UP = {"api_key": "ainfera_new", "agent_id": "an-agent", "tenant_id": "a-tenant"}
ENVIRONMENT = {"AINFERA_INTERNAL_KEY": "internal", "SIGNUP_MODE": "open"}


def gateway(**answers: httpx.Response) -> httpx.AsyncClient:
    """An ingress that answers by the last part of the path, with 404 else."""

    def answer(request: httpx.Request) -> httpx.Response:
        return answers.get(request.url.path.rpartition("/")[2], httpx.Response(404))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://gateway.test")


async def test_a_new_agent_is_signed_up_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "dev.env"
    async with gateway(
        signup=httpx.Response(200, json=SIGNED_UP), topup=httpx.Response(200, json={})
    ) as client:
        assert await development_key(client, ENVIRONMENT, path) == "ainfera_new"
    assert "AINFERA_API_KEY=ainfera_new" in path.read_text()
    assert "AINFERA_TENANT_ID=a-tenant" in path.read_text()


async def test_a_kept_agent_is_taken_again_and_its_tenant_told(tmp_path: Path) -> None:
    path = tmp_path / "dev.env"
    write_env(path, {"AINFERA_API_KEY": "ainfera_kept", "AINFERA_AGENT_ID": "kept"})
    async with gateway(kept=httpx.Response(200, json={"tenant_id": "its-tenant"})) as client:
        assert await development_key(client, ENVIRONMENT, path) == "ainfera_kept"
    assert "AINFERA_TENANT_ID=its-tenant" in path.read_text()


@pytest.mark.parametrize("status", [401, 409, 500, 503])
async def test_without_an_agent_it_is_not_ready(tmp_path: Path, status: int) -> None:
    refused = httpx.Response(status, json={"code": "a_code", "message": "a reason"})
    async with gateway(signup=refused) as client:
        with pytest.raises(UpError, match=f"{status}.*a reason"):
            await development_key(client, ENVIRONMENT, tmp_path / "dev.env")
    assert not (tmp_path / "dev.env").exists()


async def test_a_top_up_that_broke_is_told_one_that_is_off_is_not(tmp_path: Path) -> None:
    signed_up = httpx.Response(200, json=SIGNED_UP)
    async with gateway(signup=signed_up, topup=httpx.Response(500)) as client:
        with pytest.raises(UpError, match="top-up answered 500"):
            await development_key(client, ENVIRONMENT, tmp_path / "dev.env")
    async with gateway(signup=signed_up, topup=httpx.Response(403)) as client:
        assert await development_key(client, ENVIRONMENT, tmp_path / "other.env")


async def test_who_closed_signup_gets_no_agent_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as client:
        closed = {**ENVIRONMENT, "SIGNUP_MODE": "closed"}
        assert await development_key(client, closed, tmp_path / "dev.env") is None
    assert "SIGNUP_MODE" in capsys.readouterr().out


def test_nobody_is_left_to_think_that_a_provider_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**changes: str) -> str:
        settings = Settings(simulate=changes.get("simulate", "auto"))
        return "\n".join(greeting(settings, provider_configs(), "http://x", "a-key", tmp_path))

    assert "simulated, and says so" in told()
    assert "No call can be answered" not in told()
    off = told(simulate="off")
    assert "No call can be answered" in off
    for name in ("SIMULATE", "ANTHROPIC_API_KEY", "no_candidate_enrolled"):
        assert name in off
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody")
    assert "simulated" not in told()
    assert "No call can be answered" not in told(simulate="off")
    assert "stands in" in told(simulate="on")
