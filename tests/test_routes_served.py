"""Whose connection it is under a real server: requests on one socket, and clients that leave in the middle."""

from __future__ import annotations

import asyncio
import socket
import time
from math import inf
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from handles import wait_for
from poolwatch import PoolWatchMiddleware, watch
from poolwatch.demo.servers import MariaDB, free_port
from support import assert_books, run, served, use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from poolwatch import Watch


class Server:
    """A served application, and what its pool says.

    Attributes:
        sending: Since when the stream's latest part is being sent; ``inf`` while none is.
    """

    def __init__(self, url: str, registry: CollectorRegistry, *, around: bool) -> None:
        self.engine = create_async_engine(url)
        self.port = free_port()
        self.sending = inf
        self.watched: Watch = watch(self.engine, registry=registry)
        self.app = Starlette(
            routes=[
                Route("/page/{id}", self.page),
                Route("/other/{id}", self.page),
                Route("/sleep", self.sleep),
                Route("/stream", self.stream),
            ]
        )
        if around:
            self.app.add_middleware(BaseHTTPMiddleware, dispatch=_through)
        self.app.add_middleware(PoolWatchMiddleware, registry=registry)

    async def page(self, _request: Request) -> PlainTextResponse:
        """Use a connection."""
        return PlainTextResponse(str(await use(self.engine)))

    async def sleep(self, _request: Request) -> PlainTextResponse:
        """Use one for a while."""
        return PlainTextResponse(str(await use(self.engine, "SELECT SLEEP(0.2)")))

    async def stream(self, _request: Request) -> StreamingResponse:
        """Use one for as long as the client listens."""

        async def lines() -> AsyncIterator[bytes]:
            async with AsyncSession(self.engine) as session:
                connection = await session.connection()
                while True:
                    await run(connection, "SELECT 1")
                    self.sending = time.monotonic()
                    yield b"." * 50_000
                    self.sending = inf
                    await asyncio.sleep(0)

        return StreamingResponse(lines())

    def settled(self, **expected: int) -> None:
        """Wait until as many were out as expected, and assert who had them: route (less its slash) by times."""

        def ended() -> int:
            return self.watched.snapshot().hold_duration_seconds.count

        # The record says that nobody has it a moment before the return is booked.
        wait_for(lambda: ended() == sum(expected.values()), "the return of every connection")
        snapshot = self.watched.snapshot()
        assert_books(snapshot)
        found = {
            route.strip("/").partition("/")[0]: count for (_, route), count in snapshot.route_checkouts_total.items()
        }
        assert (expected, 0) == (found, snapshot.unreturned_total)

    def say(self, *paths: str) -> socket.socket:
        """Ask for all *paths* at once, on one socket."""
        talk = socket.create_connection(("127.0.0.1", self.port), 10)
        talk.sendall(b"".join(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path.encode() for path in paths))
        return talk


async def _through(request: Any, call_next: Any) -> Any:
    return await call_next(request)


@pytest.fixture(params=[False, True], ids=["plain", "BaseHTTPMiddleware"])
def server(
    mariadb: MariaDB, registry: CollectorRegistry, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[Server]:
    """Return a server that runs; we had nothing to say of it at the end."""
    made = Server(mariadb.url(), registry, around=request.param)
    with start_blocking_portal() as portal, served(portal, made.app, made.port):
        yield made
        portal.call(made.engine.dispose)
    assert [] == [each.getMessage() for each in caplog.records if each.name == "poolwatch"]


def test_one_socket(server: Server) -> None:
    """Requests on one socket, one after the other or all at once, are told apart: the server starts one in another."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        for path in ("/page/1", "/other/1", "/page/2"):
            assert "1" == http.get(path).text
    with server.say("/page/3", "/other/3", "/metrics", "/page/4") as talk:
        heard = b""
        while heard.count(b"HTTP/1.1 200 OK") < 4:
            part = talk.recv(100_000)
            assert part, heard
            heard += part
    server.settled(page=4, other=2)


# Not a listener of BaseHTTPMiddleware's: Starlette 0.40 now and then leaves his stream to the garbage collector.
@pytest.mark.parametrize(("server", "listens"), [(False, True), (False, False), (True, False)], indirect=["server"])
def test_a_client_who_leaves(server: Server, *, listens: bool) -> None:
    """A stream and a statement that nobody waits for any more give back, and nobody is accused."""
    with server.say("/stream") as talk:
        if listens:
            while b"...." not in talk.recv(1000):
                pass
        else:
            # Who waits for the client is cancelled then; the stream is not, and nobody closes it.
            wait_for(lambda: time.monotonic() - server.sending > 0.1, "a server that cannot send any more")
    with server.say("/sleep"):
        wait_for(lambda: ("GET", "/sleep") in server.watched.snapshot().route_checkouts_total, "a statement")
    server.settled(stream=1, sleep=1)
