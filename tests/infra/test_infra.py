"""The files for a team's servers, as far as they can be tried without a container engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from flows.state import TELEMETRY_OFF, Servers

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("prefect", "mlflow", "worker")
SECRET = re.compile(r"\$\{STILLHOUSE_DB_PASSWORD:\?[^}]+\}")
DOCKERFILE = (INFRA / "Dockerfile").read_text()


def environment(service: str) -> dict[str, str]:
    return {k: SECRET.sub("swordfish", v) for k, v in SERVICES[service]["environment"].items()}


def said(*command: str, **variables: str) -> str:
    """What a program of this environment prints."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env=own | {"COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_four_services_wait_for_whom_they_need_until_it_is_well() -> None:
    needs = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in SERVICES.items()
    }

    healthy = "service_healthy"
    assert needs == {
        "postgres": {},
        "prefect": {"postgres": healthy},
        "mlflow": {"postgres": healthy},
        "worker": {"prefect": healthy, "mlflow": healthy},
    }
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in SERVICES.values())


def test_every_image_is_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)

    for image in [*bases, *(service["image"] for service in SERVICES.values())]:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", image), image


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service for service in SERVICES.values())


def test_no_password_is_written_down_and_a_missing_one_stops_compose() -> None:
    values = {
        f"{name}.{key}": value
        for name, service in SERVICES.items()
        for key, value in service["environment"].items()
        if "PASSWORD" in key or "@" in value
    }

    assert len(values) == 3
    assert all(SECRET.search(value) for value in values.values()), values
    assert (INFRA / "env.example").read_text().endswith("STILLHOUSE_DB_PASSWORD=\n")
    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_every_volume_is_named_and_every_mounted_file_is_there() -> None:
    mounts = [m.split(":")[0] for s in SERVICES.values() for m in s.get("volumes", [])]

    assert {m for m in mounts if not m.startswith(".")} == set(COMPOSE["volumes"])
    assert all((INFRA / m).is_file() for m in mounts if m.startswith("."))


@pytest.mark.parametrize("service", OURS)
def test_telemetry_is_off(service: str) -> None:
    off = {k: v for k, v in TELEMETRY_OFF.items() if "PICKLE" not in k}

    assert environment(service).items() >= off.items()


@pytest.mark.parametrize("service", OURS)
def test_the_command_and_its_options_exist(service: str) -> None:
    command = [word.split("=")[0] for word in SERVICES[service]["command"]]
    options = [word for word in command if word.startswith("--")]
    words = [w for w in command[:3] if not w.startswith("-")]  # a program and its sub-commands

    known = re.findall(r"--[a-z-]+", said(*words, "--help"))

    assert options
    assert set(options) <= set(known)


@pytest.mark.parametrize("service", ["prefect", "worker"])
def test_prefect_knows_every_setting(service: str, tmp_path: Path) -> None:
    ours = {k: v for k, v in environment(service).items() if k.startswith("PREFECT_")}

    shown = said("prefect", "config", "view", PREFECT_HOME=str(tmp_path), **ours)

    from_env = set(re.findall(r"^(PREFECT_\w+)='.*' \(from env\)", shown, re.MULTILINE))
    assert set(ours) <= from_env
    assert "swordfish" not in shown


def test_each_server_has_its_own_database() -> None:
    made = set(re.findall(r"CREATE DATABASE (\w+);", (INFRA / "databases.sql").read_text()))

    uri = environment("mlflow")["MLFLOW_BACKEND_STORE_URI"]
    used = {environment("prefect")["PREFECT_SERVER_DATABASE_NAME"], uri.rpartition("/")[2]}
    assert used == made
    assert "@postgres:5432/" in uri
    assert uri.startswith("postgresql+psycopg2://")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("mlflow:5000", True), ("127.0.0.1:5000", True), ("evil.example.org", False)],
)
def test_mlflow_answers_to_its_own_names_only(host: str, allowed: bool) -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    (option,) = [w for w in SERVICES["mlflow"]["command"] if w.startswith("--allowed-hosts=")]

    assert is_allowed_host_header(option.partition("=")[2].split(","), host) is allowed


def test_the_worker_finds_the_servers_by_their_names() -> None:
    servers = Servers.model_validate(tomllib.loads((INFRA / "stillhouse.toml").read_text()))

    assert servers.prefect == environment("worker")["PREFECT_API_URL"]
    assert servers.mlflow == "http://mlflow:5000"


def test_the_image_is_built_from_files_that_are_there_by_a_user_who_is_not_root() -> None:
    sources = re.findall(r"^COPY --chown=\w+ (\S+) \S+$", DOCKERFILE, re.MULTILINE)
    scripts = re.findall(r"(?:--requirement|--constraint) (\S+)", DOCKERFILE)
    checks = [s["healthcheck"]["test"][2] for n, s in SERVICES.items() if n in OURS]

    assert sources == [".", "infra/stillhouse.toml"]
    assert all((ROOT / name).exists() for name in [*sources, *scripts, *checks])
    assert DOCKERFILE.index("\nUSER stillhouse\n") < DOCKERFILE.index("\nCOPY ")
    pins = [
        line
        for line in (INFRA / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert not re.search(r"^\.git$", (INFRA / "Dockerfile.dockerignore").read_text(), re.MULTILINE)


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()


@pytest.mark.parametrize(("path", "well"), [("/health", True), ("/ill", False)])
def test_the_health_check_tells_an_answer_from_a_refusal(path: str, well: bool) -> None:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}{path}"

        done = subprocess.run([sys.executable, str(INFRA / "healthy.py"), url], check=False)

    assert (done.returncode == 0) is well
