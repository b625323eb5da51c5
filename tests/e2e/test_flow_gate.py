"""Attacks on a really served page, by requests and from Chromium; and that those who may still can."""

import http.client
import http.server
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from eridiff.flow.access import FILE
from eridiff.flow.api import basic
from eridiff.flow.server import api_url, environment, find_server, free_port, is_ours, start_server
from eridiff.flow.supervise import Crew
from tests.e2e.flows import Served, make_toys, serving, wait
from tests.support.rawrequests import requests
from tests.ui.browser import Browser, browser, missing

pytestmark = pytest.mark.flow
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gate")
    with serving(Served(make_toys(folder), folder / "home-of-prefect")) as one:
        yield one


def ask(served: Served, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request as it is, with headers as they are given."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        data = json.dumps(body).encode() if body is not None else None
        given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def replaced(served: Served, owned: Path) -> dict[str, Any]:
    """The deployment under its own name, with a step of the attacker's."""
    now = served.ask("GET", f"/deployments/{served.deployment}")
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {owned}"}}
    kept = ("name", "flow_id", "entrypoint", "parameters", "parameter_openapi_schema")
    return {**{name: now[name] for name in kept}, "pull_steps": [step]}


def refusals(served: Served) -> list[str]:
    return [line for line in served.log.read_text().splitlines() if line.startswith("serve: refused: ")]


HEADERS = {
    "foreign page": {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    "foreign page of an old browser": {"Origin": EVIL},
    "null": {"Origin": "null"},
    "page of another port": {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
    "rebound name": {"Host": "evil.example", "Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
    "form of a foreign page": {"Origin": EVIL, "Content-Type": "application/x-www-form-urlencoded"},
    "form without an origin": {"Content-Type": "text/plain"},
    "no page": {},
    "guess": basic("eridiff:guess"),
    "our own page": {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_no_page_replaces_what_a_run_executes(served: Served, headers: dict[str, str], tmp_path: Path) -> None:
    owned, before = tmp_path / "owned", len(refusals(served))
    given = {name: text.format(port=served.port) for name, text in headers.items()}
    status, answer, _ = ask(served, "POST", "/api/deployments/", replaced(served, owned), **given)
    assert status in (401, 403)
    assert not [name for name in answer if name.startswith("access-control")]
    assert ask(served, "PATCH", f"/api/deployments/{served.deployment}", {"entrypoint": "evil.main"}, **given)[0] in (
        401,
        403,
    )
    assert served.ask("GET", f"/deployments/{served.deployment}")["pull_steps"] == []
    wait(lambda: len(refusals(served)) == before + 2, 10, lambda: str(refusals(served)[before:]))
    assert not owned.exists()


@pytest.mark.parametrize("headers", list(HEADERS.values())[:6], ids=list(HEADERS)[:6])
def test_strangers_read_nothing_and_get_no_preflight(served: Served, headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/api/health"),
        ("GET", "/api/csrf-token?client=x"),
        ("OPTIONS", "/api/"),
    ):
        asked = {**headers, "Access-Control-Request-Method": "POST"}
        status, answer, body = ask(served, method, path, **asked)
        assert status == 403 and b"refused" in body
        assert not [name for name in answer if name.startswith("access-control")]


def test_our_own_page_gets_no_leave_for_others(served: Served) -> None:
    status, answer, _ = ask(served, "GET", "/api/health", **served.page())
    assert status == 200 and not [name for name in answer if name.startswith("access-control")]
    assert "frame-ancestors 'self'" in answer["content-security-policy"]


def test_the_secret_is_nowhere_to_be_read(served: Served) -> None:
    number = served.submit(project="tick")
    served.ended(number)
    secret = served.secret
    for path in (
        "/api/admin/settings",
        "/ui-settings",
        f"/api/flow_runs/{number}",
        f"/api/deployments/{served.deployment}",
    ):
        status, _, body = ask(served, "GET", path, **served.page())
        assert status == 200 and secret.encode() not in body and secret.partition(":")[2].encode() not in body
    assert secret.partition(":")[2] not in str(served.lines(number)) + served.log.read_text()
    home = Path(environment(served.environment)["PREFECT_HOME"])
    assert oct((home / FILE).stat().st_mode & 0o777) == "0o600"


# WebSockets

PATHS = ("/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions/scheduled")


def listen(served: Served, path: str, origin: str | None = None, host: str = "", token: str | None = None) -> str:
    """What comes of a WebSocket that says who it is and then asks for all."""
    address = f"ws://{host or '127.0.0.1'}:{served.port}{path}"
    line = socket.create_connection(("127.0.0.1", served.port))
    way: dict[str, Any] = {"sock": line, "proxy": None, "subprotocols": [Subprotocol("prefect")]}
    try:
        with connect(address, origin=Origin(origin) if origin else None, **way) as stream:
            stream.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(stream.recv(10))["type"])
    except InvalidStatus as error:
        return str(error.response.status_code)
    except ConnectionClosed as error:
        return str(error.rcvd and error.rcvd.code)
    finally:
        line.close()


@pytest.mark.parametrize("path", PATHS)
def test_strangers_open_no_websocket(served: Served, path: str) -> None:
    for origin in (EVIL, "null", "http://127.0.0.1:8000"):
        assert listen(served, path, origin, token=served.secret) == "403"
    assert listen(served, path, host="evil.example", token=served.secret) == "403"
    assert listen(served, path) == "1008" and listen(served, path, token="eridiff:guess") == "1008"
    assert listen(served, path, token=served.secret) == "auth_success"
    ours = listen(served, path, f"http://127.0.0.1:{served.port}")
    assert ours == ("auth_success" if path.endswith("out") else "403")


# Requests that no client sends


def answer_to(port: int, data: bytes) -> bytes:
    """How the answer to some bytes begins; empty where the server says nothing and hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            return line.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_no_spelling_of_a_request_gets_by(served: Served) -> None:
    before, passed = standing(served), {}
    for what, data in requests(served.port, served.deployment):
        status = answer_to(served.port, data)[:12].decode("latin-1")
        if not re.fullmatch(r"HTTP/1\.[01] 4\d\d|", status):
            passed[what] = status
    assert passed == {}
    assert standing(served) == before


def standing(served: Served) -> Any:
    """The deployments, less what the one that asks for its runs changes, and the runs."""
    polled = ("updated", "status", "last_polled")
    deployments = served.ask("POST", "/deployments/filter", {})
    kept = [{name: value for name, value in one.items() if name not in polled} for one in deployments]
    return kept, served.ask("POST", "/flow_runs/filter", {})


# Those who may


def test_the_page_schedules_pauses_and_cancels(served: Served) -> None:
    path = f"/deployments/{served.deployment}"
    rule = {"interval": 3600, "anchor_date": "2026-01-01T00:00:00Z"}
    (made,) = served.ask("POST", f"{path}/schedules", [{"active": True, "schedule": rule}])
    served.ask("PATCH", f"{path}/schedules/{made['id']}", {"active": False})
    assert served.ask("GET", f"{path}/schedules")[0]["active"] is False
    served.ask("DELETE", f"{path}/schedules/{made['id']}")
    assert served.ask("GET", f"{path}/schedules") == []
    served.ask("POST", f"{path}/pause_deployment")
    served.ask("POST", f"{path}/resume_deployment")
    served.ask("PATCH", path, {"parameters": {"project": "tick"}, "paused": False})
    assert served.ask("GET", path)["parameters"] == {"project": "tick"}
    served.ask("PATCH", path, {"parameters": {}})
    number = served.submit(project="count")
    served.says(number, "counts from")
    served.ask("POST", f"/flow_runs/{number}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.ended(number, 40)["state"]["type"] == "CANCELLED"


def test_the_page_cancels_and_deletes_several_runs_at_once(served: Served) -> None:
    """By the bulk routes, with the same limits as for one run; those of deployments and flows stay shut."""
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    numbers = [served.submit(later, project="tick") for _ in range(2)]
    both = {"flow_runs": {"id": {"any_": numbers}}}
    page, path = served.page(), "/api/flow_runs/bulk_set_state"
    assert ask(served, "POST", path, {**both, "state": {"type": "COMPLETED", "data": "x"}}, **page)[0] == 403
    assert ask(served, "POST", path, {**both, "state": {"type": "CANCELLED"}})[0] == 401
    assert [served.run(number)["state"]["type"] for number in numbers] == ["SCHEDULED"] * 2
    answer = served.ask("POST", "/flow_runs/bulk_set_state", {**both, "state": {"type": "CANCELLED"}})
    assert [result["status"] for result in answer["results"]] == ["ACCEPT"] * 2
    assert [served.run(number)["state"]["type"] for number in numbers] == ["CANCELLED"] * 2
    assert served.ask("POST", f"/flow_runs/{numbers[0]}/input/filter", {"prefix": "any"}) == []
    assert sorted(served.ask("POST", "/flow_runs/bulk_delete", both)["deleted"]) == sorted(numbers)
    assert served.ask("POST", "/flow_runs/filter", both) == []
    for other in ("bulk_delete", f"{served.deployment}/create_flow_run/bulk"):
        assert ask(served, "POST", f"/api/deployments/{other}", {}, **page)[0] == 403
    assert ask(served, "POST", "/api/flows/bulk_delete", {}, **page)[0] == 403
    assert served.ask("GET", f"/deployments/{served.deployment}")["id"] == served.deployment


def test_a_worker_with_the_secret_works_and_one_without_does_not(served: Served) -> None:
    """Prefect's own command, as on a second machine of a work pool."""
    words = (sys.executable, "-m", "prefect")
    given = {**environment(served.environment), "PREFECT_API_URL": f"http://127.0.0.1:{served.port}/api"}
    create = (*words, "work-pool", "create", "night", "--type", "process")
    without = served.clone.run(*create, check=False, **given)
    assert without.returncode == 1 and "is missing this user's secret" in without.stdout
    with_it = {**given, "PREFECT_API_AUTH_STRING": served.secret}
    served.clone.run(*create, **with_it)
    before = len(refusals(served))
    served.clone.run(*words, "worker", "start", "--pool", "night", "--name", "here", "--run-once", **with_it)
    (worker,) = served.ask("POST", "/work_pools/night/workers/filter", {})
    served.ask("POST", "/work_pools/night/get_scheduled_flow_runs", {})  # as the older page of that pool does
    assert worker["name"] == "here" and refusals(served)[before:] == []


def test_another_checkout_finds_the_server_and_a_strangers_home_does_not(served: Served, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{served.port}/api"
    settings = environment(served.environment)
    assert find_server(settings, once=False) == url and settings["PREFECT_API_AUTH_STRING"] == served.secret
    named = environment({**served.environment, "PREFECT_API_URL": url})
    assert find_server(named, once=False) == url and named["PREFECT_API_AUTH_STRING"] == served.secret
    other = environment({**served.environment, "XDG_DATA_HOME": str(tmp_path)})
    with pytest.raises(Exception, match=r"answers a Prefect server that does not know .*secret"):
        find_server(dict(other), once=False)
    assert find_server(other, once=True) is None, "`make flow` starts one of its own"
    assert not is_ours(url, other["PREFECT_API_AUTH_STRING"])
    far = environment({**served.environment, "XDG_DATA_HOME": str(tmp_path), "PREFECT_API_URL": url})
    assert find_server(far, once=False) == url
    assert "PREFECT_API_AUTH_STRING" not in far, "a server that does not show that it knows the secret is not told it"


def test_other_machines_need_the_password_and_their_name(served: Served, tmp_path: Path) -> None:
    settings = environment(
        {
            **served.environment,
            "PYTHONPATH": str(served.clone.root),
            "XDG_DATA_HOME": str(tmp_path),
            "PREFECT_SERVER_API_HOST": "0.0.0.0",
            "PREFECT_SERVER_API_PORT": str(free_port()),
            "PREFECT_SERVER_API_AUTH_STRING": "me:of ours",
            "ERIDIFF_SERVED_AS": "studio.local",
        }
    )
    assert find_server(settings, once=False) is None
    secret, studio = settings["PREFECT_API_AUTH_STRING"], f"studio.local:{settings['PREFECT_SERVER_API_PORT']}"
    far = Served(served.clone, tmp_path)
    far.port = int(settings["PREFECT_SERVER_API_PORT"])
    with running(settings):
        assert is_ours(api_url(settings), secret)
        limit = ("/api/v2/concurrency_limits/", {"name": "x", "limit": 1})
        for path in ("/", "/ui-settings", "/api/health"):
            assert ask(far, "GET", path, Host=studio, Origin=f"http://{studio}")[0] == 200
        assert ask(far, "GET", "/api/admin/version", Host=studio)[0] == 401
        assert ask(far, "GET", "/api/admin/version", Host=studio, **basic("me:of ours"))[0] == 200
        assert ask(far, "GET", "/api/admin/version", Host="evil.example", **basic("me:of ours"))[0] == 403
        assert ask(far, "POST", *limit, Host=studio, Origin=f"http://{studio}", **basic("me:of ours"))[0] == 403
        assert ask(far, "POST", *limit, **basic(secret))[0] == 201, "the secret does for this user's processes"
        assert listen(far, "/api/logs/out") == "1008"
        assert listen(far, "/api/logs/out", token="me:of ours") == "auth_success"
        assert listen(far, "/api/logs/out", token=secret) == "auth_success"


@contextmanager
def running(settings: dict[str, str]) -> Iterator[None]:
    """A server alone."""
    with Crew() as crew:
        server = start_server(crew, settings)
        try:
            yield
        finally:
            crew.stop()
            server.wait()


# A browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    """An attacker's page."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def attacker(tmp_path: Path) -> Iterator[int]:
    """The port of a page from elsewhere."""
    (tmp_path / "index.html").write_text("<title>a page from elsewhere</title>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


TRY_ALL = """
const [base, body, deployment] = arguments;
const outcome = async (work) => { try { return String(await work()); } catch (error) { return error.name; } };
const post = (more) => fetch(base + '/api/deployments/', {method: 'POST', body, ...more}).then(r => r.status);
const socket = (path) => new Promise((resolve) => {
  const one = new WebSocket(base.replace('http', 'ws') + path, 'prefect');
  one.onopen = () => resolve('open'); one.onerror = () => resolve('refused');
});
return (async () => ({
  json: await outcome(() => post({headers: {'Content-Type': 'application/json'}})),
  simple: await outcome(() => post({headers: {'Content-Type': 'text/plain'}})),
  blind: await outcome(() => post({mode: 'no-cors', headers: {'Content-Type': 'text/plain'}})),
  hidden: await outcome(() => post({mode: 'no-cors', referrerPolicy: 'no-referrer'})),
  start: await outcome(() => fetch(`${base}/api/deployments/${deployment}/create_flow_run`,
    {method: 'POST', mode: 'no-cors', body: '{}'}).then(r => r.status)),
  beacon: await outcome(() => navigator.sendBeacon(base + '/api/deployments/', body)),
  token: await outcome(() => fetch(base + '/api/csrf-token?client=x').then(r => r.status)),
  into: await outcome(() => socket('/api/events/in')),
  out: await outcome(() => socket('/api/events/out')),
}))();
"""


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_page_of_another_port_in_chromium_changes_nothing(served: Served, attacker: int, tmp_path: Path) -> None:
    owned, before = tmp_path / "owned", len(refusals(served))
    body = json.dumps(replaced(served, owned))
    count = len(served.ask("POST", "/flow_runs/filter", {}))
    with browser(tmp_path / "profile", names={"evil.example": "127.0.0.1"}) as window:
        window.open(f"http://127.0.0.1:{attacker}/")
        base = f"http://127.0.0.1:{served.port}"
        refused = {"json": "TypeError", "simple": "TypeError", "token": "TypeError", "blind": "0", "hidden": "0"}
        refused |= {"start": "0", "beacon": "true", "into": "refused", "out": "refused"}  # those are never answered
        assert window.script(TRY_ALL, base, body, served.deployment) == refused
        send_form(window, f"{base}/api/deployments/", body)
        assert "refused" in window.text()

        window.open(f"http://evil.example:{served.port}/")  # its name leads here now
        assert "evil.example" in window.url() and "refused" in window.text()
        rebound = window.script(TRY_ALL, f"http://evil.example:{served.port}", body, served.deployment)
        assert {rebound[kind] for kind in ("json", "simple", "blind", "token", "start")} == {"403"}
        assert {rebound[kind] for kind in ("into", "out")} == {"refused"}
    assert served.ask("GET", f"/deployments/{served.deployment}")["pull_steps"] == []
    assert len(served.ask("POST", "/flow_runs/filter", {})) == count and not owned.exists()
    assert len(refusals(served)) >= before + 15


MENU = "dashboard runs flows deployments work-pools blocks variables automations events artifacts concurrency-limits"
ASKED = """
const asked = performance.getEntriesByType('resource').filter(one => new URL(one.name).pathname.startsWith('/api/'));
return document.readyState === 'complete' && asked.length > 1 && document.body.innerText.length > 50
"""


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_both_of_prefects_pages_show_each_of_their_menus(served: Served, tmp_path: Path) -> None:
    """What they ask to draw themselves is on the list of what pages may do."""
    before = len(refusals(served))
    with browser(tmp_path / "profile") as window:
        for place in [f"{page}/{name}" for page in ("", "/v2") for name in MENU.split()]:
            window.open(f"http://127.0.0.1:{served.port}{place}")
            wait(lambda: window.script(ASKED), 60, lambda: f"{window.url()}: {window.text()}")
        window.open(f"http://127.0.0.1:{served.port}/v2/deployments/deployment/{served.deployment}")
        window.wait("main", "Schedules")
    assert refusals(served)[before:] == []


def send_form(window: Browser, address: str, body: str) -> None:
    """The form that needs no script's leave: its one field's name is the JSON."""
    window.script(
        "const form = document.createElement('form'); form.method = 'POST'; form.enctype = 'text/plain';"
        "form.action = arguments[0]; const field = document.createElement('input'); field.name = arguments[1];"
        "form.append(field); document.body.append(form); form.submit()",
        address,
        body,
    )
    wait(lambda: window.url() == address, 20, window.url)
