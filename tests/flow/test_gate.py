"""The gate before the served page, by messages of ASGI: strangers, pages, those who hold the secret."""

import base64
import importlib.util
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eridiff.core.errors import ConfigError
from eridiff.flow import server as flowserver
from eridiff.flow.access import FILE, NONCE, PROOF, Keys, local_secret, proof, read_names
from eridiff.flow.allowed import FlowPage
from eridiff.flow.form import form_schema
from eridiff.flow.gate import LARGEST, SAFE, Gate
from eridiff.machine.local import LocalConfig
from tests.support.checkouts import ROOT

OURS = "127.0.0.1:4200"
PAGE = {"origin": f"http://{OURS}", "sec-fetch-site": "same-origin"}
SECRET, PASSWORD = "eridiff:" + "s" * 43, "me:of ours"
NUMBER = "01234567-89ab-cdef-0123-456789abcdef"
DEPLOYMENT = f"/api/deployments/{NUMBER}"
RUN = f"{DEPLOYMENT}/create_flow_run"
STEPS = {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/owned"}}]}


class Served:
    """An application that answers everything, with a leave for all pages, behind the gate; it keeps what came."""

    def __init__(self, password: str | None = None, names: tuple[str, ...] = ()) -> None:
        self.log: list[str] = []
        self.came: list[tuple[dict[str, Any], bytes]] = []
        keys = Keys(names=read_names(names), secret=SECRET, password=password)
        self.gate = Gate(self.answer, keys, FlowPage(), self.log.append)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self.stream(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.came.append((scope, body))
        leave = [(b"Access-Control-Allow-Origin", b"*"), (b"access-control-allow-headers", b"x"), (b"kept", b"yes")]
        await send({"type": "http.response.start", "status": 200, "headers": leave})
        await send({"type": "http.response.body", "body": b"fine"})

    async def stream(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            self.came.append((scope, message["text"].encode()))
            await send({"type": "websocket.send", "text": "news"})

    def ask(
        self, method: str, path: str, headers: dict[str, str] | list[tuple[str, str]], body: bytes = b"{}"
    ) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer; the Host is ours unless it is given."""
        pairs = list(headers.items()) if isinstance(headers, dict) else headers
        if not any(name == "host" for name, _ in pairs):
            pairs = [("host", OURS), *pairs]
        parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []
        self.drive(
            {"type": "http", "method": method, "path": path, "headers": encoded(pairs), "server": ("127.0.0.1", 4200)},
            parts,
            sent,
        )
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}

    def connect(self, path: str, headers: dict[str, str], *texts: str) -> list[Any]:
        """What a client of a WebSocket gets who then says some words and leaves."""
        parts: list[Any] = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": t} for t in texts)]
        parts.append({"type": "websocket.disconnect", "code": 1000})
        sent: list[Any] = []
        scope = {"type": "websocket", "path": path, "headers": encoded(list({"host": OURS, **headers}.items()))}
        self.drive(scope, parts, sent)
        return sent

    def drive(self, scope: Any, parts: list[Any], sent: list[Any]) -> None:
        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        with pytest.raises(StopIteration):  # its end: nothing here waits, so no loop of events is needed
            self.gate(scope, receive, send).send(None)


def encoded(pairs: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in pairs]


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def auth(token: str) -> str:
    return json.dumps({"type": "auth", "token": token})


@pytest.fixture
def served() -> Served:
    return Served()


# Strangers


STRANGERS = {
    "rebound name": {"host": "evil.example:4200"},
    "rebound name that is its page's own": {"host": "evil.example:4200", "origin": "http://evil.example:4200"},
    "our name within another": {"host": "127.0.0.1.evil.example"},
    "our name before a sign": {"host": "127.0.0.1@evil.example"},
    "any address": {"host": "0.0.0.0:4200"},
    "empty host": {"host": ""},
    "foreign page": {"origin": "http://evil.example"},
    "null": {"origin": "null"},
    "empty origin": {"origin": ""},
    "page of another port": {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-site"},
    "page of our other name": {"origin": "http://localhost:4200"},
    "page whose name begins as ours": {"origin": f"http://{OURS}.evil.example"},
    "page of another scheme": {"origin": f"ftp://{OURS}"},
    "picture or link of a foreign page": {"sec-fetch-site": "cross-site"},
    "picture or link of another port": {"sec-fetch-site": "same-site"},
    "unknown word": {"sec-fetch-site": "of-tomorrow"},
}


@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_strangers_are_refused_whatever_they_carry(served: Served, headers: dict[str, str], method: str) -> None:
    status, answer = served.ask(method, RUN, {**headers, **basic(SECRET)})
    assert status == 403 and served.came == []
    assert not [name for name in answer if name.startswith("access-control")]
    (line,) = served.log
    assert line.startswith(f"refused: {method} {RUN}: ") and "\n" not in line


@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions"])
def test_strangers_open_no_websocket(served: Served, headers: dict[str, str], path: str) -> None:
    assert [message["type"] for message in served.connect(path, {**headers, **basic(SECRET)})] == ["websocket.close"]
    assert served.came == [] and len(served.log) == 1


@pytest.mark.parametrize("name", ["host", "origin", "sec-fetch-site", "authorization"])
def test_a_header_that_comes_twice_is_refused(served: Served, name: str) -> None:
    good = {"host": OURS, **PAGE, **basic(SECRET)}
    assert served.ask("GET", "/", [*good.items(), (name, good[name])])[0] == 400


def test_a_request_without_a_host_is_refused() -> None:
    served, sent = Served(), list[Any]()
    served.drive({"type": "http", "method": "GET", "path": "/", "headers": []}, [], sent)
    assert sent[0]["status"] == 403


def test_a_refusal_is_one_line_whatever_stands_in_it(served: Served) -> None:
    served.ask("POST", "/api/\nerror: \x1b[2Jforged/" + "x" * 1000, {"origin": "http://\x1b]0;evil\x07"})
    (line,) = served.log
    assert line.isprintable() and line.isascii() and len(line) < 500


@pytest.mark.slow
@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE", "OPTIONS"]) | st.text(max_size=8),
    path=st.sampled_from([RUN, DEPLOYMENT, "/api/deployments/", "/"]) | st.text(max_size=40),
    headers=st.dictionaries(
        st.sampled_from(["host", "origin", "sec-fetch-site", "authorization", "content-length"]),
        st.sampled_from([OURS, PAGE["origin"], "same-origin", basic(SECRET)["authorization"]])
        | st.text(st.characters(max_codepoint=255), max_size=30),
    ),
    body=st.binary(max_size=60) | st.sampled_from([b'{"\\ud800\\n\\u001b[2J": 1}', json.dumps(STEPS).encode()]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_is_let_through_or_refused_in_one_line(
    method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    served = Served()
    status, _ = served.ask(method, path, headers, body)
    assert (status == 200) is (len(served.came) == 1) is (served.log == [])
    assert all(line.isascii() and line.isprintable() and len(line) < 1000 for line in served.log)
    named = headers.get("host", OURS) == OURS or re.fullmatch(r"127\.0\.0\.1(:\d+)?", headers["host"])
    if status == 200:
        assert named and headers.get("origin") in (None, f"http://{headers.get('host', OURS)}")
        assert method in SAFE or "origin" in headers or headers["authorization"] == basic(SECRET)["authorization"]


# Those without a page


@pytest.mark.parametrize("host", [OURS, "localhost:4200", "[::1]:4200", "LOCALHOST", "127.0.0.1:5000"])
def test_anyone_here_may_read(served: Served, host: str) -> None:
    """Under each of our names; the port is another at the near end of a tunnel."""
    assert served.ask("GET", "/api/health", {"host": host})[0] == 200
    assert served.ask("POST", RUN, {"host": host, **basic(SECRET)})[0] == 200
    assert served.ask("POST", RUN, {"host": host, "origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE", "TRACE", "ANY"])
def test_changing_something_without_a_page_takes_the_secret(served: Served, method: str) -> None:
    for wrong in ({}, basic("eridiff:guess"), basic(""), {"authorization": "Basic !"}, {"authorization": SECRET}):
        assert served.ask(method, "/api/deployments/", wrong)[0] == 401
    assert served.came == [] and len(served.log) == 5 and SECRET not in str(served.log)
    assert served.ask(method, "/api/deployments/", basic(SECRET), b"any")[0] == 200
    assert served.came[0][1] == b"any"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_changes_nothing(served: Served, kind: str) -> None:
    """A page of a browser that sends no Origin with it does not exist; here is one."""
    assert served.ask("POST", "/api/deployments/", {"content-type": kind})[0] == 401


# Our page


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", RUN, {"parameters": {"overrides": {"train": {"steps": 5}}}, "state": {"type": "SCHEDULED"}}),
        ("POST", RUN, {"job_variables": {}, "work_queue_name": None, "state": {"type": "SCHEDULED", "data": None}}),
        ("POST", f"{DEPLOYMENT}/schedules", [{"active": True, "schedule": {"cron": "0 22 * * *"}}]),
        ("PATCH", f"{DEPLOYMENT}/schedules/{NUMBER}", {"active": False}),
        ("DELETE", f"{DEPLOYMENT}/schedules/{NUMBER}", {}),
        ("POST", f"{DEPLOYMENT}/pause_deployment", {}),
        ("PATCH", DEPLOYMENT, {"paused": True}),
        ("PATCH", DEPLOYMENT, {"parameters": {"project": "cats"}, "job_variables": {}, "work_pool_name": None}),
        ("POST", f"/api/flow_runs/{NUMBER}/set_state", {"state": {"type": "CANCELLING"}, "force": True}),
        ("POST", f"/api/flow_runs/{NUMBER}/resume", {}),
        ("DELETE", f"/api/flow_runs/{NUMBER}", {}),
        ("POST", "/api/flow_runs/bulk_set_state", {"flow_runs": {}, "state": {"type": "CANCELLED"}, "limit": 5}),
        ("POST", "/api/flow_runs/bulk_delete", {"flow_runs": {"id": {"any_": [NUMBER]}}}),
        ("POST", f"/api/flow_runs/{NUMBER}/input/filter", {"prefix": "keyset"}),
        ("POST", "/api/work_pools/any name/get_scheduled_flow_runs", {}),
        ("POST", "/api/flow_runs/filter", {"limit": 5}),
        ("POST", "/api/ui/flows/next-runs", {}),
        ("POST", "/api/work_pools/any name/queues/filter", {}),
        ("POST", "/api/events/count-by/day", {}),
    ],
)
def test_our_page_may_look_start_schedule_and_stop(served: Served, method: str, path: str, body: Any) -> None:
    assert served.ask(method, path, PAGE, json.dumps(body).encode())[0] == 200
    assert json.loads(served.came[0][1]) == body
    assert served.log == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/deployments/", {"name": "x", **STEPS}),
        ("POST", "/api/deployments", {"name": "x", **STEPS}),
        ("PATCH", DEPLOYMENT, STEPS),
        ("PATCH", DEPLOYMENT, {"paused": False, "entrypoint": "evil.py:main"}),
        ("PATCH", DEPLOYMENT, {"path": "/tmp"}),
        ("PATCH", DEPLOYMENT, {"pull_steps": None}),
        ("PATCH", DEPLOYMENT, {"job_variables": {"env": {"LD_PRELOAD": "/tmp/evil.so"}}}),
        ("PATCH", DEPLOYMENT, {"work_pool_name": "evil"}),
        ("PATCH", DEPLOYMENT, {"of_tomorrow": 1}),
        ("PATCH", DEPLOYMENT, [STEPS]),
        ("DELETE", DEPLOYMENT, {}),
        ("POST", RUN, {"job_variables": {"command": "evil"}}),
        ("POST", RUN, {"state": {"type": "COMPLETED", "data": {"storage_key": "/tmp/evil.pickle"}}}),
        ("POST", f"{DEPLOYMENT}/schedules", [{"active": True}, {"job_variables": {"env": {"A": "b"}}}]),
        ("POST", f"{DEPLOYMENT}/schedules", {"active": True}),
        ("POST", f"/api/flow_runs/{NUMBER}/set_state", {"state": {"type": "COMPLETED", "data": "x"}}),
        ("POST", "/api/flow_runs/bulk_set_state", {"state": {"type": "COMPLETED", "data": "x"}}),
        ("POST", "/api/flow_runs/bulk_set_state", [{"state": {"type": "CANCELLED"}}]),
        ("POST", "/api/flow_runs/bulk_set_state", {"state": {"type": "CANCELLED"}, "of_tomorrow": 1}),
        ("POST", "/api/flow_runs/bulk_delete", {"deployments": {}}),
        ("POST", f"/api/flow_runs/{NUMBER}/input", {"key": "k", "value": "v"}),
        ("POST", "/api/flows/bulk_delete", {}),
        ("POST", f"{DEPLOYMENT}/create_flow_run/bulk", [{}]),
        ("POST", "/api/deployments/bulk_delete", {}),
        ("POST", "/api/flow_runs/", {}),
        ("PATCH", f"/api/flow_runs/{NUMBER}", {"job_variables": {}}),
        ("POST", "/api/work_pools/", {}),
        ("PATCH", "/api/work_pools/mine", {}),
        ("POST", "/api/block_documents/", {}),
        ("PATCH", f"/api/block_documents/{NUMBER}", {}),
        ("POST", "/api/automations/", {}),
        ("PUT", f"/api/automations/{NUMBER}", {}),
        ("POST", "/api/variables/", {}),
        ("PUT", "/api/admin/storage", {}),
        ("POST", "/api/events", []),
        ("POST", "/api/logs/", []),
        ("POST", "/api/artifacts/", {}),
        ("POST", f"//api/deployments/{NUMBER}/create_flow_run", {}),
        ("POST", f"{RUN}\n", {}),
        ("POST", f"/api/deployments/../deployments/{NUMBER}/create_flow_run", {}),
        ("POST", "/something/of/tomorrow", {}),
    ],
)
@pytest.mark.parametrize("more", [{}, basic(SECRET)], ids=["a page", "a page with the secret"])
def test_our_page_never_says_what_a_run_executes(
    served: Served, method: str, path: str, body: Any, more: dict[str, str]
) -> None:
    assert served.ask(method, path, {**PAGE, **more}, json.dumps(body).encode())[0] == 403
    assert served.came == [] and len(served.log) == 1


# What Prefect's newer page can ask and may not: it makes or changes what runs execute, or who executes them.
REFUSED = {
    *(f"{method} /automations/{{id}}" for method in ("DELETE", "PATCH", "PUT")),
    *(f"{method} /block_documents/{{id}}" for method in ("DELETE", "PATCH")),
    *(f"{method} /variables/{{id}}" for method in ("DELETE", "PATCH")),
    *(f"{method} /work_pools/{{name}}" for method in ("DELETE", "PATCH")),
    *(f"{method} /work_pools/{{work_pool_name}}/queues/{{name}}" for method in ("DELETE", "PATCH")),
    *(f"{method} /admin/storage" for method in ("DELETE", "PUT")),
    *(f"POST /{kind}/" for kind in ("automations", "block_documents", "deployments", "variables", "work_pools")),
    *(f"POST /{kind}/" for kind in ("concurrency_limits", "v2/concurrency_limits")),
    "POST /work_pools/{work_pool_name}/queues",
    "POST /concurrency_limits/tag/{tag}/reset",
    "DELETE /concurrency_limits/{id}",
    "DELETE /v2/concurrency_limits/{id_or_name}",
    "DELETE /deployments/{id}",
    "DELETE /flows/{id}",
    "DELETE /work_pools/{work_pool_name}/workers/{name}",
}


def test_each_request_of_prefects_page_is_judged() -> None:
    """Read from its code: what another version of Prefect asks besides must be put on one of the two lists."""
    spec = importlib.util.find_spec("prefect")
    assert spec and spec.submodule_search_locations
    scripts = Path(spec.submodule_search_locations[0]).glob("server/ui-v2/assets/*.js")
    calls = re.compile(r"""\.(POST|PATCH|PUT|DELETE)\(["'`](/[^"'`]+)""")
    asked = {found for path in scripts for found in calls.findall(path.read_text("utf-8"))}
    assert len(asked) > 50
    filled = {(method, path): re.sub(r"\{\w+\}", NUMBER, f"/api{path}") for method, path in asked}
    filled["POST", "/events/count-by/{countable}"] = "/api/events/count-by/day"
    refused = {f"{call[0]} {call[1]}" for call, path in filled.items() if FlowPage().action(call[0], path) is None}
    assert refused == REFUSED


def test_a_browser_that_leaves_the_origin_out_is_a_page_all_the_same(served: Served) -> None:
    for site in ("same-origin", "none"):
        assert served.ask("POST", "/api/deployments/", {"sec-fetch-site": site, **basic(SECRET)})[0] == 403
        assert served.ask("POST", RUN, {"sec-fetch-site": site})[0] == 401  # no browser's
        assert served.ask("POST", RUN, {"sec-fetch-site": site, **basic(SECRET)})[0] == 200
        assert served.ask("GET", "/", {"sec-fetch-site": site})[0] == 200


def test_what_was_judged_is_what_goes_on(served: Served) -> None:
    """Of two equal keys the last counts, for the gate and, since it writes the body anew, for the application."""
    body = b'{"paused": true, "tags": ["caf\xc3\xa9"], "parameters": {"a": 1}, "parameters": {"b": 2}}'
    headers = {**PAGE, "content-length": str(len(body)), "content-type": "text/plain"}
    assert served.ask("PATCH", DEPLOYMENT, headers, body)[0] == 200
    scope, came = served.came[0]
    assert json.loads(came) == {"paused": True, "tags": ["café"], "parameters": {"b": 2}} and came.count(b"param") == 1
    went_on = dict(scope["headers"])
    assert went_on[b"content-length"] == str(len(came)).encode() and went_on[b"content-type"] == b"application/json"
    twice = b'{"job_variables": {}, "job_variables": {"env": {"A": "b"}}}'
    assert served.ask("PATCH", DEPLOYMENT, PAGE, twice)[0] == 403
    assert (
        served.ask("PATCH", DEPLOYMENT, PAGE, b'{"job_variables": {"env": {"A": "b"}}, "job_variables": {}}')[0] == 200
    )
    assert json.loads(served.came[-1][1]) == {"job_variables": {}}


NO_JSON = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000]
LIKE_JSON = [b'{"paused": NaN}', b'{"parameters": {"a": 1e999}}', b'{"description": "\\ud800"}']  # Python reads these


UNKEPT = [  # Prefect takes and stores these, and then answers 500 to every list of runs
    b'{"parameters": {"overrides": ' + b"[" * 260 + b"]" * 260 + b"}}",
    b'{"description": "a\\u0000b"}',
]


@pytest.mark.parametrize("body", NO_JSON + LIKE_JSON + UNKEPT)
def test_a_page_sends_json(served: Served, body: bytes) -> None:
    assert served.ask("PATCH", DEPLOYMENT, PAGE, body)[0] == 400


def test_whole_numbers_beyond_64_bits_go_on_as_every_reader_has_them(served: Served) -> None:
    """Prefect keeps longer ones, and then answers 500 to every list of runs; JavaScript writes out those below 1e21."""
    body = b'{"parameters": {"a": 18446744073709552000, "b": -9223372036854775809, "c": 18446744073709551615}}'
    assert served.ask("PATCH", DEPLOYMENT, PAGE, body)[0] == 200
    assert (
        b'{"a": 1.8446744073709552e+19, "b": -9.223372036854776e+18, "c": 18446744073709551615}' in served.came[-1][1]
    )
    schema = json.dumps({"parameter_openapi_schema": form_schema(ROOT)}).encode()
    assert served.ask("PATCH", DEPLOYMENT, PAGE, schema)[0] == 200, "the page's form to edit sends it back"


def test_a_page_sends_no_more_than_a_mebibyte(served: Served) -> None:
    assert served.ask("POST", RUN, PAGE, b'"' + b"x" * LARGEST + b'"')[0] == 413


def test_no_page_of_others_is_given_leave_to_read(served: Served) -> None:
    status, headers = served.ask("GET", "/api/flow_runs", PAGE)
    assert status == 200 and headers == {"kept": "yes"}


# WebSockets


@pytest.mark.parametrize("path", ["/api/events/out", "/api/logs/out"])
def test_our_page_may_listen(served: Served, path: str) -> None:
    got = served.connect(path, {"origin": f"http://{OURS}"}, auth("x"), "filter")
    assert [message["type"] for message in got] == ["websocket.accept", "websocket.send", "websocket.send"]


@pytest.mark.parametrize(
    "path", ["/api/events/in", "/api/task_runs/subscriptions/scheduled", "/api/work_pools/x/workers/connect"]
)
def test_our_page_may_say_nothing(served: Served, path: str) -> None:
    assert served.connect(path, {"origin": f"http://{OURS}"}, auth(SECRET))[0]["type"] == "websocket.close"


@pytest.mark.parametrize("headers", [basic(SECRET), {}], ids=["header", "first message"])
def test_our_processes_open_any_websocket(served: Served, headers: dict[str, str]) -> None:
    got = served.connect("/api/events/in", headers, auth(SECRET), "event")
    assert [message["type"] for message in got] == ["websocket.accept", "websocket.send", "websocket.send"]
    assert served.log == []


@pytest.mark.parametrize(
    "first", [auth("guess"), auth("\ud800"), '{"type": "auth"}', '{"type": "event"}', "x", "[" * 10_000, "[]", ""]
)
def test_others_are_not_heard(served: Served, first: str) -> None:
    got = served.connect("/api/events/in", {}, first, auth(SECRET))
    assert [message["type"] for message in got] == ["websocket.accept", "websocket.close"]
    assert served.came == [] and len(served.log) == 1


def test_others_hear_nothing_before_they_are_known() -> None:
    """An application that speaks first, as a feed of news would."""

    async def feed(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "a secret"})

    log: list[str] = []
    gate = Gate(feed, Keys(names=read_names(()), secret=SECRET), FlowPage(), log.append)
    served = Served()
    served.gate = gate
    assert [message["type"] for message in served.connect("/feed", {})] == ["websocket.accept", "websocket.close"]
    assert len(log) == 1


# Other machines


@pytest.fixture
def opened() -> Served:
    return Served(PASSWORD, ("Studio.local", "192.168.1.5", "fd00:0::5"))


@pytest.mark.parametrize("host", ["studio.local:4200", "192.168.1.5:4200", "[fd00::5]:4200", OURS])
def test_other_machines_need_the_password(opened: Served, host: str) -> None:
    page = {"host": host, "origin": f"http://{host}"}
    for headers in (page, {"host": host}, {**page, **basic("me:wrong")}):
        assert opened.ask("POST", RUN, headers)[0] == 401
        assert opened.ask("GET", "/api/flow_runs", headers)[0] == 401
        assert opened.ask("GET", "/a page/of tomorrow", {**headers})[0] == 200, "files of the page are open"
        assert opened.ask("GET", "/api/health", headers)[0] == 200
    assert opened.ask("POST", RUN, {**page, **basic(PASSWORD)})[0] == 200
    assert opened.ask("POST", "/api/deployments/", {**page, **basic(PASSWORD)})[0] == 403
    assert opened.ask("POST", "/api/deployments/", {"host": host, **basic(PASSWORD)})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "192.168.1.6", "studio", "local", "[fd00::6]"])
def test_other_machines_need_their_name(opened: Served, host: str) -> None:
    assert opened.ask("GET", "/api/flow_runs", {"host": host, **basic(PASSWORD)})[0] == 403


def test_the_secret_is_as_good_as_the_password_of_the_server_behind(opened: Served) -> None:
    """Prefect checks a password of its own: our processes need not know it."""
    assert opened.ask("POST", "/api/deployments/", basic(SECRET))[0] == 200
    assert dict(opened.came[0][0]["headers"])[b"authorization"].decode() == basic(PASSWORD)["authorization"]
    got = opened.connect("/api/events/in", basic(SECRET), auth(SECRET), "event")
    assert [message["type"] for message in got] == ["websocket.accept", "websocket.send", "websocket.send"]
    assert [json.loads(came)["token"] for _, came in opened.came[1:2]] == [PASSWORD]


def test_a_page_that_listens_needs_the_password_too(opened: Served) -> None:
    page = {"origin": f"http://{OURS}"}
    assert opened.connect("/api/logs/out", page, auth("guess"))[-1]["type"] == "websocket.close"
    assert opened.connect("/api/logs/out", page, auth(PASSWORD))[-1]["type"] == "websocket.send"


@pytest.mark.parametrize("name", ["*", "http://studio", "studio:4200", "", "a b", "studio/", "me@studio", "*.local"])
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="ERIDIFF_SERVED_AS"):
        read_names([name])


