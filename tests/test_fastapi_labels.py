"""What clients ask FastAPI for cannot make series, or be read in them: neither path nor method, however odd."""

from __future__ import annotations

import random
import re
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from asgi import Events
from fastapi_stage import Stage, Using, conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = [pytest.mark.anyio, pytest.mark.once]

REQUESTS = 10_000
MOST = 5
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
INVENTED = ["get", "BREW", 'X"', "G\nET", "{id}", "", "M" * 5000]
# What a path has between what is random.
ODD = [
    "/{id}",
    "/{path:path}",
    '"',
    "\\",
    "\n",
    "}",
    "{",
    ",",
    "=",
    " ",
    "%2F",
    "%00",
    "ä",
    "💥",
    "\u2028",
    "//",
    "/../",
    "#",
]
# What a template has, where a random path begins.
STARTS = ["/", "/items/", "/many/3/", "/blue/sub/", "/files/", "/{id}/", "/unmatched/", "/other/", ""]
SERIES = re.compile(r'^sqlalchemy_pool_route_checkouts_total\{method="(.*?)",pool="\w+",route="(.*?)"\}', re.MULTILINE)


def random_path(dice: random.Random) -> str:
    """Return a path in pieces that begin with ``zq``, which nothing else has."""
    path = dice.choice(STARTS)
    for _ in range(dice.randint(1, 3)):
        path += "zq" + "".join(dice.choices(ascii_letters + digits, k=10)) + dice.choice(ODD)
    return path + "zq" * 10_000 if dice.random() < 0.01 else path


class Application:
    """An application with more routes than are told apart, and the text that is exposed of it."""

    def __init__(self, engine: AsyncEngine, registry: CollectorRegistry) -> None:
        app, sub = FastAPI(), FastAPI()

        async def page() -> None:
            async with engine.connect():
                pass

        async def lost(_request: Any, _error: Exception) -> PlainTextResponse:
            await page()
            return PlainTextResponse("nothing", 404)

        app.add_exception_handler(HTTPException, lost)
        for number in range(2 * MOST):
            app.add_api_route(f"/many/{number}/{{id}}", page, methods=METHODS)
        app.add_api_route("/items/{id}", page)
        app.add_api_route("/files/{path:path}", page)
        sub.add_api_route("/{id}", page)
        app.mount("/{tenant}/sub", sub)
        app.add_middleware(Using, engine=engine, readers=[])
        self.stage = Stage(app, engine, registry, max_routes=MOST)
        self._registry = registry

    async def ask(self, method: str, path: str) -> None:
        """Make a request as a server does that lets everything through."""
        scope = {**conversation(path), "type": "http", "scheme": "http", "method": method}
        server = Events({"type": "http.request"})
        await self.stage.app({**scope, "raw_path": path.encode()}, server.receive, server.send)

    def text(self) -> str:
        """Return what is exposed."""
        return generate_latest(self._registry).decode()


async def test_random_requests(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Whatever is asked for, there are no more series than known methods times known routes, and nothing of it in them.

    All of them use the database: around the router, and most in a page or in what answers that there is none.
    """
    app = Application(make_engine(pool_reset_on_return=None), registry)
    # Every method that there is, once on each kind of owner: a route, the one for further routes, none.
    for method in [*METHODS, "BREW"]:
        for path in (*(f"/many/{number}/1" for number in range(2 * MOST)), "/nothing"):
            await app.ask(method, path)
    before = app.text()
    owners = set(SERIES.findall(before))
    templates = {f"/many/{number}/{{id}}" for number in range(MOST)} | {"other", "unmatched"}
    assert {(method, route) for method in [*METHODS, "other"] for route in templates} == owners - {("none", "none")}
    dice = random.Random(20)  # noqa: S311
    for _ in range(REQUESTS):
        await app.ask(dice.choice(METHODS if dice.random() < 0.5 else INVENTED), random_path(dice))
    after = app.text()
    assert owners == set(SERIES.findall(after))
    assert before.count("\n") == after.count("\n")
    assert "zq" not in after
    assert "BREW" not in after
    snapshot = app.stage.snapshot()
    assert snapshot.route_checkouts_total["GET", "unmatched"] > REQUESTS / 100
    assert snapshot.checkouts_total > 1.5 * REQUESTS
    assert 0 == snapshot.unreturned_total
