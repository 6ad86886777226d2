"""Servers are named in `stillhouse.toml`; credentials come from the environment and go nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.state import CREDENTIALS, Checkout, Servers, adopt, find_checkout
from tasks.core.errors import ParamsError

SECRETS = {name: f"swordfish-{name}" for names in CREDENTIALS.values() for name in names}
STRAYS = {"MLFLOW_EXPERIMENT_NAME": "theirs", "PREFECT_API_URL": "http://theirs"}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | STRAYS).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("servers", "kept"),
    [
        (Servers(), ()),
        (Servers(mlflow="https://m.example.org"), CREDENTIALS["mlflow"]),
        (Servers(prefect="https://p.example.org/api"), CREDENTIALS["prefect"]),
    ],
)
def test_credentials_are_kept_for_a_server_that_is_named_and_nothing_else_is(
    tmp_path: Path, servers: Servers, kept: tuple[str, ...]
) -> None:
    checkout = Checkout(tmp_path, tmp_path, servers)

    adopt(checkout)

    for environment in (checkout.environment(), dict(os.environ)):
        assert {n: v for n, v in environment.items() if n in SECRETS} == {
            n: SECRETS[n] for n in kept
        }
        assert "MLFLOW_EXPERIMENT_NAME" not in environment
        assert environment.get("PREFECT_API_URL") == servers.prefect


@pytest.mark.parametrize(
    "line",
    [
        'mlflow = "https://ann:swordfish@m.example.org"',
        'prefect = "https://ann:swordfish@p.example.org/api"',
        'mlflow = "ann:swordfish@m.example.org"',
        'mlflow = ["https://ann:swordfish@m.example.org"]',
        'mlfow = "https://ann:swordfish@m.example.org"',
        'mlflow = "https://ann:swordfish@m.example.org',
    ],
)
def test_no_error_quotes_the_credentials_of_a_url(tmp_path: Path, line: str) -> None:
    for needed in ("dvc.yaml", "params.yaml"):
        (tmp_path / needed).touch()
    (tmp_path / "stillhouse.toml").write_text(line)

    with pytest.raises(ParamsError) as caught:
        find_checkout(tmp_path)

    assert "stillhouse.toml" in str(caught.value)
    assert "swordfish" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_that_is_started_reports_home_or_opens_a_pickle(tmp_path: Path) -> None:
    found = Checkout(tmp_path, tmp_path, Servers()).environment()
    assert (
        found.items()
        >= {
            "DO_NOT_TRACK": "true",
            "DVC_NO_ANALYTICS": "1",
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }.items()
    )


@pytest.mark.parametrize("said", ["", "10.0.0.1", "*"])
def test_a_proxy_is_not_asked_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("no_proxy", said)
    checkout = Checkout(tmp_path, tmp_path, Servers())
    adopt(checkout)
    adopt(checkout)
    expected = said if said == "*" else ",".join([*filter(None, [said]), "127.0.0.1", "localhost"])
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (expected, expected)


def test_a_url_with_credentials_says_where_they_belong() -> None:
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_USERNAME or") as caught:
        Servers(mlflow="https://ann:swordfish@m.example.org")

    assert "swordfish" not in str(caught.value)
