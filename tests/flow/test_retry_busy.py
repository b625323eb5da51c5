"""A busy server is asked again, with the whole request; what else it answers goes through as it is."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest

from eridiff.flow import retry_busy as flowbusy
from eridiff.flow.retry_busy import ATTEMPTS, RepeatBusy

BODY = [b'{"name": ', b'"night"}']


class Busy:
    """Answers 503 some times, then `status` with the request's body in two parts; knows what it was asked."""

    def __init__(self, times: int, status: int = 201) -> None:
        self.times, self.status = times, status
        self.asked: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.asked.append(body)
        scope["seen"] = len(self.asked)
        status = 503 if len(self.asked) <= self.times else self.status
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"try", str(scope["seen"]).encode())]}
        )
        for part in (body[:5], body[5:]):
            await send({"type": "http.response.body", "body": part, "more_body": part == body[:5]})
        if status == 503:
            raise TimeoutError("the database is locked")  # as Starlette does, after its answer


def ask(app: Any, kind: str = "http", error: str = "") -> list[Any]:
    """What a request gets, before an error of the application's own."""
    parts = [{"type": "http.request", "body": part, "more_body": part == BODY[0]} for part in BODY]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises((TimeoutError, RuntimeError), match=error) if error else nullcontext():
        asyncio.run(RepeatBusy(app)({"type": kind}, receive, send))
    return sent


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flowbusy, "PAUSE", 0)


@pytest.mark.parametrize("times", [0, 1, 3, ATTEMPTS - 1])
@pytest.mark.parametrize("status", [201, 404, 500])
def test_asked_until_it_is_not_busy(times: int, status: int) -> None:
    app = Busy(times, status)
    start, *parts = ask(app)
    assert (start["status"], start["headers"]) == (status, [(b"try", str(times + 1).encode())])
    assert b"".join(part["body"] for part in parts) == b"".join(BODY)
    assert [part["more_body"] for part in parts] == [True, False]
    assert app.asked == [b"".join(BODY)] * (times + 1)


def test_the_last_refusal_is_told() -> None:
    app = Busy(10**6)
    assert ask(app, error="locked")[0]["status"] == 503
    assert len(app.asked) == ATTEMPTS


def test_an_error_is_not_hidden() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("the database is gone")

    assert ask(broken, error="the database is gone") == []


def test_other_connections_go_through() -> None:
    """Of a lifespan or a websocket every message is the application's own, 503 or not."""
    app = Busy(10**6)
    assert len(ask(app, "websocket", error="locked")) == 3
    assert len(app.asked) == 1