@pytest.mark.parametrize(
    ("host", "named", "password", "well"),
    [
        ("127.0.0.1", "", None, True),
        ("localhost", "", None, True),
        ("127.0.0.2", "", None, True),
        ("0.0.0.0", "", None, False),
        ("::", "", None, False),
        ("192.168.1.5", "", None, False),
        ("127.0.0.1", "studio", None, False),
        ("0.0.0.0", "studio", "", False),
        ("0.0.0.0", "studio", "me:x", True),
    ],
)
def test_no_other_machine_without_a_password(
    host: str, named: str, password: str | None, well: bool, tmp_path: Path
) -> None:
    settings = {"PREFECT_SERVER_API_HOST": host, "PREFECT_HOME": str(tmp_path), "ERIDIFF_SERVED_AS": named}
    if not well:
        with pytest.raises(ConfigError, match=r"no password: set PREFECT_SERVER_API_AUTH_STRING"):
            flowserver.read_keys(settings, password)
        return
    keys = flowserver.read_keys(settings, password)
    assert {"127.0.0.1", "localhost", "::1", *filter(None, [named])} <= keys.names
    assert "0.0.0.0" not in keys.names and (host in keys.names or host == "0.0.0.0")


@pytest.mark.parametrize("password", ["me:pä:ss", "mé:x", "me:日本", "me:a\tb", "me:x\n", "me:\x7f"])
def test_a_password_that_prefect_cannot_compare_is_refused(password: str, tmp_path: Path) -> None:
    """Prefect compares by hmac.compare_digest, which takes no other text: every answer would be a 500."""
    settings = {"PREFECT_SERVER_API_HOST": "0.0.0.0", "PREFECT_HOME": str(tmp_path), "ERIDIFF_SERVED_AS": "studio"}
    with pytest.raises(ConfigError, match=r"^PREFECT_SERVER_API_AUTH_STRING holds characters") as error:
        flowserver.read_keys(settings, password)
    assert password.partition(":")[2] not in str(error.value), "a password stands in no message"


