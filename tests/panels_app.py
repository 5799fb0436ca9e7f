"""The application that the dashboard is proved on: its pools, routes that hold a connection, and one that keeps it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from poolwatch import PoolWatchMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from starlette.requests import Request

# As the dashboard names them.
HOLD = "GET /shops/{shop}/orders/{order:int}"
KEEP = "POST /keep"


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool of the application's, there from the start so that Prometheus sees its counters at 0.

    Attributes:
        name: The value of its label.
        wait_timeout: Seconds after which the server closes its connections, set in each session.
        reachable: The server's address is right.
        proxied: Its connections go through a proxy of its own.
        watching: Further arguments of ``watch()``.
        options: Arguments of ``create_async_engine()``.
    """

    name: str
    wait_timeout: int = 1000
    reachable: bool = True
    proxied: bool = False
    watching: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Shop:
    """Routes of an application; the query parameter ``pool`` says which engine a request uses.

    Attributes:
        app: What is served.
        release: Ends the requests that hold a connection, once it is set.
        kept: The connections that a request did not give back.
    """

    def __init__(self, engine: Callable[[str], AsyncEngine], registry: CollectorRegistry) -> None:
        self._engine = engine
        self.release = asyncio.Event()
        self.kept: list[AsyncConnection] = []
        routes = [
            Mount("/shops/{shop}", routes=[Route("/orders/{order:int}", self._hold)]),
            Route("/keep", self._keep, methods=["POST"]),
        ]
        ours = Middleware(PoolWatchMiddleware, registry=registry, route_details=True)
        self.app = Starlette(routes=routes, middleware=[ours])

    async def _hold(self, request: Request) -> PlainTextResponse:
        async with self._engine(request.query_params["pool"]).connect():
            await self.release.wait()
        return PlainTextResponse("done")

    async def _keep(self, request: Request) -> PlainTextResponse:
        self.kept.append(await self._engine(request.query_params["pool"]).connect())
        return PlainTextResponse("done")


def pools_of(module: ModuleType) -> list[Pool]:
    """Return the pools that *module* has."""
    return [each for each in vars(module).values() if isinstance(each, Pool)]
