"""The route of a request: the template as the code has it, through mounts, hosts and middleware; never a path."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute

from asgi import Events, client, hello
from poolwatch.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

EARLY_AND_LATE = 2


class Page(HTTPEndpoint):
    """A page that is a class."""

    async def get(self, _request: Any) -> PlainTextResponse:
        """Answer."""
        return PlainTextResponse("page")


class Talk(WebSocketEndpoint):
    """A conversation."""

    async def on_connect(self, websocket: Any) -> None:
        """Take the call and hang up."""
        await websocket.accept()
        await websocket.close()


async def foreign(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without any router."""
    await PlainTextResponse("foreign")(scope, receive, send)


def closed(app: ASGIApp) -> ASGIApp:
    """Put a function around *app* that shows nothing of it."""

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return around


class Asking:
    """Asks for the route of each request, before it is routed and after its end.

    Attributes:
        found: The answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes = Routes()
        self.found: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask on both occasions."""
        # Starlette puts itself there before any of its middleware runs.
        self.found.append(self._routes({**scope, "app": getattr(self._app, "outermost", self._app)}))
        try:
            await self._app(scope, receive, send)
        finally:
            self.found.append(self._routes(scope))


class Copying:
    """Gives the application a scope of its own, as some middleware does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a copy on."""
        await self._app(dict(scope), receive, send)


