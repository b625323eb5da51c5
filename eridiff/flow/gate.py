"""The gate before whatever is served: who asks, from which page, by which name; all else is refused with one line.

A browser sends any site's requests to this machine, and with them an Origin or Sec-Fetch-Site that the site cannot
choose, but a Host that it can (by a name of its own that leads here). So:

- a Host that is not ours is refused, then an Origin or Sec-Fetch-Site that is not this very page's;
- what a page asks must stand on the list of what pages may do, whatever else it carries;
- what comes from no page and changes something must carry the secret that a file of this user holds;
- where a password is set, everything must carry that one or the secret, but for the page's own files.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from eridiff.core.value_limits import find_fault
from eridiff.flow.access import NONCE, PROOF, Keys, proof
from eridiff.flow.retry_busy import App, Message, Receive, Send

SAFE = ("GET", "HEAD", "OPTIONS")
LARGEST = 1 << 20  # bytes of a page's request that is read before it is passed on
POLICY_VIOLATION = 1008  # a WebSocket's close code


class Asked(Protocol):
    """A request that a page may send."""

    @property
    def shape(self) -> Any:
        """None, or what tells the `fault` of its JSON."""


class Page(Protocol):
    """What the pages of an application may do."""

    def action(self, method: str, path: str) -> Asked | None:
        """What a request would do; None where it is not a page's to ask."""

    def may_listen(self, path: str) -> bool:
        """Whether a page may open a WebSocket there."""

    def is_open(self, path: str) -> bool:
        """Whether this may be read without the password."""


class Refused(Exception):
    """A request is not passed on: the status of the answer, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """An ASGI application around another; outermost, so that nothing answers before it."""

    def __init__(self, app: App, keys: Keys, page: Page, log: Callable[[str], None]) -> None:
        self.app, self.keys, self.page, self.log = app, keys, page, log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            if scope["type"] == "websocket":
                await self._socket(scope, receive, send)
            else:
                await self._request(scope, receive, send)
        except Refused as refused:
            self.log(_line(scope, refused))
            await _answer(scope, receive, send, refused)

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        page = self._from_page(scope)
        known = self.keys.fit(_credentials(scope))
        if self.keys.password and not known and not (self.page.is_open(path) and method in SAFE):
            raise Refused(401, "the password is missing or wrong")
        if method not in SAFE:
            if not known and _header(scope, "origin") is None:  # Sec-Fetch-Site alone is no page: browsers send both
                raise Refused(
                    401, "it comes from no page of ours and is missing this user's secret (PREFECT_API_AUTH_STRING)"
                )
            if page:
                scope, receive = await self._judged(scope, receive)
        await self.app(self._passed_on(scope), receive, self._own_headers(scope, send))

    async def _judged(self, scope: Message, receive: Receive) -> tuple[Message, Receive]:
        """A page's request that changes something, if it may; what was judged is what goes on, byte for byte."""
        action = self.page.action(scope["method"], scope["path"])
        if action is None:
            raise Refused(403, "pages may not do this")
        if action.shape is None:
            return scope, receive
        try:
            value = json.loads(await _body(receive), parse_int=_number)
            # Python reads NaN, infinity and half of a surrogate pair, which are no JSON: this refuses them.
            body = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "its body is no JSON") from None
        if fault := find_fault(value):  # Prefect keeps more than it can write: its lists of runs would fail ever after
            raise Refused(400, f"its body holds what is not kept: {_shown(fault)}")
        if fault := action.shape.fault(value):
            raise Refused(403, f"pages may not give {_shown(fault)}")
        kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type")]
        kept += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        return {**scope, "headers": kept}, again

    async def _socket(self, scope: Message, receive: Receive, send: Send) -> None:
        page = self._from_page(scope)
        if page and not self.page.may_listen(scope["path"]):
            raise Refused(403, "pages may not open this WebSocket")
        known = self.keys.fit(_credentials(scope)) or (page and not self.keys.password)
        await self.app(self._passed_on(scope), *_Socket(self, scope, receive, send, known=known).ends())

    def _from_page(self, scope: Message) -> bool:
        """Whether a page asks, which then is one of ours; False where no browser does.

        Raises: Refused where the name or the page is not ours.
        """
        host, origin, site = (_header(scope, name) for name in ("host", "origin", "sec-fetch-site"))
        if host is None or _name(host) not in self.keys.names:
            raise Refused(403, f"the host {_shown(host or '')} is not one of ours (served_as in local.yaml names more)")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refused(403, f"it comes from a page of {_shown(origin)}")
        if site not in (None, "same-origin", "none"):
            raise Refused(403, f"it comes from another page (Sec-Fetch-Site: {_shown(site or '')})")
        return origin is not None or site is not None

    def _passed_on(self, scope: Message) -> Message:
        """The scope as the application sees it: where it knows a password of its own, the secret is as good."""
        if not self.keys.password or _credentials(scope) != self.keys.secret:
            return scope
        headers = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
        given = base64.b64encode(self.keys.password.encode())
        return {**scope, "headers": [*headers, (b"authorization", b"Basic " + given)]}

    def _own_headers(self, scope: Message, send: Send) -> Send:
        """Sends on, without any leave for pages of others, and with the proof that was asked for."""
        nonce = _header(scope, NONCE)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [p for p in message.get("headers", ()) if not p[0].lower().startswith(b"access-control-")]
                if nonce and re.fullmatch(r"[0-9a-f]{32}", nonce):
                    kept.append((PROOF.encode(), proof(self.keys.secret, scope["server"][1], nonce).encode()))
                message = {**message, "headers": kept}
            await send(message)

        return sent


