"""A server that asks itself again where its database was busy, since the pages that it shows do not.

SQLite refuses to write for one who has read meanwhile what another has just changed; Prefect's API rolls back, answers
503 and expects to be asked again. Its own clients do that, its pages do not: a pressed button then did nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BUSY, ATTEMPTS, PAUSE = 503, 20, 0.2  # seconds between two attempts


class RepeatBusy:
    """An ASGI application around another: an answer of 503 is dropped, and the request repeated."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection; only those of HTTP are repeated."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received: list[Message] = []
        for attempt in range(1, ATTEMPTS + 1):
            answer = _Answer(send, last=attempt == ATTEMPTS)
            try:
                await self.app(dict(scope), _Again(received, receive), answer)
            except Exception:  # Starlette raises what it has answered with 503
                if not answer.refused:
                    raise
            if not answer.refused:
                return
            await asyncio.sleep(PAUSE)


class _Answer:
    """Sends an answer on, unless it says that the server is busy and may be asked again."""

    def __init__(self, send: Send, *, last: bool) -> None:
        self.send, self.last = send, last
        self.refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.refused = message["status"] == BUSY and not self.last
        if not self.refused:
            await self.send(message)


class _Again:
    """The parts of a request from the first one on, those that were received before and then those that come."""

    def __init__(self, received: list[Message], receive: Receive) -> None:
        self.received, self.receive = received, receive
        self.place = 0

    async def __call__(self) -> Message:
        if self.place == len(self.received):
            self.received.append(await self.receive())
        self.place += 1
        return self.received[self.place - 1]
