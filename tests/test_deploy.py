"""What the deployment files promise, read from them: no container engine is needed.

The overlays are built too where `kubectl` or `kustomize` is at hand.
"""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Gauge

from ingress import operations
from ingress.auth import INTERNAL_HEADER
from shared import metrics as counted
from shared.config import PROVIDER_SETTINGS, Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
OVERLAYS = sorted((DEPLOY / "kubernetes" / "overlays").iterdir())
FLEET_IMAGE = "ainfera-gateway"
COMMANDS = {"web": "ingress", "inference": "workers inference", "books": "workers books"}

# what the stores, the proxy and the files themselves are told; nothing of ours reads these
NOT_OURS = {
    "POSTGRES_PASSWORD",
    "OWNER_PASSWORD",
    "APP_PASSWORD",
    "CALLER_PASSWORD",
    "REDIS_PASSWORD",
    "REDISCLI_AUTH",
    "POD_NAME",
    "SELF",
    "FIRST",
    "PEERS",
    "PASSWORD",
    "MAXMEMORY",
}
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}
SETTINGS |= {name for row in PROVIDER_SETTINGS.values() for name in row[:2]}

Document = Mapping[str, Any]


def yaml_files() -> list[Path]:
    return [ROOT / "compose.yaml", *sorted(DEPLOY.rglob("*.yaml"))]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def base() -> list[Document]:
    return [d for path in sorted(BASE.glob("*.yaml")) for d in documents(path)]


def of_kind(found: list[Document], *kinds: str) -> list[Document]:
    return [document for document in found if document.get("kind") in kinds]


def name_of(document: Document) -> str:
    name: str = document["metadata"]["name"]
    return name


def pod_of(workload: Document) -> Document:
    pod: Document = workload["spec"]["template"]
    return pod


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def walk(node: object) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a document, however deep."""
    if isinstance(node, Mapping):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


@pytest.fixture(scope="module")
def compose() -> Document:
    (found,) = documents(ROOT / "compose.yaml")
    return found


# -- every file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_is_yaml(path: Path) -> None:
    assert documents(path)


def test_what_a_kustomization_names_exists() -> None:
    missing = []
    for path in DEPLOY.rglob("kustomization.yaml"):
        (told,) = documents(path)
        named = [*told.get("resources", ()), *told.get("components", ())]
        named += [patch["path"] for patch in told.get("patches", ()) if "path" in patch]
        for generator in told.get("configMapGenerator", ()):
            named += [*generator.get("files", ()), *generator.get("envs", ())]
        missing += [f"{path}: {name}" for name in named if not (path.parent / name).exists()]
    assert missing == []


def test_every_file_is_named_by_some_kustomization() -> None:
    named: set[Path] = set()
    for path in DEPLOY.rglob("kustomization.yaml"):
        (told,) = documents(path)
        names = [*told.get("resources", ()), *[p.get("path", "") for p in told.get("patches", ())]]
        named |= {(path.parent / name).resolve() for name in names if name}
    manifests = set((DEPLOY / "kubernetes").rglob("*.yaml"))
    manifests -= {path for path in manifests if path.name == "kustomization.yaml"}
    assert manifests - named == set()


def test_only_settings_that_exist_are_set(compose: Document) -> None:
    told: set[str] = set(env_file(BASE / "settings.env"))
    for service in compose["services"].values():
        told |= set(service.get("environment", {}))
    for path in yaml_files()[1:]:
        for node in [node for document in documents(path) for node in walk(document)]:
            told |= {one["name"] for one in node.get("env", ()) if isinstance(one, Mapping)}
            for literal in node.get("literals", ()):
                told.add(literal.partition("=")[0])
    assert told - SETTINGS - NOT_OURS == set()


def test_no_file_holds_a_secret() -> None:
    secret = re.compile(r"(sk-[a-zA-Z0-9]{8}|BEGIN [A-Z ]*PRIVATE KEY|PASSWORD: [a-zA-Z0-9]{6})")
    files = [ROOT / "compose.yaml", *[path for path in DEPLOY.rglob("*") if path.is_file()]]
    tracked = [path for path in files if not path.name.endswith(".secrets.env")]
    assert [path.name for path in tracked if secret.search(path.read_text())] == []
    assert [
        path for path in tracked if path.suffix == ".yaml" and "kind: Secret\n" in path.read_text()
    ] == []


# -- compose.yaml -------------------------------------------------------------------------------


def fallback(text: str) -> str:
    """What `${NAME:-fallback}` says where nothing is set."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", text)
    return found[1] if found else text