def test_local_yaml_names_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowserver, "load_local", lambda: LocalConfig(served_as=("studio",)))
    settings = {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_HOME": str(tmp_path)}
    assert "studio" in flowserver.read_keys(settings, "me:x").names
    assert "studio" not in flowserver.read_keys({**settings, "ERIDIFF_SERVED_AS": "desk"}, "me:x").names


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("localhost", "localhost"), ("fd00::5", "[fd00::5]")],
)
def test_our_own_processes_ask_under_a_name_of_ours(host: str, url: str) -> None:
    settings = {"PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": "4300"}
    assert flowserver.api_url(settings) == f"http://{url}:4300/api"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("PREFECT_SERVER_API_PORT", text) for text in ("abc", "0", "70000", "4200 ", "-1", "١٢", "9" * 5000)),
        *(("PREFECT_SERVER_API_HOST", text) for text in ("a b", "http://x", "127.0.0.1:4200", "*")),
        *(("PREFECT_API_URL", text) for text in ("nonsense", "http://127.0.0.1:x/api", "http://a b/api", "file:///x")),
    ],
)
def test_an_address_that_is_none_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*: ") as error:
        flowserver.environment({name: text})
    assert len(error.value.message) < 300


@pytest.mark.parametrize(
    "url", ["http://studio.local:4200/api", "https://[fd00::5]/api", "http://10.0.0.7:1/a/api?x=1"]
)
def test_an_address_that_is_one(url: str) -> None:
    assert flowserver.environment({"PREFECT_API_URL": url})["PREFECT_API_URL"] == url


