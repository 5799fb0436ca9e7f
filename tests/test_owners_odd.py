"""Whose connection it is in odd circumstances, and what is kept of a request that is over."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from contextlib import closing
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Route, Router

from asgi import Copying, Events
from poolwatch import PoolWatchMiddleware, watch
from poolwatch.requests import Account, Terms, current
from poolwatch.unreturned import MOMENT

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

HOST, SECRET = (b"host", b"blue.example.org"), (b"authorization", b"Bearer secret")


@pytest.fixture
def engine() -> Engine:
    """Return an engine with one connection, which everybody shares."""
    return create_engine("sqlite://", poolclass=StaticPool)


def request(**others: Any) -> dict[str, Any]:
    """Return the scope of a request."""
    return {"type": "http", "method": "GET", "path": "/buy/1", "root_path": "", "query_string": b"", **others}


class Body:
    """Something large that a request has."""


@pytest.mark.parametrize("headers", [None, [()], 7])
def test_a_scope_that_is_none(headers: Any) -> None:
    """A request that succeeded does not fail at its end for headers that are none of ASGI's."""
    account = Account(scope := request(headers=headers), Terms(lambda _scope: ("GET", "/"), 1))
    account.slim()
    assert scope is account.scope


def test_what_a_request_lacks() -> None:
    """Routes of the application's making find no keys in it later that it did not have."""
    seen: list[Any] = []

    def route_of(scope: Any) -> tuple[str, str]:
        seen.append(scope)
        return "GET", "/"

    account = Account(request(headers=[SECRET]), Terms(route_of, 1))
    account.slim()
    account.resolve(print)
    assert [{"type": "http", "method": "GET", "path": "/buy/1", "root_path": "", "headers": []}] == seen


@pytest.mark.anyio
@pytest.mark.parametrize("dials", [False, True])
async def test_what_is_kept(registry: CollectorRegistry, *, dials: bool) -> None:
    """It is what the route is found by and no more, though a task or a transport goes on that has the account."""
    accounts: list[Any] = []
    going_on: list[Any] = []

    async def page(_request: Any) -> PlainTextResponse:
        accounts.append(current.get())
        loop = asyncio.get_running_loop()
        if dials:
            going_on.append((await loop.create_connection(asyncio.Protocol, sock=ours))[0])
        else:
            going_on.append(loop.create_task(asyncio.Event().wait()))
        return PlainTextResponse("done")

    ours, theirs = socket.socketpair()
    app = Starlette(routes=[Host("{shop}.example.org", Router([Route("/buy/{id}", page)]))])
    # So that the route is not in the scope that we have.
    app.add_middleware(Copying)
    app.add_middleware(PoolWatchMiddleware, registry=registry)
    body = Body()
    gone = weakref.ref(body)
    scope = request(headers=[HOST, SECRET], state={"user": body}, body=body)
    await app(scope, Events({"type": "http.request"}).receive, Events().send)
    del scope, body
    gc.collect()
    assert gone() is None
    (account,) = accounts
    assert [HOST] == account.scope[-1]
    assert ("GET", "/buy/{id}") == account.resolve(print)
    assert account.scope is None
    going_on[0].close() if dials else going_on[0].cancel()
    await asyncio.sleep(0)
    ours.close()
    theirs.close()


@pytest.mark.anyio
async def test_closed_inside_another_request(registry: CollectorRegistry, engine: Engine) -> None:
    """The garbage collector may end a request that nobody waits for inside another one, which goes on."""
    watched = watch(engine, registry=registry)

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async def page(_request: Any) -> PlainTextResponse:
        abandoned.close()
        with engine.connect():
            return PlainTextResponse("done")

    abandoned: Any = PoolWatchMiddleware(hang, registry=registry)(request(), *(None, None))  # type: ignore[arg-type]
    copy_context().run(abandoned.send, None)
    app = Starlette(routes=[Route("/buy/{id}", page)])
    app.add_middleware(PoolWatchMiddleware, registry=registry)
    await app(request(headers=[]), Events({"type": "http.request"}).receive, Events().send)
    assert {("GET", "/buy/{id}"): 1} == watched.snapshot().route_checkouts_total


@pytest.mark.anyio
async def test_what_is_left_to_readers(
    registry: CollectorRegistry, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The collector may end a request in the middle of routing, logging or a timer's making: all three wait for it."""
    watched = watch(engine, registry=registry)
    ledger, held, asked = watched._ledger, [], []

    def route_of(scope: Any) -> tuple[str, str]:
        asked.append(scope)
        return "GET", "/"

    async def hang(*_: Any) -> None:
        held.append(engine.connect())
        await asyncio.Event().wait()

    app: Any = PoolWatchMiddleware(hang, registry=registry)
    app._terms = Terms(route_of, 1)
    abandoned = app(request(headers=[HOST]), None, None)
    copy_context().run(abandoned.send, None)
    ledger.late.append((Account(None, app._terms), 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: asked.append("the loop"))
        abandoned.close()
    assert ([], []) == (asked, caplog.records)
    clock = ledger.clock
    monkeypatch.setattr(ledger, "clock", lambda: clock() + 3 * MOMENT)
    snapshot = watched.snapshot()
    assert (1, 0) == (snapshot.unreturned_total, snapshot.internal_errors_total)
    assert {("GET", "/"): 1} == snapshot.route_checkouts_total
    assert 2 == len(asked) == len(caplog.records)
    held.pop().close()


@pytest.mark.parametrize("timed", [False, True])
def test_read_between_two_holds(registry: CollectorRegistry, engine: Engine, *, timed: bool) -> None:
    """Where a pool hands out again what somebody holds, a reader at that moment does not count the first hold twice."""
    pool: Any = engine.pool
    if not timed:
        # On the instance it hides any class of ours.
        pool.connect = pool.connect
    watched = watch(engine, registry=registry)
    seen: list[int] = []

    class Read(Account):
        """Reads when the end of a hold has been booked."""

        __slots__ = ()

        def gave_back(self, slot: Any, seconds: float) -> None:
            """Read."""
            seen.append(sum(watched.snapshot().route_checkouts_total.values()))
            super().gave_back(slot, seconds)

    def use_twice() -> None:
        current.set(Read(object(), Terms(lambda _: ("GET", "/first"), 2)))
        with closing(engine.connect()):
            current.set(Account(object(), Terms(lambda _: ("GET", "/second"), 2)))
            engine.connect().close()

    copy_context().run(use_twice)
    assert [1] == seen
    snapshot = watched.snapshot()
    assert {("GET", "/first"): 1, ("GET", "/second"): 1} == snapshot.route_checkouts_total
    assert 2 == snapshot.hold_duration_seconds.count
    assert 0 == snapshot.internal_errors_total
