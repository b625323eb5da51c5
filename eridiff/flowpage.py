"""What a page may ask of Prefect's API: look, start, schedule, stop. Never what a deployment's runs execute.

A list of what is allowed: what a later version of Prefect adds is refused until it stands here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NUMBER = r"[0-9a-fA-F-]{36}"
READS = (  # by POST, since they carry a filter
    r"/api/(?:v2/|ui/)?[a-z_]+(?:/latest)?/(?:filter|count|paginate|history|lateness)",
    r"/api/events/count-by/[a-z-]+",
    r"/api/work_pools/[^/]+/(?:queues/filter|workers/filter|get_scheduled_flow_runs)",
    rf"/api/flow_runs/{NUMBER}/input/filter",
    r"/api/ui/(?:flows/count-deployments|flows/next-runs|flow_runs/count-task-runs|task_runs/dashboard/counts)",
    r"/api/ui/schemas/validate",
    r"/api/(?:automations/)?templates/validate",
)
STREAMS = r"/api/(?:events|logs)/out"
# Files of the page itself, which asks for the password, and whether the server is up.
OPEN = r"(?!/api(?:/|$)).*|/api/(?:health|ready)"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Which keys a request's JSON may have. `unset` ones stand in the forms, and may hold nothing."""

    fields: frozenset[str]
    unset: frozenset[str] = frozenset()
    inner: Mapping[str, "Shape"] = field(default_factory=dict)
    many: bool = False  # a list of such objects

    def fault(self, body: Any) -> str | None:
        """The first key that is not a page's to give; None where all are."""
        if self.many:
            return next(filter(None, map(self._fault, body)), None) if isinstance(body, list) else "no list"
        return self._fault(body)

    def _fault(self, body: Any) -> str | None:
        if not isinstance(body, dict):
            return "no object"
        for key, value in body.items():
            if key in self.inner and value is not None and (inside := self.inner[key].fault(value)):
                return f"{key}.{inside}"
            if key not in self.fields | self.inner.keys() and not (key in self.unset and not value):
                return str(key)
        return None


@dataclass(frozen=True, kw_only=True)
class Action:
    """A request that changes something: its method, its path, and the shape of its JSON (None: it may be anything)."""

    method: str
    path: str
    shape: Shape | None = None


def keys(text: str) -> frozenset[str]:
    """Names apart by spaces."""
    return frozenset(text.split())


# A state's `data` may name a file to unpickle; variables of a job are the environment and the command of its process.
STATE = Shape(fields=keys("type name message state_details"), unset=keys("data"))
SET_STATE = Shape(fields=keys("force"), inner={"state": STATE})
SELECTION = Shape(fields=keys("flow_runs limit"))  # a filter, and how many at most
SET_STATES = replace(SET_STATE, fields=SET_STATE.fields | SELECTION.fields)
RUN = Shape(
    fields=keys("name parameters idempotency_key context tags labels empirical_policy enforce_parameter_schema"),
    unset=keys("job_variables work_queue_name infrastructure_document_id parent_task_run_id"),
    inner={"state": STATE},
)
DEPLOYMENT = Shape(
    fields=keys(
        "paused parameters description tags concurrency_limit concurrency_options global_concurrency_limit_id "
        "enforce_parameter_schema parameter_openapi_schema"
    ),
    unset=keys("job_variables work_pool_name work_queue_name"),
)
SCHEDULE = Shape(
    fields=keys("slug active schedule parameters max_scheduled_runs replaces"), unset=keys("job_variables")
)
DEPLOYMENT_PATH = rf"/api/deployments/{NUMBER}"
ACTIONS = (
    *(Action(method="POST", path=path) for path in READS),
    Action(method="POST", path=rf"{DEPLOYMENT_PATH}/create_flow_run", shape=RUN),
    Action(method="POST", path=rf"{DEPLOYMENT_PATH}/(?:pause|resume)_deployment"),
    Action(method="PATCH", path=DEPLOYMENT_PATH, shape=DEPLOYMENT),
    Action(method="POST", path=rf"{DEPLOYMENT_PATH}/schedules", shape=replace(SCHEDULE, many=True)),
    Action(method="PATCH", path=rf"{DEPLOYMENT_PATH}/schedules/{NUMBER}", shape=SCHEDULE),
    Action(method="DELETE", path=rf"{DEPLOYMENT_PATH}/schedules/{NUMBER}"),
    Action(method="POST", path=rf"/api/(?:flow|task)_runs/{NUMBER}/set_state", shape=SET_STATE),
    Action(method="POST", path=r"/api/flow_runs/bulk_set_state", shape=SET_STATES),
    Action(method="POST", path=r"/api/flow_runs/bulk_delete", shape=SELECTION),
    Action(method="POST", path=rf"/api/flow_runs/{NUMBER}/resume"),
    Action(method="DELETE", path=rf"/api/(?:flow|task)_runs/{NUMBER}"),
    Action(method="PATCH", path=r"/api/v2/concurrency_limits/[^/]+"),  # how many may hold a GPU
    Action(method="PUT", path=r"/api/saved_searches/"),
    Action(method="DELETE", path=rf"/api/saved_searches/{NUMBER}"),
)


class FlowPage:
    """The rules of Prefect's pages, as the gate asks for them."""

    def action(self, method: str, path: str) -> Action | None:
        """What a page's request would do; None where it is not a page's to ask."""
        return next((one for one in ACTIONS if one.method == method and re.fullmatch(one.path, path)), None)

    def may_listen(self, path: str) -> bool:
        """Whether a page may open a WebSocket there."""
        return re.fullmatch(STREAMS, path) is not None

    def is_open(self, path: str) -> bool:
        """Whether this may be read without the password."""
        return re.fullmatch(OPEN, path, re.DOTALL) is not None
