"""Routes that come late, show little or are told in other ways; and what is not asked of any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match, Mount, Route

from asgi import EARLY_AND_LATE, Asking, client, closed, foreign, hello
from poolwatch import routes as poolwatch_routes
from poolwatch.routes import Routes

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio


async def test_routes_that_come_later() -> None:
    """Routes added while requests are served are found; endpoints that are in no route do not make us look for ever."""

    async def late(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("late")

    app = Starlette(routes=[Route("/", hello)])
    routes = Routes()
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/late", "headers": [], "app": app}
    assert ("GET", "unmatched") == routes({**scope, "path": "/late"})
    app.add_route("/late", late)
    assert ("GET", "/late") == routes({**scope, "endpoint": late})
    learned = routes._nodes
    for _ in range(2):
        assert ("GET", "unmatched") == routes({**scope, "path": "/odd", "endpoint": foreign})
    assert learned is not routes._nodes
    learned = routes._nodes
    assert ("GET", "unmatched") == routes({**scope, "path": "/odd", "endpoint": foreign})
    assert learned is routes._nodes


async def test_an_endpoint_that_gets_other_routes() -> None:
    """A route that comes late, or in place of others, is found though its endpoint was known by another one."""
    app, routes, found = Starlette(routes=[Route("/a", hello)]), Routes(), []

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        found.append(routes(scope)[1])
        told.append("route" in scope)

    told: list[bool] = []
    async with client(ask) as http:
        await http.get("/a")
        app.router.routes.append(Route("/b", hello))
        await http.get("/b")
        app.router.routes[:] = [Route("/c", hello)]
        await http.get("/c")
    # Before 1.7 Starlette does not say which route it was, and the endpoint's only one that is known is taken for it.
    assert (["/a", "/b", "/c"] if all(told) else ["/a"] * 3) == found


@pytest.mark.parametrize("app", [None, SimpleNamespace(), SimpleNamespace(router=SimpleNamespace(routes=["odd"]))])
def test_another_framework(app: object) -> None:
    """Without a router that can be asked, nothing is known, and the path is not told."""
    scope = {"type": "http", "method": "GET", "path": "/secret", "headers": [], "app": app, "endpoint": foreign}
    assert ("GET", "unmatched") == Routes()(scope)


class Asked(Route):
    """A route that counts how often it is asked."""

    asked = 0

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match, and count."""
        Asked.asked += 1
        return super().matches(scope)


async def test_nothing_is_matched_twice() -> None:
    """What the router left in the scope is enough, unless one application is mounted twice: then only its routes."""

    async def other(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("other")

    routes, learned = Routes(), Routes()
    sub = Starlette(routes=[Route("/items", hello)])
    several = [Asked(f"/{number}", hello) for number in range(20)]
    app = Starlette(routes=[*several, Asked("/only", other), Mount("/a", sub), Mount("/b", sub)])
    scopes: list[Any] = []

    async def keep(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        scopes.append(scope)

    async with client(keep) as http:
        for path in ("/only", "/19", "/b/items"):
            await http.get(path)
    before = Asked.asked
    assert ("GET", "/only") == routes(scopes[0])
    # Where Starlette does not say which route it was, the one of that endpoint is asked.
    assert Asked.asked - before == ("route" not in scopes[0])
    before = Asked.asked
    assert [("GET", "/19"), ("GET", "/b/items")] == [routes(scope) for scope in scopes[1:]]
    # Starlette says from 1.7 on which route it was.
    assert "route" not in scopes[1] or before == Asked.asked
    for scope in scopes:
        del scope["router"], scope["app"]
        assert ("GET", "unmatched") == learned(scope)


class Odd(BaseRoute):
    """A route of the application's own making that shows nothing of itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match one path."""
        return (Match.FULL if scope["path"].startswith("/odd") else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await foreign(scope, receive, send)


async def test_a_route_that_shows_nothing() -> None:
    """It is known as something below where it stands, and nothing else is taken for it."""
    asking = Asking(Starlette(routes=[Odd(), Route("/", hello)]))
    async with client(asking) as http:
        for path in ("/odd/secret", "/", "/nothing"):
            await http.get(path)
    templates = ["/{path:path}", "/", "unmatched"]
    assert [("GET", template) for template in templates for _ in range(EARLY_AND_LATE)] == asking.found


@pytest.mark.parametrize("odd", [NotImplementedError, lambda: [object()], lambda: [SimpleNamespace(routes=[object()])]])
async def test_frontends_that_cannot_be_asked(odd: Any) -> None:
    """What FastAPI keeps to itself may change: the routes keep their templates."""
    app = Starlette(routes=[Route("/{id}", hello)])
    app.router._iter_low_priority_routes = odd  # type: ignore[attr-defined]
    asking = Asking(app)
    async with client(asking) as http:
        for path in ("/new", "/old/items/5"):
            await http.get(path)
    assert [("GET", template) for template in ("/{id}", "unmatched") for _ in range(EARLY_AND_LATE)] == asking.found


async def test_an_endpoint_that_is_shared() -> None:
    """What a mounted application that shows no routes does is not taken for a route of the same endpoint."""
    inner = Starlette(routes=[Route("/items/{id}", hello)])
    asking = Asking(Starlette(routes=[Route("/pay", hello), Mount("/old", closed(inner))]))
    async with client(asking) as http:
        for path in ("/old/items/5", "/pay", "/old/nothing"):
            await http.get(path)
    templates = ["/old/{path:path}", "/pay", "/old/{path:path}"]
    assert [("GET", template) for template in templates for _ in range(EARLY_AND_LATE)] == asking.found


class NotNow:
    """Stands for another framework's proxy, which has attributes only while that one serves a request."""

    def __getattr__(self, _name: str) -> object:
        raise RuntimeError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await foreign(scope, receive, send)


@pytest.mark.parametrize("zipped", [False, True])
async def test_what_is_not_to_be_asked(*, zipped: bool) -> None:
    """An application whose attributes cannot be read is one that shows no routes; the others keep their templates."""
    app = GZipMiddleware(NotNow()) if zipped else NotNow()
    asking = Asking(Starlette(routes=[Mount("/old", app), Route("/{id}", hello)]))
    async with client(asking) as http:
        for path in ("/new", "/old/items/5", "/newer"):
            await http.get(path)
    templates = ["/{id}", "/old/{path:path}", "/{id}"]
    assert [("GET", template) for template in templates for _ in range(EARLY_AND_LATE)] == asking.found


@pytest.mark.parametrize("names", [1, 2, 3])
async def test_mounted_in_itself(monkeypatch: pytest.MonkeyPatch, names: int) -> None:
    """Under however many names, as for languages: it is looked through once there, and has no more nodes than that."""
    nodes = 0
    node = poolwatch_routes._node

    def count(*args: Any) -> Any:
        nonlocal nodes
        nodes += 1
        assert nodes <= (names + 1) ** 2
        return node(*args)

    monkeypatch.setattr(poolwatch_routes, "_node", count)
    app = Starlette(routes=[Route("/pay/{id}", hello)])
    languages = ["/en", "/de", "/fr"][:names]
    for language in languages:
        app.mount(language, app)
    asking = Asking(app)
    async with client(asking) as http:
        for path in ("/pay/1", *(f"{language}/pay/1" for language in languages), "/en/en/pay/1"):
            assert 200 == (await http.get(path)).status_code
    templates = ["/pay/{id}", *(f"{language}/pay/{{id}}" for language in languages), "/en/en/{path:path}"]
    assert [("GET", template) for template in templates for _ in range(EARLY_AND_LATE)] == asking.found
