"""An application that uses two engines in every way that a request can."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from support import use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.requests import Request
    from starlette.websockets import WebSocket


class Shop:
    """An application that uses two engines in every way.

    Attributes:
        holding: A request that hangs holds its connection.
        go_on: What it waits for.
        tasks: What requests leave running.
        leaked: Connections that are never given back; to be forgotten.
    """

    def __init__(self, engine: AsyncEngine, sync_engine: Engine) -> None:
        self.engine = engine
        self.sync_engine = sync_engine
        self.holding, self.go_on = asyncio.Event(), asyncio.Event()
        self.tasks: list[asyncio.Task[object]] = []
        self.leaked: list[Any] = []
        routes = [
            Route("/async/{id}", self.plain),
            Route("/sync", self.sync),
            Route("/stream", self.stream),
            Route("/background", self.background),
            Route("/child", self.child),
            Route("/several", self.several, methods=["POST"]),
            Route("/hang", self.hang),
            Route("/leak", self.leak),
            Route("/collect", self.collect),
            Route("/nothing", self.nothing),
            WebSocketRoute("/talk", self.talk),
        ]
        self.app = Starlette(routes=[Mount("/{tenant}", routes=routes)])

    async def plain(self, _request: Request) -> PlainTextResponse:
        """Use a connection."""
        return PlainTextResponse(str(await use(self.engine)))

    def sync(self, _request: Request) -> PlainTextResponse:
        """Use one in a thread."""
        with self.sync_engine.connect() as connection:
            return PlainTextResponse(str(connection.scalar(text("SELECT 1"))))

    async def stream(self, _request: Request) -> StreamingResponse:
        """Use one while the answer goes out."""

        async def lines() -> AsyncIterator[str]:
            async with AsyncSession(self.engine) as session:
                yield str(await session.scalar(text("SELECT 1")))

        return StreamingResponse(lines())

    async def background(self, _request: Request) -> PlainTextResponse:
        """Use one once the answer is out."""
        return PlainTextResponse("later", background=BackgroundTask(use, self.engine))

    async def child(self, _request: Request) -> PlainTextResponse:
        """Start a task that uses one after the request."""

        async def later() -> object:
            await self.go_on.wait()
            return await use(self.engine)

        self.tasks.append(asyncio.create_task(later()))
        return PlainTextResponse("started")

    async def several(self, _request: Request) -> PlainTextResponse:
        """Use several at once, of two pools."""
        async with AsyncSession(self.engine) as one, AsyncSession(self.engine) as other:
            await asyncio.gather(one.execute(text("SELECT 1")), other.execute(text("SELECT 1")))
            await asyncio.gather(*(asyncio.to_thread(self.sync, _request) for _ in range(2)))
        return PlainTextResponse("done")

    async def hang(self, _request: Request) -> PlainTextResponse:
        """Keep one for long."""
        async with self.engine.connect():
            self.holding.set()
            await self.go_on.wait()
        return PlainTextResponse("at last")

    async def leak(self, _request: Request) -> PlainTextResponse:
        """Keep one for ever."""
        self.leaked.append(await self.engine.connect())
        return PlainTextResponse("kept")

    async def collect(self, _request: Request) -> PlainTextResponse:
        """Lose what others keep, while using one."""
        async with self.engine.connect():
            self.leaked.clear()
            gc.collect()
        return PlainTextResponse("collected")

    async def nothing(self, _request: Request) -> PlainTextResponse:
        """Use none."""
        return PlainTextResponse("nothing")

    async def talk(self, websocket: WebSocket) -> None:
        """Use one in a conversation."""
        await websocket.accept()
        await use(self.engine)
        await websocket.close()
