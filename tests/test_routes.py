"""The route of a request: the template as the code has it, through mounts, hosts and middleware; never a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute

from asgi import EARLY_AND_LATE, Asking, Copying, Events, client, closed, foreign, hello

if TYPE_CHECKING:
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


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
