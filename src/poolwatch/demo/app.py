"""The watched application, served by uvicorn in a thread of its own, beside the traffic it gets."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager
from ipaddress import ip_address
from textwrap import shorten
from typing import TYPE_CHECKING, Self

import uvicorn
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolwatch import PoolWatchMiddleware, watch
from poolwatch.demo.servers import ServerError
from poolwatch.demo.traffic import POOLS, Traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.requests import Request

_ASK_SECONDS = 10.0
_STOP_SECONDS = 20.0
_SEED = 20
_MOST_OF_AN_ERROR = 60


async def ask(url: str) -> None:
    """Return when the database at *url* has answered; raises what SQLAlchemy or its driver does, or TimeoutError."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with asyncio.timeout(_ASK_SECONDS), engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


def make_engines(url: str) -> dict[str, AsyncEngine]:
    """Return an engine for each of :data:`POOLS`: a small pool whose settings do nothing about wait_timeout."""
    return {name: create_async_engine(url, pool_size=5, max_overflow=5, pool_timeout=1.5) for name in POOLS}


def make_app(engines: Mapping[str, AsyncEngine]) -> Starlette:
    """Return the application, which does the same with each of *engines*; its lifespan ends with their disposal."""

    async def failed(_request: Request, error: Exception) -> PlainTextResponse:
        if not (isinstance(error, DBAPIError) and error.connection_invalidated):
            # That text may name a host or a user.
            return PlainTextResponse("no connection, or a statement that failed", status_code=502)
        return PlainTextResponse(_shown(error.orig), status_code=500)

    async def busy(_request: Request, _error: Exception) -> PlainTextResponse:
        return PlainTextResponse("No database connection was free in time.", status_code=503)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # Here is the only difference between the two.
        with watch(engines["bare"], name="bare"), watch(engines["guarded"], name="guarded", guard=True):
            yield
            for engine in engines.values():
                await engine.dispose()

    app = Starlette(
        routes=[route for name, engine in engines.items() for route in _routes(name, engine)],
        # Raised further, uvicorn would log a traceback for each.
        exception_handlers={DBAPIError: failed, PoolTimeoutError: busy},
        lifespan=lifespan,
    )
    app.add_middleware(PoolWatchMiddleware)
    return app


def _routes(name: str, engine: AsyncEngine) -> list[Route]:
    async def item(request: Request) -> PlainTextResponse:
        async with engine.connect() as connection:
            answer = await connection.scalar(text("SELECT :id * 2"), {"id": int(request.path_params["id"])})
        return PlainTextResponse(f"{answer}\n")

    async def report(request: Request) -> PlainTextResponse:
        """Hold a connection while something else is waited for, as handlers that call other services do."""
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(request.path_params["seconds"])
        return PlainTextResponse("done\n")

    return [Route(f"/{name}/items/{{id:int}}", item), Route(f"/{name}/report/{{seconds:float}}", report)]


def _shown(error: BaseException | None) -> str:
    """Return the number and the text of the driver's *error*, without what its socket said."""
    told = " ".join(map(str, error.args if error else ()))
    return shorten(told.partition(" (")[0], _MOST_OF_AN_ERROR, placeholder=" ...")


class Application:
    """The application and its traffic while the ``with`` block lasts.

    Args:
        database: SQLAlchemy's URL of the database.
        listen: Host and port where it listens; 0 is any free port.
        log: Returns the end of the log, for the message of a start that failed.

    Attributes:
        url: Where it answers, on this machine.
        traffic: Its users, from the first request on.

    Raises:
        ServerError: It cannot listen there.
    """

    def __init__(self, database: str, *, listen: tuple[str, int], log: Callable[[], str]) -> None:
        self._database = database
        self._log = log
        self._socket = socket.socket()
        # So that it can be started again at once, at the same port.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(listen)
        except OSError as error:
            self._socket.close()
            msg = f"the application cannot listen at {listen[0]}:{listen[1]}: {error}"
            raise ServerError(msg) from error
        host, port = self._socket.getsockname()
        if ip_address(host).is_unspecified:
            host = "127.0.0.1"
        self.url = f"http://{host}:{port}"
        self.traffic = Traffic(host, port, seed=_SEED)
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        try:
            self.check()
        except ServerError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)
        self._socket.close()

    def check(self) -> None:
        """Raise ServerError, with the end of the log, if the application or its traffic is no longer running."""
        if self._error is not None:
            msg = f"the application failed: {self._error!r}; its log ends:\n{self._log()}"
            raise ServerError(msg)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001
            # Also SystemExit, by which uvicorn gives up a start.
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = make_app(make_engines(self._database))
        # Signals are the main thread's: uvicorn leaves them alone in any other.
        server = uvicorn.Server(
            uvicorn.Config(
                app, lifespan="on", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        while not (server.started or serving.done()):  # noqa: ASYNC110  # uvicorn offers no event
            await asyncio.sleep(0.02)
        users = asyncio.create_task(self.traffic.run())
        stopping = asyncio.create_task(self._stop.wait())
        self._ready.set()
        try:
            done, _ = await asyncio.wait({serving, users, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            users.cancel()
            server.should_exit = True
            await asyncio.wait({serving, users})
        for task in done - {stopping}:
            task.result()
            msg = "it ended by itself"
            raise RuntimeError(msg)