class _Socket:
    """A WebSocket whose client may give its credentials in its first message, as Prefect's do; nothing else before."""

    def __init__(self, gate: Gate, scope: Message, receive: Receive, send: Send, *, known: bool) -> None:
        self.gate, self.scope, self._receive, self._send = gate, scope, receive, send
        self.known, self.first, self.closed = known, True, False

    def ends(self) -> tuple[Receive, Send]:
        """What the application reads from and writes to."""
        return self.receive, self.send

    async def receive(self) -> Message:
        """The next message; after a refusal the client's end."""
        message = await self._receive()
        if message["type"] != "websocket.receive" or not self.first:
            return message
        self.first = False
        told = _told(message)
        if not self.known and not self.gate.keys.fit(told):
            await self._refuse()
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
        self.known = True
        if self.gate.keys.password and told == self.gate.keys.secret:
            return {**message, "text": json.dumps({"type": "auth", "token": self.gate.keys.password}), "bytes": None}
        return message

    async def send(self, message: Message) -> None:
        """Send on, but nothing that one may read who is not known yet."""
        if not self.closed and not self.known and message["type"] == "websocket.send":
            await self._refuse()
        if not self.closed:
            await self._send(message)

    async def _refuse(self) -> None:
        refused = Refused(401, "its first message holds neither this user's secret nor the password")
        self.gate.log(_line(self.scope, refused))
        await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "refused"})
        self.closed = True


def _told(message: Message) -> str | None:
    """The token in a WebSocket's first message."""
    try:
        value = json.loads(message.get("text") or message.get("bytes") or b"")
    except (ValueError, RecursionError):
        return None
    token = value.get("token") if isinstance(value, dict) and value.get("type") == "auth" else None
    return token if isinstance(token, str) else None


def _header(scope: Message, name: str) -> str | None:
    """A header's value; None where it is not there. Raises: Refused where it is there twice."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name.encode()]
    if len(values) > 1:
        raise Refused(400, f"it has the header {name} {len(values)} times")
    return values[0] if values else None


def _name(host: str) -> str | None:
    """The name in a Host, less its port; None where it is no Host."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::[0-9]{1,5})?", host.lower())
    return (found[1] or found[2]) if found else None


def _credentials(scope: Message) -> str | None:
    """USER:PASSWORD of Basic authentication."""
    kind, _, code = (_header(scope, "authorization") or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(code, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


async def _body(receive: Receive) -> bytes:
    parts, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "it ended before its body")
        parts, more = parts + message.get("body", b""), message.get("more_body", False)
        if len(parts) > LARGEST:
            raise Refused(413, f"its body has more than {LARGEST} bytes")
    return parts


def _number(text: str) -> int | float:
    """A whole number as every reader has it: beyond 64 bits Prefect keeps it, and then fails to list its runs."""
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


def _shown(text: str) -> str:
    """Words of a stranger on one line, without a terminal's own signs."""
    return text[:200].encode("unicode_escape").decode()


def _line(scope: Message, refused: Refused) -> str:
    return f"refused: {_shown(scope.get('method', 'WebSocket'))} {_shown(scope['path'])}: {refused}"


async def _answer(scope: Message, receive: Receive, send: Send, refused: Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "refused"})
        return
    body = json.dumps({"detail": f"refused: {refused}", "exception_message": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": refused.status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})
