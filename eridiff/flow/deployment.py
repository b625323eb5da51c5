"""What `make serve` registers with Prefect's server: its runs' books closed, its form kept up to date."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eridiff.core.errors import EridiffError
from eridiff.core.progress import say
from eridiff.flow.api import address, request
from eridiff.flow.form import form_schema

LATE = timedelta(hours=1)  # a scheduled run that is later than this when `serve` starts is dropped
SECONDS = 10.0  # between two looks at what there is to choose from
GONE = "it ended with the `make serve` that ran it; what was finished is kept"


def close_books(deployment: str) -> None:
    """Close the books of an earlier `serve` that was killed: its runs ended with it, and missed nights are missed."""
    for run in _runs(deployment, {"state": {"type": {"any_": ["RUNNING", "CANCELLING", "PENDING"]}}}):
        request(
            "POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CRASHED", "message": GONE}, "force": True}
        )
    due = {"before_": (datetime.now(UTC) - LATE).isoformat()}
    late = {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": due}
    while missed := [run for run in _runs(deployment, late) if run["auto_scheduled"]]:
        for run in missed:
            request("DELETE", f"/flow_runs/{run['id']}")


def _runs(deployment: str, those: dict[str, Any]) -> list[dict[str, Any]]:
    """Some of its runs, 200 at most."""
    body = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": those}
    found: list[dict[str, Any]] = request("POST", "/flow_runs/filter", body)
    return found


def keep_form(root: Path, deployment: str) -> None:
    """Keep the form's choices those of the checkout, for ever: projects and presets come and go."""
    last: dict[str, Any] = {}
    wrong = ""
    while True:
        try:
            schema = form_schema(root)
            if schema != last:
                request("PATCH", f"/deployments/{deployment}", {"parameter_openapi_schema": schema})
                say("serve: the form is up to date" if last else f"serve: ready at {address().removesuffix('/api')}")
            last, wrong = schema, ""
        except (EridiffError, OSError) as error:
            if str(error) != wrong:
                wrong = str(error)
                say(f"serve: the form stays as it was: {wrong}")
        time.sleep(SECONDS)
