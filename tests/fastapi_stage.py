"""FastAPI's applications with the middleware, a database behind it, and whose its connections were."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from asgi import Events, client
from poolwatch import PoolWatchMiddleware, watch
from support import assert_books

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx
    from fastapi import FastAPI
    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.types import ASGIApp, Receive, Scope, Send

    from poolwatch import PoolSnapshot, Watch

    Owner = tuple[str, str]


class Stage:
    """An application with the middleware as the README has it, and what its pool says.

    Attributes:
        app: The application; what is added to it now is outside of ours.
        watched: The watch of *engine*.
    """

    def __init__(self, app: FastAPI, engine: AsyncEngine, registry: CollectorRegistry, **options: Any) -> None:
        self.app = app
        app.add_middleware(PoolWatchMiddleware, engine=engine, registry=registry, **options)
        self.watched: Watch = watch(engine, registry=registry)
        self._before: Counter[Owner] = Counter()

    def snapshot(self) -> PoolSnapshot:
        """Return what the pool says, after a look at its books."""
        snapshot = self.watched.snapshot()
        assert_books(snapshot)
        return snapshot

    def owners(self) -> dict[Owner, int]:
        """Return who checked out since the last time, and how often."""
        now = Counter(self.snapshot().route_checkouts_total)
        new, self._before = now - self._before, now
        return dict(new)

    async def ask(self, method: str, path: str, root_path: str = "", **options: Any) -> httpx.Response:
        """Make a request; an error of the application's is an answer."""
        async with client(self.app, root_path=root_path) as http:
            http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
            return await http.request(method, root_path + path, **options)

    async def talk(self, path: str, root_path: str = "") -> list[str]:
        """Have a websocket's conversation; return what the application did."""
        server = Events({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000})
        await self.app(conversation(root_path + path, root_path), server.receive, server.send)
        return server.sent


def conversation(path: str, root_path: str = "") -> dict[str, Any]:
    """Return the scope of a websocket."""
    about = {"headers": [], "query_string": b"", "subprotocols": [], "scheme": "ws"}
    return {"type": "websocket", "path": path, "root_path": root_path, **about}


class Using:
    """Middleware that holds a connection around every request, until after its answer.

    Args:
        app: The application.
        engine: Whose connection.
        readers: Asked while the request has not got to a router.
    """

    def __init__(self, app: ASGIApp, engine: AsyncEngine, readers: Iterable[Any]) -> None:
        self._app = app
        self._engine = engine
        self._readers = readers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold one, and fail if the request says so."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        async with self._engine.connect():
            for each in self._readers:
                each()
            if (b"x-refuse", b"1") in scope["headers"]:
                raise PermissionError
            await self._app(scope, receive, send)