def test_a_container_is_given_longer_than_its_streams(compose: Document) -> None:
    drain = float(fallback(compose["services"]["web"]["environment"]["DRAIN_GRACE_SECONDS"]))
    assert drain == Settings.model_fields["drain_grace_s"].default
    for name in (*COMMANDS, "proxy"):
        grace = fallback(compose["services"][name]["stop_grace_period"])
        assert float(grace.removesuffix("s")) > drain, name


def test_one_service_alone_takes_a_port_so_that_the_rest_scale(compose: Document) -> None:
    services = compose["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"proxy"}
    assert {name for name, service in services.items() if "container_name" in service} == set()
    for name, command in COMMANDS.items():
        assert " ".join(services[name]["command"]) == f"python -m {command}"


def test_every_container_is_checked_and_bounded(compose: Document) -> None:
    for name, service in compose["services"].items():
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        if name != "migrate":
            assert service["healthcheck"]["retries"] >= 3, name
            assert service["healthcheck"]["timeout"], name


def test_the_stores_lose_nothing_and_tell_nothing(compose: Document) -> None:
    valkey = compose["services"]["valkey"]["command"]
    told = dict(zip(valkey[1::2], valkey[2::2], strict=True))
    assert told["--maxmemory-policy"] == "noeviction"
    assert told["--appendonly"] == "yes"
    assert fallback(told["--maxmemory"]) == "512mb"
    postgres = compose["services"]["postgres"]["command"]
    assert {"-clog_error_verbosity=terse", "-clog_min_error_statement=panic"} <= set(postgres)


@pytest.mark.parametrize(
    "path",
    [
        "compose.yaml",
        "deploy/kubernetes/components/valkey-sentinel/start-valkey.sh",
        "deploy/kubernetes/overlays/dev/stores.yaml",
    ],
)
def test_every_valkey_is_started_so(path: str) -> None:
    words = re.sub(r'["\',\\]|^ *- ', " ", (ROOT / path).read_text(), flags=re.MULTILINE)
    said = " ".join(words.split())
    for option in (
        "--appendonly yes",
        "--maxmemory-policy noeviction",
        "--slowlog-max-len 0",
        "--commandlog-large-request-max-len 0",
        "--commandlog-large-reply-max-len 0",
    ):
        assert option in said, option


def test_an_image_is_made_of_named_folders_only() -> None:
    """`COPY . .` would take .env along."""
    copied = re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {word for line in copied for word in line.split()[:-1]}
    assert sources == {"requirements.lock", "ingress", "workers", "shared", "migrations"}


# -- proxies ------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_no_proxy_cuts_or_buffers_a_stream() -> None:
    deadline = float(Settings.model_fields["call_deadline_s"].default)
    largest = Settings.model_fields["max_body_bytes"].default / 2**20
    nginx = (DEPLOY / "nginx.conf").read_text()
    told = dict(re.findall(r"^\s+(\w+) ([^;{]+);", nginx, re.MULTILINE))
    assert told["proxy_buffering"] == "off"
    assert seconds(told["proxy_read_timeout"]) > deadline
    assert float(told["client_max_body_size"].removesuffix("m")) > largest

    (ingress,) = of_kind(base(), "Ingress")
    asked = ingress["metadata"]["annotations"]
    for prefix, off in (("nginx.ingress.kubernetes.io", "off"), ("nginx.org", "false")):
        assert asked[f"{prefix}/proxy-buffering"] == off
        assert seconds(asked[f"{prefix}/proxy-read-timeout"]) > deadline
    assert seconds(asked["haproxy-ingress.github.io/timeout-server"]) > deadline


# -- Kubernetes ---------------------------------------------------------------------------------


def stop_s(deployment: Document, drain_s: float) -> float:
    """How long a pod may take to end: the pause before it is told, and its streams."""
    pauses = [
        container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        for container in pod_of(deployment)["spec"]["containers"]
    ]
    return drain_s + float(max(pauses))


def fleet(found: list[Document]) -> list[Document]:
    return [d for d in of_kind(found, "Deployment") if name_of(d).startswith("ainfera-")]


def check_grace(found: list[Document], settings: Mapping[str, str]) -> None:
    drain = float(settings["DRAIN_GRACE_SECONDS"])
    for deployment in fleet(found):
        grace = pod_of(deployment)["spec"]["terminationGracePeriodSeconds"]
        assert grace > stop_s(deployment, drain), name_of(deployment)


def test_a_pod_is_given_longer_than_its_streams() -> None:
    check_grace(base(), env_file(BASE / "settings.env"))


def test_the_three_processes_run() -> None:
    commands = {
        name_of(d).removeprefix("ainfera-"): " ".join(pod_of(d)["spec"]["containers"][0]["command"])
        for d in fleet(base())
    }
    assert commands == {name: f"python -m {command}" for name, command in COMMANDS.items()}
    images = {
        container["image"]
        for workload in of_kind(base(), "Deployment", "Job")
        for container in pod_of(workload)["spec"]["containers"]
    }
    assert images == {FLEET_IMAGE}


def test_probes_ask_for_routes_that_exist() -> None:
    routes = {getattr(route, "path", None) for route in operations.router.routes}
    asked = {node["httpGet"]["path"] for d in base() for node in walk(d) if "httpGet" in node}
    assert asked == {"/health", "/ready"}
    assert asked <= routes
    (web,) = [d for d in fleet(base()) if name_of(d) == "ainfera-web"]
    (container,) = pod_of(web)["spec"]["containers"]
    # a store that is away takes an instance out of the service; it never starts one again
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    ready_takes = 2 * operations.READY_PATIENCE_S
    assert container["readinessProbe"]["timeoutSeconds"] > ready_takes


def test_a_workers_pulse_is_where_its_probe_looks(compose: Document) -> None:
    pulse = env_file(BASE / "settings.env")["PULSE_FILE"]
    for deployment in fleet(base()):
        (container,) = pod_of(deployment)["spec"]["containers"]
        if container["name"] != "web":
            assert container["startupProbe"]["exec"]["command"] == ["test", "-e", pulse]
            assert f"find {pulse} " in container["livenessProbe"]["exec"]["command"][-1]
    for name in ("inference", "books"):
        service = compose["services"][name]
        assert f"find {service['environment']['PULSE_FILE']} " in service["healthcheck"]["test"][-1]


def test_no_pod_of_ours_may_do_more_than_it_needs() -> None:
    for workload in of_kind(base(), "Deployment", "Job"):
        pod = pod_of(workload)["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            held = container["securityContext"]
            assert held["readOnlyRootFilesystem"] is True
            assert held["allowPrivilegeEscalation"] is False
            assert held["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]["memory"]
            assert "cpu" not in container["resources"]["limits"]


def check_selectors(found: list[Document]) -> None:
    """Each budget, service and spread rule means pods that are there."""
    workloads = of_kind(found, "Deployment", "StatefulSet")
    pods = [pod_of(d)["metadata"]["labels"] for d in workloads]
    meant = [(name_of(d), d["spec"]["selector"]) for d in of_kind(found, "Service")]
    meant += [
        (name_of(d), d["spec"]["selector"]["matchLabels"])
        for d in of_kind(found, "PodDisruptionBudget")
    ]
    meant += [(name_of(d), d["spec"]["selector"]["matchLabels"]) for d in workloads]
    for workload in workloads:
        for rule in pod_of(workload)["spec"].get("topologySpreadConstraints", ()):
            meant.append((name_of(workload), rule["labelSelector"]["matchLabels"]))
    for name, labels in meant:
        assert any(labels.items() <= pod.items() for pod in pods), name


def test_selectors_find_pods() -> None:
    check_selectors(base())
    assert {name_of(d) for d in of_kind(base(), "PodDisruptionBudget")} == {
        "ainfera-web",
        "ainfera-inference",
    }


def test_workers_are_scaled_by_numbers_that_exist() -> None:
    keda = DEPLOY / "kubernetes" / "components" / "keda"
    (scaled,) = documents(keda / "scaled-object.yaml")
    (authentication,) = documents(keda / "trigger-authentication.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] in {name_of(d) for d in fleet(base())}
    asked = [t for t in scaled["spec"]["triggers"] if t["type"] == "metrics-api"]
    known = {
        family.name
        for gauge in vars(counted).values()
        if isinstance(gauge, Gauge)
        for family in gauge.describe()
    }
    assert {t["metadata"]["valueLocation"] for t in asked} <= known
    assert asked[0]["metadata"]["valueLocation"] == "ainfera_queue_ready"
    for trigger in asked:
        told = trigger["metadata"]
        assert told["url"].endswith("/metrics")
        assert told["keyParamName"].lower() == INTERNAL_HEADER.lower()
        assert trigger["authenticationRef"]["name"] == name_of(authentication)
        assert math.isfinite(float(told["targetValue"]))
    (key,) = authentication["spec"]["secretTargetRef"]
    assert key["key"] == Settings.model_fields["internal_key"].validation_alias


@pytest.mark.parametrize("said", ["", "AINFERA_MASTER_KEY=only\n"])
def test_secrets_that_are_not_all_there_are_not_written(said: str, tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "kubernetes/overlays/dev/secrets.sh", tmp_path)
    done = subprocess.run([script], input=said, text=True, capture_output=True)
    assert done.returncode == 2
    assert "fleet secrets --compose | " in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["secrets.sh"]


# -- the overlays, built ------------------------------------------------------------------------


def built(overlay: Path, home: Path) -> list[Document]:
    """What the overlay makes, from a copy with secrets of its own."""
    program = shutil.which("kustomize") or shutil.which("kubectl")
    if program is None:
        pytest.skip("neither kustomize nor kubectl is installed here")
    copy = home / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("*.secrets.env"))
    folder = copy / overlay.relative_to(DEPLOY)
    if (folder / "secrets.sh").exists():
        names = ["AINFERA_MASTER_KEY", "AINFERA_INTERNAL_KEY", "POSTGRES_PASSWORD"]
        names += ["OWNER_PASSWORD", "APP_PASSWORD", "CALLER_PASSWORD", "REDIS_PASSWORD"]
        said = "".join(f"{name}=value-of-{name}=\n" for name in names)
        subprocess.run([folder / "secrets.sh"], input=said, text=True, check=True)
    verb = ["build"] if Path(program).name == "kustomize" else ["kustomize"]
    done = subprocess.run([program, *verb, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: overlay.name)
def test_an_overlay_keeps_the_promises(overlay: Path, tmp_path: Path) -> None:
    found = built(overlay, tmp_path)
    (settings,) = [d for d in of_kind(found, "ConfigMap") if "DRAIN_GRACE_SECONDS" in d["data"]]
    check_grace(found, settings["data"])
    check_selectors(found)
    (namespace,) = {d["metadata"]["namespace"] for d in fleet(found)}
    assert namespace in {name_of(d) for d in of_kind(found, "Namespace")}
    for document in fleet(found):
        (container,) = pod_of(document)["spec"]["containers"]
        assert container["image"].rpartition(":")[2] not in ("", "latest", container["image"])
    for scaled in of_kind(found, "ScaledObject"):
        (worker,) = [d for d in fleet(found) if name_of(d) == "ainfera-inference"]
        assert "replicas" not in worker["spec"], "an apply would undo what KEDA decided"
        services = {name_of(d) for d in of_kind(found, "Service")}
        for trigger in scaled["spec"]["triggers"]:
            if "url" in trigger["metadata"]:
                host = trigger["metadata"]["url"].split("/")[2].split(".")
                assert host[0] in services
                assert host[1] == namespace


def test_a_secret_with_an_equals_sign_survives(tmp_path: Path) -> None:
    (overlay,) = [path for path in OVERLAYS if path.name == "dev"]
    secrets = of_kind(built(overlay, tmp_path), "Secret")
    assert {name.rpartition("-")[0] for name in map(name_of, secrets)} == {
        "ainfera-secrets",
        "ainfera-owner",
        "ainfera-stores",
    }
    written = tmp_path / "deploy" / overlay.relative_to(DEPLOY) / "ainfera.secrets.env"
    assert env_file(written)["AINFERA_MASTER_KEY"] == "value-of-AINFERA_MASTER_KEY="


def test_production_waits_for_the_longest_call() -> None:
    told = documents(OVERLAYS[-1] / "kustomization.yaml")[0]["configMapGenerator"][0]["literals"]
    settings = dict(literal.split("=", 1) for literal in told)
    longest = float(env_file(BASE / "settings.env")["CALL_DEADLINE_SECONDS"])
    assert OVERLAYS[-1].name == "production"
    assert float(settings["DRAIN_GRACE_SECONDS"]) > longest


# -- the audit log's checkpoints ------------------------------------------------------------------


def test_checkpoints_leave_the_database_wherever_the_books_run(compose: Document) -> None:
    """Into a volume that outlives the container, at a place that its user may write to."""
    books = compose["services"]["books"]
    folder = books["environment"]["AUDIT_EXPORT_DIR"]
    assert f"audit:{folder}" in books["volumes"]
    assert "audit" in compose["volumes"]
    assert f"install -d -o 10001 {folder}" in (ROOT / "Dockerfile").read_text()

    (workload,) = [d for d in of_kind(base(), "Deployment") if name_of(d) == "ainfera-books"]
    pod = pod_of(workload)["spec"]
    (container,) = pod["containers"]
    (said,) = [one for one in container["env"] if one["name"] == "AUDIT_EXPORT_DIR"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes[mounts[said["value"]]]["persistentVolumeClaim"]["claimName"]
    assert claim in [name_of(d) for d in of_kind(base(), "PersistentVolumeClaim")]
    # a volume of one node at a time: a second pod before the first has gone would wait for ever
    assert workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_the_books_reach_an_object_store() -> None:
    open_to = [
        policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/name")
        for policy in of_kind(base(), "NetworkPolicy")
        for rule in policy["spec"].get("egress", ())
        if {"port": 443, "protocol": "TCP"} in rule["ports"]
    ]
    assert sorted(open_to) == ["books", "inference"]