def test_an_empty_variable_is_one_that_is_not_set(tmp_path: Path) -> None:
    """Prefect takes an empty password for one, which nobody then knows."""
    empty = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_API_PORT", "PREFECT_HOME", "ERIDIFF_GPUS")
    settings = flowserver.environment({**dict.fromkeys(empty, ""), "XDG_DATA_HOME": str(tmp_path)})
    assert "PREFECT_SERVER_API_AUTH_STRING" not in settings and settings["ERIDIFF_GPUS"] == ""
    assert settings["PREFECT_SERVER_API_PORT"] == "4200" and settings["PREFECT_HOME"].startswith(str(tmp_path))


@pytest.mark.parametrize("once", [True, False])
def test_stopped_while_the_server_starts_it_ends_without_a_word(
    once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(url: str) -> bool:  # asked while it starts
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(flowserver, "find_server", lambda *_, **__: None)
    monkeypatch.setattr(flowserver, "answers", signalled)
    monkeypatch.setattr(flowserver, "SERVER", ("--version",))
    settings = flowserver.environment({"XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert flowserver.run_beside(["false"], settings, once=once) == (130 if once else 0)


# The secret


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    secret = local_secret(home)
    assert secret.startswith("eridiff:") and len(secret) > 50 and local_secret(home) == secret
    assert oct((home / FILE).stat().st_mode & 0o777) == "0o600"
    assert [path.name for path in home.iterdir()] == [FILE]
    assert local_secret(tmp_path / "other") != secret


def test_of_two_at_once_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_text("eridiff:" + "f" * 43)
        target.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert local_secret(tmp_path) == "eridiff:" + "f" * 43
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o755])
def test_a_secret_that_others_can_read_is_none(tmp_path: Path, mode: int) -> None:
    local_secret(tmp_path)
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{FILE} can be read by others \(mode {mode:04o}.*remove the file"):
        local_secret(tmp_path)


def test_a_link_in_its_place_is_none(tmp_path: Path) -> None:
    local_secret(tmp_path / "other")
    (tmp_path / FILE).symlink_to(tmp_path / "other" / FILE)
    with pytest.raises(ConfigError, match="is no secret"):
        local_secret(tmp_path)


@pytest.mark.parametrize("text", ["", "eridiff:", "eridiff:short", "me:" + "x" * 60])
def test_a_file_without_a_secret_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(ConfigError, match="holds no secret of eridiff"):
        local_secret(tmp_path)


def test_a_server_shows_that_it_knows_the_secret_and_gives_nothing_away(served: Served) -> None:
    nonce = "0123456789abcdef" * 2
    _, headers = served.ask("GET", "/api/health", {NONCE: nonce})
    assert headers[PROOF] == proof(SECRET, 4200, nonce) != proof(SECRET, 4300, nonce)
    assert served.ask("POST", "/api/deployments/", basic(headers[PROOF]))[0] == 401
    for none in ("x", nonce[1:], f"{nonce}0", ""):
        assert PROOF not in served.ask("GET", "/api/health", {NONCE: none})[1]
