"""An application that other instrumentations measure, requests of every kind to it, and what is then counted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket  # noqa: TC002 - as Request

from asgi import Events, client
from support import use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

SHOP = "/shops/{shop}"
# Who takes connections of which pool in the course of one visit().
ASYNC_OWNERS = {
    ("GET", f"{SHOP}/plain/{{item}}"): 2,
    ("HEAD", f"{SHOP}/plain/{{item}}"): 1,
    ("GET", f"{SHOP}/stream"): 1,
    ("GET", f"{SHOP}/background"): 1,
    ("GET", f"{SHOP}/boom"): 1,
    ("GET", f"{SHOP}/missing"): 1,
    ("GET", f"{SHOP}/hang"): 1,
    ("WEBSOCKET", f"{SHOP}/talk"): 1,
}
SYNC_OWNERS = {("GET", f"{SHOP}/sync"): 2}

# A sample's name and labels; and its value, unless how long something took decides it.
Series = dict[tuple[str, frozenset[tuple[str, str]]], float | None]


class Pages:
    """Pages that use two engines, as an application of either framework.

    Attributes:
        engines: Both, as our middleware takes them.
        holding: A request to ``hang`` holds its connection.
    """

    def __init__(self, engine: AsyncEngine, sync_engine: Engine) -> None:
        self.engine = engine
        self.sync_engine = sync_engine
        self.engines: dict[str, AsyncEngine | Engine] = {"async": engine, "sync": sync_engine}
        self.holding = asyncio.Event()
        self._pages: dict[str, Callable[..., Any]] = {
            "/plain/{item}": self.plain,
            "/sync": self.sync,
            "/stream": self.stream,
            "/background": self.background,
            "/boom": self.boom,
            "/missing": self.missing,
            "/hang": self.hang,
            "/nothing": self.nothing,
        }

    def fastapi(self) -> Starlette:
        """Return the pages in an included router."""
        router = APIRouter(prefix=SHOP)
        for path, page in self._pages.items():
            router.add_api_route(path, page, methods=["GET", "HEAD"], response_model=None)
        router.add_api_websocket_route("/talk", self.talk)
        app = FastAPI()
        app.include_router(router)
        return app

    def starlette(self) -> Starlette:
        """Return the pages in a mount."""
        routes: list[Any] = [Route(path, page) for path, page in self._pages.items()]
        return Starlette(routes=[Mount(SHOP, routes=[*routes, WebSocketRoute("/talk", self.talk)])])

    async def plain(self, request: Request) -> Response:
        """Use a connection."""
        return PlainTextResponse(f"{request.path_params['item']} {await use(self.engine)}")

    def sync(self, request: Request) -> Response:
        """Use one in a thread."""
        with self.sync_engine.connect() as connection:
            return PlainTextResponse(f"{request.method} {connection.exec_driver_sql('SELECT 1').scalar()}")

    async def stream(self, _request: Request) -> Response:
        """Use one while the answer goes out."""

        async def lines() -> AsyncIterator[str]:
            async with self.engine.connect():
                yield "a line\n"
                yield "another\n"

        return StreamingResponse(lines())

    async def background(self, _request: Request) -> Response:
        """Use one once the answer is out."""
        return PlainTextResponse("later", background=BackgroundTask(use, self.engine))

    async def boom(self, _request: Request) -> Response:
        """Fail while holding one."""
        async with self.engine.connect():
            msg = "boom"
            raise RuntimeError(msg)

    async def missing(self, _request: Request) -> Response:
        """Find nothing while holding one."""
        async with self.engine.connect():
            raise HTTPException(404)

    async def hang(self, _request: Request) -> Response:
        """Hold one until the client has gone."""
        async with self.engine.connect():
            self.holding.set()
            await asyncio.Event().wait()
        return PlainTextResponse("never")

    async def nothing(self, _request: Request) -> Response:
        """Use none."""
        return PlainTextResponse("nothing")

    async def talk(self, websocket: WebSocket) -> None:
        """Use one in a conversation."""
        await websocket.accept()
        await websocket.send_text(str(await use(self.engine)))
        await websocket.close()

    async def visit(self, app: Any) -> None:
        """Make requests of every kind, each of which is answered as if nobody measured anything."""
        async with client(app) as http:
            # The transport hands on what a server would log.
            http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
            for method, page, status, body in (
                ("GET", "/shops/7/plain/1", 200, "1 1"),
                ("GET", "/shops/8/plain/2", 200, "2 1"),
                ("HEAD", "/shops/7/plain/3", 200, None),
                ("POST", "/shops/7/plain/4", 405, None),
                ("GET", "/shops/7/sync", 200, "GET 1"),
                ("GET", "/shops/7/sync", 200, "GET 1"),
                ("GET", "/shops/7/stream", 200, "a line\nanother\n"),
                ("GET", "/shops/7/background", 200, "later"),
                ("GET", "/shops/7/boom", 500, None),
                ("GET", "/shops/7/missing", 404, None),
                ("GET", "/shops/7/nothing", 200, "nothing"),
                ("GET", "/nowhere", 404, None),
            ):
                answer = await http.request(method, page)
                assert (page, status, body or answer.text) == (page, answer.status_code, answer.text)
            self.holding.clear()
            hanging = asyncio.create_task(http.get("/shops/7/hang"))
            await self.holding.wait()
            hanging.cancel()
            with suppress(asyncio.CancelledError):
                await hanging
        server = Events({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "scheme": "ws",
            "server": ("test", 80),
            "root_path": "",
            "path": "/shops/7/talk",
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
        }
        await app(scope, server.receive, server.send)
        assert ["websocket.accept", "websocket.send", "websocket.close"] == server.sent


def series(text: str) -> Series:
    """Return what *text*, an exposition, has besides ours and the process's own."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(("sqlalchemy_pool_", "python_", "process_")):
            continue
        for sample in family.samples:
            timed = "duration" in sample.name and (
                sample.name.endswith("_sum") or sample.labels.get("le", "+Inf") != "+Inf"
            )
            if not sample.name.endswith("_created"):
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found
                found[key] = None if timed else sample.value
    return found


def counted(registry: CollectorRegistry) -> Series:
    """Return what *registry* has besides ours and the process's own."""
    return series(generate_latest(registry).decode())