async def _through(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def application() -> Starlette:
    """Return an application with every way of leading to a page."""
    items = [
        Route("/items", hello),
        Route("/items/{id:int}", hello, methods=["GET", "PUT"]),
        Route("/items/{id:int}", Page, name="page", methods=["GET"]),
        Route("/files/{path:path}", hello),
    ]
    sub = Starlette(routes=[*items, Route("/", hello), WebSocketRoute("/talk/{room}", Talk)])
    routes: list[BaseRoute] = [
        Host("{shop}.example.org", Router([Route("/shop/{id}", hello)])),
        Route("/", hello),
        Route("/page/{name}", Page),
        Route("/first/{a}", hello, methods=["POST"]),
        WebSocketRoute("/talk", Talk),
        Mount("/api/{tenant}/v1", sub),
        Mount("/again", routes=[Mount("/{deeper}", sub), Route("/{any:path}", hello)]),
        Mount("/zipped", GZipMiddleware(sub)),
        Mount("/closed", closed(sub)),
        Mount("/foreign", foreign),
    ]
    return Starlette(routes=routes)


REQUESTS = [
    ("GET", "/", "/"),
    ("GET", "/page/one", "/page/{name}"),
    # Not an answer, but a route all the same.
    ("GET", "/first/1", "/first/{a}"),
    ("DELETE", "/page/one", "/page/{name}"),
    ("GET", "/api/blue/v1/items", "/api/{tenant}/v1/items"),
    ("GET", "/api/blue/v1/items/5", "/api/{tenant}/v1/items/{id:int}"),
    ("GET", "/api/blue/v1/files/a/b", "/api/{tenant}/v1/files/{path:path}"),
    ("GET", "/api/blue/v1/", "/api/{tenant}/v1/"),
    ("GET", "/again/deep/items/5", "/again/{deeper}/items/{id:int}"),
    ("GET", "/zipped/items", "/zipped/items"),
    ("GET", "/foreign/what/ever", "/foreign/{path:path}"),
    ("GET", "/closed/items", "/closed/{path:path}"),
    # A mount that matches does not give the request back.
    ("GET", "/again/deep/nothing", "unmatched"),
    ("GET", "/api/blue/v1/items/none", "unmatched"),
    ("GET", "/secret/4711", "unmatched"),
    # Redirected.
    ("GET", "/page/one/", "unmatched"),
]


@pytest.mark.parametrize("root_path", ["", "/proxy"])
@pytest.mark.parametrize("around", [None, BaseHTTPMiddleware, Copying])
async def test_templates(around: Any, root_path: str) -> None:
    """Every request has its full template, known before it is routed, whatever is around the router."""
    app = application()
    if around is not None:
        app.add_middleware(around, **({"dispatch": _through} if around is BaseHTTPMiddleware else {}))
    asking = Asking(app)
    async with client(asking, root_path=root_path) as http:
        for method, path, _ in REQUESTS:
            await http.request(method, root_path + path)
    expected = [(method, template) for method, _, template in REQUESTS for _ in range(EARLY_AND_LATE)]
    assert expected == asking.found


async def test_hosts() -> None:
    """A host leads to its routes, and is no part of their templates."""
    asking = Asking(application())
    async with client(asking) as http:
        await http.get("/shop/1", headers={"host": "blue.example.org"})
        await http.get("/nothing", headers={"host": "blue.example.org"})
    assert ["/shop/{id}"] * 2 + ["unmatched"] * 2 == [template for _, template in asking.found]


@pytest.mark.parametrize(
    ("path", "template"), [("/talk", "/talk"), ("/api/blue/v1/talk/den", "/api/{tenant}/v1/talk/{room}")]
)
async def test_websockets(path: str, template: str) -> None:
    """A websocket has a template, and a method of its own."""
    asking, server = (
        Asking(application()),
        Events({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}),
    )
    scope = {"type": "websocket", "path": path, "root_path": "", "headers": [], "query_string": b"", "subprotocols": []}
    await asking(scope, server.receive, server.send)
    assert ["websocket.accept", "websocket.close"] == server.sent
    assert [("WEBSOCKET", template)] * EARLY_AND_LATE == asking.found


@pytest.mark.parametrize("method", ["BREW", "get", "x" * 1000])
async def test_odd_methods(method: str) -> None:
    """Whatever a client calls its method, it is one of a few."""
    asking = Asking(application())
    await asking(
        {"type": "http", "method": method, "path": "/", "root_path": "", "headers": [], "query_string": b""},
        Events({"type": "http.request"}).receive,
        Events().send,
    )
    assert [("other", "/")] * EARLY_AND_LATE == asking.found


async def test_inside_a_mount() -> None:
    """In a mounted application the template begins at the outermost router."""
    inner = Starlette(routes=[Route("/items/{id}", hello)])
    inner.add_middleware(Asking)
    asked: list[Any] = []
    build = inner.build_middleware_stack

    def build_and_keep() -> ASGIApp:
        built: Any = build()
        asked.append(built.app)
        return built  # type: ignore[no-any-return]

    inner.build_middleware_stack = build_and_keep  # type: ignore[method-assign]
    async with client(Starlette(routes=[Mount("/{tenant}/api", inner)])) as http:
        await http.get("/blue/api/items/1")
    assert [("GET", "/{tenant}/api/items/{id}")] * EARLY_AND_LATE == asked[0].found


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
    assert before == Asked.asked
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


class Original(Route):
    """Stands for FastAPI's routes, which look into the scope for where they are included, and match as that says."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match here."""
        context = scope.get("fastapi", {}).get("effective_route_context")
        return super().matches(scope) if context is None else context.matches(scope)


class Included(BaseRoute):
    """Stands for a router that FastAPI 0.137 or later has included under *prefix*: a route that knows others.

    They share the original one, which the router leaves in ``scope["route"]`` without any prefix.
    """

    def __init__(self, prefix: str, original: Route) -> None:
        self.context: Any = Route(prefix + original.path, original.endpoint)
        vars(self.context).update(original_route=original, starlette_route=None)

    def effective_route_contexts(self) -> Iterator[Any]:
        """Yield what stands for the original routes here."""
        yield self.context

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match, as the router that is included."""
        return self.context.matches(scope)[0], {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose the route and leave in the scope what FastAPI leaves there."""
        scope.update(self.context.matches(scope)[1])
        scope["route"] = self.context.original_route
        scope["fastapi"] = {"effective_route_context": self.context}
        await self.context.original_route.handle(scope, receive, send)


async def test_included_routers() -> None:
    """One router included under several prefixes has the templates of all of them."""
    original = Original("/items/{id}", hello)
    inner = Starlette(routes=[original, Included("/a", original), Included("/b", original)])
    asking = Asking(Starlette(routes=[Included("/v1", original), Mount("/{tenant}", inner)]))
    async with client(asking) as http:
        for path in ("/v1/items/1", "/blue/a/items/1", "/blue/b/items/1", "/blue/items/1"):
            assert "hello" == (await http.get(path)).text
    templates = ["/v1/items/{id}", "/{tenant}/a/items/{id}", "/{tenant}/b/items/{id}", "/{tenant}/items/{id}"]
    assert [("GET", template) for template in templates for _ in range(EARLY_AND_LATE)] == asking.found
