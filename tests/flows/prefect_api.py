"""Ask a Prefect server over HTTP, as its own clients do."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

PATIENCE = 240  # seconds; a server and a run start slowly on a busy machine


def asked(url: str, body: object | None = None) -> Any:
    """What Prefect's API answers; asked again while its SQLite database is locked (status 503)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - the server that we started
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
