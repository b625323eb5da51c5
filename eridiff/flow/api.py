"""The API of a Prefect server by plain HTTP: what starts in no time and must run where prefect does not."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

BUSY, ATTEMPTS, PAUSE = (429, 502, 503), 20, 0.5  # such as while SQLite writes for another


def address() -> str:
    """Where the server answers, such as http://127.0.0.1:4200/api."""
    return os.environ["PREFECT_API_URL"].rstrip("/")


def basic(credentials: str) -> dict[str, str]:
    """The header of USER:PASSWORD, as Prefect's clients send it."""
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


def request(method: str, path: str, body: Any = None) -> Any:
    """Ask the server that PREFECT_API_URL names; its answer.

    Raises: OSError (HTTPError where the server answers with one).
    """
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers |= basic(password)
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    for attempt in range(ATTEMPTS):
        asked = urllib.request.Request(address() + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code not in BUSY or attempt == ATTEMPTS - 1:
                raise
        time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")
