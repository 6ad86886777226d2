"""Where a checkout keeps its own state, and the environment its processes run in.

Everything that belongs to one checkout (Prefect's home, MLflow's database and artefacts, sealed
bundles, locks, logs) lies in `.stillhouse/`. A server of the team is chosen in `stillhouse.toml`,
never picked up by accident from the environment.
"""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.core.errors import ParamsError, StillhouseError
from tasks.core.params import Section, check, read

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
CREDENTIALS = {  # of a server that `stillhouse.toml` names; kept in the environment alone
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    "prefect": ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"),
}


class Interrupted(StillhouseError):  # noqa: N818 - asked for, so no error
    """Somebody asked the run to stop, and it did."""

    exit_code = 130


def one_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none.

    >>> one_line(ValueError("bad\\nworse"))
    'bad'
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class Servers(Section):
    """`stillhouse.toml`, optional: URLs of servers that a team shares, without credentials."""

    model_config = ConfigDict(hide_input_in_errors=True)

    mlflow: str | None = None
    prefect: str | None = None

    @model_validator(mode="before")  # on the whole, so that no message quotes the URL
    @classmethod
    def _without_credentials(cls, content: dict[str, Any]) -> dict[str, Any]:
        for server, names in CREDENTIALS.items():
            if "@" in str(content.get(server)):
                said = "{server}: a URL may hold no user and password; set {names} instead"
                told = {"server": server, "names": " or ".join(names)}
                raise PydanticCustomError("credentials", said, told)
        return content

    @field_validator("mlflow", "prefect")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must be a URL, http:// or https://")
        return url

    @property
    def credentials(self) -> frozenset[str]:
        """Environment variables that the named servers may ask for."""
        return frozenset(n for s, names in CREDENTIALS.items() if getattr(self, s) for n in names)


@dataclass(frozen=True)
class Checkout:
    """One working tree of the project. `home` is the checkout whose state it uses: itself, or, for
    a workspace under `runs/`, the checkout that made it."""

    root: Path
    home: Path
    servers: Servers

    @property
    def state(self) -> Path:
        return self.home / ".stillhouse"

    @property
    def bundles(self) -> Path:
        return self.state / "bundles"

    @property
    def own(self) -> Path:
        """What belongs to this working tree alone: its logs, its running stages, its run lock."""
        return self.root / ".stillhouse"

    @property
    def logs(self) -> Path:
        return self.own / "logs"

    @property
    def running(self) -> Path:
        """One record per process that a run has started and not yet seen end."""
        return self.own / "running"

    @property
    def shipped(self) -> tuple[str, ...]:
        """`distill.ship` of `params.yaml`: the students that ship."""
        distill = read(self.root / "params.yaml").get("distill")
        ship = distill.get("ship") if isinstance(distill, dict) else None
        if not isinstance(ship, list) or not all(isinstance(student, str) for student in ship):
            raise ParamsError("params.yaml: distill.ship: must be a list of rungs; name one")
        return tuple(ship)

    @property
    def artifacts(self) -> str:
        """Absolute location of MLflow's artefacts, for the experiment."""
        return (self.state / "artifacts").as_uri()

    @property
    def database(self) -> Path | None:
        """MLflow's SQLite file; None where the team has a server."""
        return None if self.servers.mlflow else self.state / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        return self.servers.mlflow or f"sqlite:///{self.database}"

    def environment(self) -> dict[str, str]:
        """The environment of every process we start: `bin` first, no telemetry, no stray server."""
        strays = self.strays()
        kept = {k: v for k, v in os.environ.items() if k not in strays}
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the flow says what failed
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_REGISTRY_URI": self.tracking_uri,
        }
        own |= dict.fromkeys(("no_proxy", "NO_PROXY"), _no_proxy())
        if self.servers.prefect:
            own["PREFECT_API_URL"] = self.servers.prefect
        return kept | TELEMETRY_OFF | own

    def strays(self) -> set[str]:
        """Variables that could name or configure a server that `stillhouse.toml` does not."""
        found = {name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))}
        return found - self.servers.credentials


def _no_proxy() -> str:
    """Hosts that are asked without a proxy: those that the user says, and this machine, where our
    own servers are."""
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if said.strip() == "*":  # all hosts; it means that alone
        return said
    return ",".join(dict.fromkeys([*filter(None, said.split(",")), "127.0.0.1", "localhost"]))


def find_checkout(start: Path | None = None) -> Checkout:
    """The checkout that holds `start` (default: the working directory)."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            link = folder / ".stillhouse" / "home"
            home = Path(link.read_text().strip()) if link.is_file() else folder
            return Checkout(folder, home, _servers(home / "stillhouse.toml"))
    raise ParamsError(f"{here}: no dvc.yaml and params.yaml here or above; cd into a checkout")


def _servers(path: Path) -> Servers:
    if not path.is_file():
        return Servers()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid TOML ({error}); mend it") from None
    return check(Servers, content, where=str(path))


def adopt(checkout: Checkout) -> None:
    """Give this process the checkout's environment; call before Prefect or MLflow is imported."""
    checkout.state.mkdir(parents=True, exist_ok=True)
    checkout.own.mkdir(parents=True, exist_ok=True)
    for name in checkout.strays():
        del os.environ[name]
    os.environ.update(checkout.environment())
