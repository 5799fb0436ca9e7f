"""What a request that touches no database pays for us, beside other middleware, in one process.

On an application without a framework, and on a Starlette with one route. Rounds of all variants alternate and the
fastest of each counts, so that a busy machine slows them alike. Exits 1 if ours costs more than the bound, in terms of
what prometheus-fastapi-instrumentator costs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette_exporter import PrometheusMiddleware

from poolwatch import PoolWatchMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# 5 µs where that one took 45.
BOUND = 5 / 45
ROUNDS = 60
REQUESTS = 2_000
variable: ContextVar[Any] = ContextVar("variable", default=None)


class Nothing:
    """Middleware that does nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        await self.app(scope, receive, send)


class Variable(Nothing):
    """Middleware that sets a context variable."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set it while the request lasts."""
        token = variable.set(scope)
        try:
            await self.app(scope, receive, send)
        finally:
            variable.reset(token)


OURS = "poolwatch"
THEIRS = "prometheus-fastapi-instrumentator"


def variants() -> dict[str, tuple[Any, dict[str, Any]] | None]:
    """Return the middleware of each variant, with its arguments."""
    return {
        "bare": None,
        "nothing": (Nothing, {}),
        "context variable": (Variable, {}),
        OURS: (PoolWatchMiddleware, {"engine": create_engine("sqlite://"), "registry": CollectorRegistry()}),
        "starlette_exporter": (PrometheusMiddleware, {}),
        THEIRS: (PrometheusInstrumentatorMiddleware, {"registry": CollectorRegistry()}),
    }


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a framework."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def page(_request: Request) -> PlainTextResponse:
    """Answer a request that Starlette has routed."""
    return PlainTextResponse("ok")


def small() -> dict[str, ASGIApp]:
    """Return the application without a framework, by variant."""
    return {name: answer if each is None else each[0](answer, **each[1]) for name, each in variants().items()}


def starlette() -> dict[str, ASGIApp]:
    """Return a Starlette with one route, by variant."""
    apps: dict[str, ASGIApp] = {}
    for name, each in variants().items():
        apps[name] = app = Starlette(routes=[Route("/items/{id}", page)])
        if each is not None:
            app.add_middleware(each[0], **each[1])
    return apps


async def receive_nothing() -> Message:
    """Have a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def drop(_message: Message) -> None:
    """Send nowhere."""


def scope() -> dict[str, Any]:
    """Return a request as a server would describe it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "GET",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "root_path": "",
        "path": "/items/7",
        "raw_path": b"/items/7",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*"), (b"user-agent", b"bench")],
    }


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[None]:
    """Start *app* as a server would, and end it."""
    events: asyncio.Queue[Message] = asyncio.Queue()
    begun = asyncio.Event()

    async def send(_message: Message) -> None:
        begun.set()

    events.put_nowait({"type": "lifespan.startup"})
    lifespan = asyncio.create_task(_run(app, events.get, send))
    await begun.wait()
    yield
    events.put_nowait({"type": "lifespan.shutdown"})
    await lifespan


async def _run(app: ASGIApp, receive: Receive, send: Send) -> None:
    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)


async def request_seconds(app: ASGIApp) -> float:
    """Return the seconds that one round of requests takes."""
    scopes = [scope() for _ in range(REQUESTS)]
    began = time.perf_counter()
    for each in scopes:
        await app(each, receive_nothing, drop)
    return time.perf_counter() - began


async def compare(what: str, apps: dict[str, ASGIApp]) -> float:
    """Print what each variant of *what* costs; return ours in terms of theirs."""
    fastest = dict.fromkeys(apps, float("inf"))
    async with AsyncExitStack() as stack:
        for app in apps.values():
            await stack.enter_async_context(started(app))
        for _ in range(ROUNDS):
            for name, app in apps.items():
                fastest[name] = min(fastest[name], await request_seconds(app) / REQUESTS * 1e6)
    bare = fastest.pop("bare")
    more = {name: microseconds - bare for name, microseconds in fastest.items()}
    say(f"{what}: bare {bare:.2f} µs; more: " + ", ".join(f"{name} {each:.2f} µs" for name, each in more.items()))
    ratio = more[OURS] / more[THEIRS]
    say(f"{OURS} / {THEIRS} = {ratio:.3f}, at most {BOUND:.3f} is allowed")
    return ratio


def say(line: str) -> None:
    """Print *line*."""
    print(line, flush=True)  # noqa: T201


async def main() -> bool:
    """Compare on both applications; return whether a bound was crossed."""
    ratios = [
        await compare("a request without a framework", small()),
        await compare("a request with Starlette", starlette()),
    ]
    return max(ratios) > BOUND


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
