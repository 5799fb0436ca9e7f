"""A FastAPI application that uses two engines in every way that a request can."""

# Without postponed annotations: FastAPI reads them, and does not know what is inside a function.

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from support import use

ONE = text("SELECT 1")
# Endpoints that yield what is sent, where FastAPI lets them.
YIELDING = ["events", "lines"] if find_spec("fastapi.sse") is not None else []
# What a dependency may say of when it ends, where FastAPI lets it.
SCOPES: list[dict[str, Any]] = [{}]
if "scope" in inspect.signature(Depends).parameters:
    SCOPES += [{"scope": "function"}, {"scope": "request"}]


class Shop:
    """The application.

    Attributes:
        app: It.
        held: What one request left for another.
        go_on: What a task that goes on waits for.
        tasks: Those.
        sessions: Sessions that a page went on to use when their dependency had ended.
    """

    def __init__(self, engine: AsyncEngine, sync_engine: Engine) -> None:
        self.engine, self.sync_engine = engine, sync_engine
        self.held: list[AsyncConnection] = []
        self.go_on = asyncio.Event()
        self.tasks: list[asyncio.Task[Any]] = []
        self.sessions: list[AsyncSession] = []
        router = APIRouter(prefix="/shop")
        self._pages(router)
        self._dependents(router)
        self._streams(router)
        self._tasks(router)
        if YIELDING:
            self._yielding(router)
        self.app = FastAPI()
        self.app.include_router(router, prefix="/{tenant}")

    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yield a session per request."""
        async with AsyncSession(self.engine) as session:
            yield session

    def connection(self) -> Iterator[Connection]:
        """Yield a connection, which is taken in one thread and given back in another."""
        with self.sync_engine.connect() as connection:
            yield connection

    def _pages(self, router: APIRouter) -> None:
        @router.get("/async/{id}")
        async def page(id: int) -> Any:  # noqa: A002
            return id * int(str(await use(self.engine)))

        @router.get("/sync")
        def sync() -> Any:
            with self.sync_engine.connect() as connection:
                return connection.scalar(ONE)

    def _dependents(self, router: APIRouter) -> None:
        async def second(session: Annotated[AsyncSession, Depends(self.session)]) -> AsyncIterator[AsyncSession]:
            await session.execute(ONE)
            async with AsyncSession(self.engine) as other:
                yield other

        @router.get("/sub")
        async def sub(
            one: Annotated[AsyncSession, Depends(self.session)], other: Annotated[AsyncSession, Depends(second)]
        ) -> Any:
            return [await each.scalar(ONE) for each in (one, other)]

        for number, scope in enumerate(SCOPES):

            @router.get(f"/scope/{number}")
            async def scoped(session: Annotated[AsyncSession, Depends(self.session, **scope)]) -> Any:
                return await session.scalar(ONE)

        @router.get("/threads")
        def threads(connection: Annotated[Connection, Depends(self.connection)]) -> Any:
            return connection.scalar(ONE)

        @router.get("/fails/{error}")
        async def fails(session: Annotated[AsyncSession, Depends(self.session)], error: str) -> Any:
            await session.execute(ONE)
            raise HTTPException(418) if error == "http" else LookupError

        @router.websocket("/talk/{room}")
        async def talk(websocket: WebSocket, session: Annotated[AsyncSession, Depends(self.session)]) -> None:
            await session.execute(ONE)
            await websocket.accept()
            await use(self.engine)
            await websocket.close()

    def _streams(self, router: APIRouter) -> None:
        @router.get("/stream/own")
        async def own(*, endless: bool = False) -> StreamingResponse:
            async def events() -> AsyncIterator[str]:
                async with AsyncSession(self.engine) as session:
                    while True:
                        yield f"data: {await session.scalar(ONE)}\n\n"
                        if not endless:
                            return

            return StreamingResponse(events(), media_type="text/event-stream")

        @router.get("/stream/dependent")
        async def dependent(
            session: Annotated[AsyncSession, Depends(self.session)], *, endless: bool = False
        ) -> StreamingResponse:
            async def events() -> AsyncIterator[str]:
                # Some versions end the dependency before the answer begins, and this is on its own.
                if not session.in_transaction():
                    self.sessions.append(session)
                while True:
                    yield f"data: {await session.scalar(ONE)}\n\n"
                    if not endless:
                        return

            await session.execute(ONE)
            return StreamingResponse(events(), media_type="text/event-stream")

    def _yielding(self, router: APIRouter) -> None:
        async def lines(
            session: Annotated[AsyncSession, Depends(self.session)], *, endless: bool = False
        ) -> AsyncIterator[int]:
            while True:
                yield int(str(await session.scalar(ONE)))
                if not endless:
                    return

        answer = import_module("fastapi.sse").EventSourceResponse
        router.add_api_route("/stream/events", lines, response_class=answer)
        router.add_api_route("/stream/lines", lines)

    def _tasks(self, router: APIRouter) -> None:
        @router.get("/background")
        async def background(tasks: BackgroundTasks) -> None:
            tasks.add_task(use, self.engine)
            tasks.add_task(page_in_thread)

        def page_in_thread() -> None:
            with self.sync_engine.connect() as connection:
                connection.execute(ONE)

        @router.get("/child")
        async def child() -> None:
            async def later() -> None:
                await self.go_on.wait()
                await use(self.engine)

            self.tasks.append(asyncio.create_task(later()))

        @router.get("/handed/over")
        async def handed_over() -> None:
            async def take() -> AsyncConnection:
                return await self.engine.connect()

            async def give_back(connection: AsyncConnection) -> None:
                await connection.close()

            await asyncio.create_task(give_back(await asyncio.create_task(take())))

        @router.get("/leave")
        async def leave() -> None:
            self.held.append(await self.engine.connect())

        @router.get("/find")
        async def find() -> None:
            await self.held.pop().close()
