"""Requests as bytes that no client would send: ways to mean one thing to the gate and another to what is behind it."""

import gzip
import json
from collections.abc import Iterator

NAMES = (
    "evil.example 127.0.0.1. localhost. 127.1 2130706433 0x7f000001 0177.0.0.1 127.0.0.2 [::ffff:127.0.0.1] [::1%25lo] "
    "::1 localhost:80:80 127.0.0.1@evil evil@127.0.0.1 127.0.0.1/evil 127.0.0.1?x 127.0.0.1#x 127.0.0.1,evil.example "
    "evil.example,127.0.0.1 localh\xdfst xn--localhost * 0 0.0.0.0 localhost%00.evil 127.0.0.1;evil localhost:99999999"
)
ORIGINS = "null http://evil {ours}/ {ours}.evil http://127.0.0.1 file:// {ours},http://evil http://user@{host} data:"
PATHS = (
    "/api/deployments/ /api/deployments //api/deployments/ /api//deployments/ /api/./deployments/ /%61pi/deployments/ "
    "/api/x/../deployments/ /api/%64eployments/ /api%2fdeployments/ /api/deployments%2f /api/deployments/%2e "
    "/api/flow_runs/filter/../../deployments/ /api/deployments/?x=/filter /api/deployments/;/filter /API/deployments/ "
    "/api/deployments/#/filter /api/deployments/%00/filter /api/deployments/%0a /api/deployments%3f/filter "
    "/api/work_pools/x%2fqueues%2ffilter/queues/filter http://{host}/api/deployments/ //evil.example/api/deployments/"
)
EVIL = '{"job_variables": {"env": {"A": "b"}}}'
BODIES = (  # for PATCH of a deployment
    EVIL,
    '{"job_variables": {}, "job_variables": {"a": 1}}',
    '{"job\\u005fvariables": {"a": 1}}',
    "\ufeff" + EVIL,
    EVIL.encode("utf-16"),
    EVIL.encode("utf-32"),
    EVIL + EVIL,
    EVIL + "\0",
    f"[{EVIL}]",
    '{"JOB_VARIABLES": {"a": 1}}',
    '{"pull_steps": []}',
    '{"job_variables": [[]]}',
    '{"paused": NaN}',
    '{"parameters": {"a": 1e999}}',
    '{"description": "\\ud800"}',
)
SOCKETS = (
    "/api/events/in //api/events/in /api/events/%69n /api/events/out/../in /api/events/in?/out /api/events/out%00 "
    "/api/events/in%2fout /api/task_runs/subscriptions/scheduled /api/work_pools/x/workers/connect / /api/deployments/"
)


def request(line: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """One request."""
    return "\r\n".join([f"{line} HTTP/{version}", *headers, "", ""]).encode("latin-1") + body


def requests(port: int, deployment: str) -> Iterator[tuple[str, bytes]]:
    """What it tries, and its bytes; each must be refused, whoever understands it how."""
    ours = f"127.0.0.1:{port}"
    host, page = f"Host: {ours}", f"Origin: http://{ours}"
    start, change = f"POST /api/deployments/{deployment}/create_flow_run", f"PATCH /api/deployments/{deployment}"
    yield from _hosts(ours)
    for origin in ["", *ORIGINS.format(ours=f"http://{ours}", host=ours).split()]:
        yield f"Origin {origin}", request(start, host, f"Origin: {origin}", "Content-Length: 2", body=b"{}")
    yield "two Origins", request(start, host, page, "Origin: http://evil", "Content-Length: 2", body=b"{}")
    for site in ("cross-site", "same-site", "SAME-ORIGIN", "same-origin, cross-site", ""):
        given = (host, page, f"Sec-Fetch-Site: {site}", "Content-Length: 2")
        yield f"Sec-Fetch-Site {site}", request(start, *given, body=b"{}")
    made = json.dumps({"name": "evil", "flow_id": deployment, "pull_steps": []}).encode()
    length = f"Content-Length: {len(made)}"
    for path in PATHS.split():
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            yield f"{method} {path}", request(f"{method} {path.format(host=ours)}", host, page, length, body=made)
    for method in ("post", "TRACE", "CONNECT", "QUERY", "", "GET POST"):
        yield f"method {method}", request(f"{method} /api/deployments/", host, page, length, body=made)
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method"):
        yield name, request("GET /api/deployments/", host, f"{name}: POST", length, body=made)
    yield from _bodies(change, host, page)
    yield from _sockets(ours, host)


def _hosts(ours: str) -> Iterator[tuple[str, bytes]]:
    asked = "GET /api/admin/version"
    for name in NAMES.split():
        yield f"Host {name}", request(asked, f"Host: {name}")
    yield "no Host", request(asked)
    yield "no Host in HTTP/1.0", request(asked, version="1.0")
    yield "no version", b"GET /api/admin/version\r\n\r\n"
    for first, second in ((ours, "evil"), ("evil", ours), (ours, ours)):
        yield f"Hosts {first}, {second}", request(asked, f"Host: {first}", f"hOST: {second}")
    yield "X-Forwarded-Host", request(asked, "Host: evil", f"X-Forwarded-Host: {ours}", f"Forwarded: host={ours}")
    yield "Host folded", request(asked, f"Host: {ours}\r\n evil")
    yield "Host and NUL", request(asked, f"Host: {ours}\0evil")


def _bodies(change: str, host: str, page: str) -> Iterator[tuple[str, bytes]]:
    for text in BODIES:
        body = text if isinstance(text, bytes) else text.encode()
        yield f"body {body[:30]!r}", request(change, host, page, f"Content-Length: {len(body)}", body=body)
    evil = EVIL.encode()
    parts = b"".join(b"%x\r\n%s\r\n" % (len(evil[at : at + 5]), evil[at : at + 5]) for at in range(0, len(evil), 5))
    chunked = parts + b"0\r\n\r\n"
    yield "chunks", request(change, host, page, "Transfer-Encoding: chunked", body=chunked)
    both = ("Transfer-Encoding: chunked", "Content-Length: 4")
    yield "chunks and a length", request(change, host, page, *both, body=chunked)
    yield "another coding", request(change, host, page, "Transfer-Encoding: xchunked", body=chunked)
    yield "two lengths", request(change, host, page, f"Content-Length: {len(evil)}", "Content-Length: 2", body=evil)
    yield "length below zero", request(change, host, page, "Content-Length: -1", body=b"{}")
    packed = gzip.compress(evil)
    coded = (f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    yield "compressed", request(change, host, page, *coded, body=packed)
    yield "longer than is read", request(change, host, page, "Content-Length: 2000000", body=b" " * 1_100_000)


def _sockets(ours: str, host: str) -> Iterator[tuple[str, bytes]]:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = (host, "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13")
    for path in SOCKETS.split():
        for origin in ("http://evil", "null", f"http://{ours}"):
            yield f"WebSocket {path} of {origin}", request(f"GET {path}", *upgrade, f"Origin: {origin}")
    for line in ("GET /api/events/out", "POST /api/events/out"):
        yield f"WebSocket {line}", request(line, *upgrade, "Origin: http://evil")
    yield "HTTP/2 at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
