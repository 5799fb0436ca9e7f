"""An application with the middleware, and a server's side of its conversations, without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolwatch import PoolWatchMiddleware
from poolwatch.routes import Routes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

# How often a request is asked for its route by what follows.
EARLY_AND_LATE = 2


async def hello(_request: Request) -> PlainTextResponse:
    """Answer a request of the application's."""
    return PlainTextResponse("hello")


def application(**options: Any) -> Starlette:
    """Return an application with the middleware."""
    app = Starlette(routes=[Route("/", hello), Route("/metrics/more", hello)])
    app.add_middleware(PoolWatchMiddleware, **options)
    return app


def client(app: Any, root_path: str = "") -> httpx.AsyncClient:
    """Return a client of *app* without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, root_path=root_path), base_url="http://test")


class Events:
    """A server's side of an ASGI conversation: what it says, and what it hears."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = iter(events)
        self.sent: list[str] = []
        self.messages: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        """Say the next thing."""
        return next(self._events)

    async def send(self, message: Any) -> None:
        """Hear."""
        self.sent.append(message["type"])
        self.messages.append(message)


async def foreign(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without any router."""
    await PlainTextResponse("foreign")(scope, receive, send)


def closed(app: ASGIApp) -> ASGIApp:
    """Put a function around *app* that shows nothing of it."""

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return around


class Copying:
    """Gives the application a scope of its own, as some middleware does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a copy on."""
        await self._app(dict(scope), receive, send)


class Asking:
    """Asks for the route of each request, before it is routed and after its end.

    Attributes:
        found: The answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes = Routes()
        self.found: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask on both occasions."""
        # Starlette puts itself there before any of its middleware runs.
        self.found.append(self._routes({**scope, "app": getattr(self._app, "outermost", self._app)}))
        try:
            await self._app(scope, receive, send)
        finally:
            self.found.append(self._routes(scope))
