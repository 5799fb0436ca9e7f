"""FastAPI's routes, oldest and newest: the full template, whichever way its routers lead there."""

# Without postponed annotations: FastAPI reads them, and does not know what is inside a function.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Host, Match, Mount, Route
from starlette.types import Scope

from fastapi_stage import Stage, Using
from support import use

MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio
USED = {"used": True}


class Versioned(APIRoute):
    """A route of the application's own class, which other versions' requests pass by."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match what FastAPI would, for version 2."""
        return super().matches(scope) if (b"version", b"2") in scope["headers"] else (Match.NONE, {})


class Pages:
    """Pages that use a connection."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def page(self) -> dict[str, bool]:
        """Answer."""
        await use(self._engine)
        return USED

    async def other(self) -> dict[str, bool]:
        """Answer on another page."""
        return await self.page()

    async def item(self, id: int) -> dict[str, bool]:  # noqa: A002, ARG002
        """Answer one with a parameter."""
        return await self.page()

    async def plain(self, _request: Request) -> JSONResponse:
        """Answer as Starlette's routes do."""
        return JSONResponse(await self.page())

    async def failed(self, _request: Request, error: Exception) -> JSONResponse:
        """Answer an error."""
        return JSONResponse(await self.page(), getattr(error, "status_code", 422))

    async def talk(self, websocket: WebSocket) -> None:
        """Answer a websocket."""
        await self.page()
        await websocket.accept()
        await websocket.close()

    def cls(self) -> type[HTTPEndpoint]:
        """Return a page that is a class."""
        pages = self

        class Page(HTTPEndpoint):
            async def get(self, request: Request) -> JSONResponse:
                return await pages.plain(request)

        return Page

    def items(self) -> APIRouter:
        """Return a router with every kind of route."""
        router = APIRouter(prefix="/items")
        router.add_api_route("", self.page)
        router.add_api_route("/{id}", self.item, methods=["GET"])
        router.add_api_route("/{id}", self.item, methods=["PUT"])
        router.add_api_route("/file/{name:path}", self.page)
        router.add_api_websocket_route("/talk/{room}", self.talk)
        # Starlette's know no prefix but that of where they are included.
        router.add_route("/plain/{name}", self.plain)
        return router


def application(pages: Pages, folder: Path) -> FastAPI:
    """Return an application with every way of leading to a page."""
    app = FastAPI(exception_handlers={HTTPException: pages.failed, RequestValidationError: pages.failed})
    items, inner, late, mounts, versioned = (
        *(pages.items(), APIRouter(prefix="/inner/{x}"), APIRouter(prefix="/late"), APIRouter()),
        APIRouter(prefix="/versioned", route_class=Versioned),
    )
    inner.include_router(items, prefix="/deep")
    app.include_router(items, prefix="/v1")
    app.include_router(items, prefix="/v2/{tenant}")
    app.include_router(inner, prefix="/nest")
    app.include_router(late)
    late.add_api_route("/{q}", pages.page)
    versioned.add_api_route("/{new}", pages.page)
    versioned.add_api_route("/{two}/{words}", pages.other)
    app.include_router(versioned)
    app.add_api_route("/versioned/{old}", pages.page)
    sub = FastAPI()
    sub.include_router(items, prefix="/s")
    sub.add_api_route("/direct/{z}", pages.page)
    sub.add_route("/plain/{z}", pages.plain)
    app.mount("/{tenant}/sub", sub)
    mounts.mount("/starlette", Starlette(routes=[Route("/{y}", pages.plain)]))
    mounts.mount("/sub", sub)
    app.include_router(mounts, prefix="/mounts/{m}")
    app.router.routes.append(Route("/class/{name}", pages.cls()))
    app.router.routes.append(Mount("/starlette", routes=[Route("/{y}", pages.plain), Mount("/{tenant}", sub)]))
    app.router.routes.append(Host("blue.org", Starlette(routes=[Route("/blue/{y}", pages.plain)])))
    app.add_api_websocket_route("/talk/{room}", pages.talk)
    app.add_api_route("/app/page/{n}", pages.page)
    app.add_api_route("/app/order/{n}", pages.page, methods=["POST"])
    if hasattr(app, "frontend"):
        router = APIRouter(prefix="/router")
        for place, path in ((router, "/ui"), (sub, "/ui"), (app, "/app/own"), (app, "/app"), (app, "/app/more")):
            place.frontend(path, directory=folder)
        app.include_router(router, prefix="/pre")
    return app


REQUESTS = [
    ("GET", "/v1/items", "/v1/items"),
    ("GET", "/v1/items/5", "/v1/items/{id}"),
    ("HEAD", "/v1/items/5", "/v1/items/{id}"),
    ("PUT", "/v2/blue/items/5", "/v2/{tenant}/items/{id}"),
    ("GET", "/v1/items/file/a/b", "/v1/items/file/{name:path}"),
    ("GET", "/v1/plain/one", "/v1/plain/{name}"),
    ("GET", "/nest/inner/1/deep/items/5", "/nest/inner/{x}/deep/items/{id}"),
    ("GET", "/blue/sub/s/items/5", "/{tenant}/sub/s/items/{id}"),
    ("GET", "/blue/sub/direct/5", "/{tenant}/sub/direct/{z}"),
    ("GET", "/blue/sub/plain/5", "/{tenant}/sub/plain/{z}"),
    ("GET", "/blue/sub/docs", "/{tenant}/sub/docs"),
    ("GET", "/starlette/5", "/starlette/{y}"),
    ("GET", "/starlette/blue/direct/5", "/starlette/{tenant}/direct/{z}"),
    ("GET", "/starlette/blue/s/items/5", "/starlette/{tenant}/s/items/{id}"),
    ("GET", "/class/one", "/class/{name}"),
    ("GET", "/docs", "/docs"),
    ("GET", "/openapi.json", "/openapi.json"),
    ("GET", "/versioned/1", "/versioned/{old}"),
    # Not an answer, but a route all the same.
    ("DELETE", "/nest/inner/1/deep/items/5", "/nest/inner/{x}/deep/items/{id}"),
    ("BREW", "/blue/sub/direct/5", "/{tenant}/sub/direct/{z}"),
    ("POST", "/class/one", "/class/{name}"),
    ("POST", "/app/page/1", "/app/page/{n}"),
    ("GET", "/app/order/1", "/app/order/{n}"),
    ("GET", "/v1/items/none", "/v1/items/{id}"),
    # None.
    ("GET", "/secret/4711", "unmatched"),
    ("GET", "/blue/sub/secret", "unmatched"),
    ("GET", "/versioned/secret/4711", "unmatched"),
    # Redirected.
    ("GET", "/v1/items/5/", "unmatched"),
    ("GET", "/v1/items/", "unmatched"),
    ("GET", "/app/page/1/", "unmatched"),
]
# What only some versions serve; the others find nothing there.
PERHAPS = [
    ("GET", "/late/1", "/late/{q}"),
    ("GET", "/nest/inner/1/deep/plain/5", "/nest/inner/{x}/deep/plain/{name}"),
    ("GET", "/mounts/1/starlette/4", "/mounts/{m}/starlette/{y}"),
    ("GET", "/mounts/1/sub/s/items/4", "/mounts/{m}/sub/s/items/{id}"),
    ("GET", "/mounts/1/sub/plain/4", "/mounts/{m}/sub/plain/{z}"),
    ("GET", "/app/", "/app/{path:path}"),
    ("GET", "/app", "/app/{path:path}"),
    ("GET", "/app/own/", "/app/own/{path:path}"),
    ("GET", "/app/more/", "/app/more/{path:path}"),
    ("GET", "/pre/router/ui/", "/pre/router/ui/{path:path}"),
    ("GET", "/blue/sub/ui/", "/{tenant}/sub/ui/{path:path}"),
]
TALKS = [
    ("/talk/den", "/talk/{room}"),
    ("/v2/blue/items/talk/den", "/v2/{tenant}/items/talk/{room}"),
    ("/blue/sub/s/items/talk/den", "/{tenant}/sub/s/items/talk/{room}"),
    ("/nobody", "unmatched"),
]


@pytest.fixture
async def stage(make_engine: MakeEngine, registry: CollectorRegistry, tmp_path: Path, request: Any) -> Stage:
    """Return the application; who else uses connections is the parameter, and whether all is read before routing."""
    way, early = request.param
    engine = make_engine(pool_reset_on_return=None)
    (tmp_path / "index.html").write_text("a frontend")
    app = application(Pages(engine), tmp_path)
    readers: list[Any] = []
    if way == "pure":
        app.add_middleware(Using, engine=engine, readers=readers)
    elif way == "http":

        @app.middleware("http")
        async def hold(request: Request, call_next: Any) -> Any:
            async with engine.connect():
                for each in readers:
                    each()
                return await call_next(request)

    made = Stage(app, engine, registry)
    readers += [made.watched.snapshot] if early else []
    return made


@pytest.mark.parametrize("root_path", ["", "/proxy"])
@pytest.mark.parametrize(
    "stage", [("page", False), ("pure", False), ("pure", True), ("http", True)], indirect=True, ids=str
)
async def test_templates(stage: Stage, root_path: str, request: pytest.FixtureRequest) -> None:
    """Whoever used it, in the page, in a handler or around the router, and whenever it was asked: one owner."""
    by_pages = request.node.callspec.params["stage"][0] == "page"
    used = 0
    for method, path, template in [*REQUESTS, *PERHAPS]:
        answer = await stage.ask(method, path, root_path)
        route = "unmatched" if (method, path, template) in PERHAPS and answer.status_code == 404 else template
        owner = (method if method != "BREW" else "other", route)
        expected = {owner} if not by_pages or method == "HEAD" or "used" in answer.text else set()
        assert (path, expected) == (path, set(stage.owners()))
        used += "used" in answer.text
    assert used >= 20
    for path, template in TALKS:
        sent = await stage.talk(path, root_path)
        expected = {("WEBSOCKET", template)} if "websocket.accept" in sent else set()
        # What goes around HTTP alone sees none of them.
        assert (path, expected) == (path, set(stage.owners()) - {("WEBSOCKET", "unmatched")})
    assert {("GET", "/blue/{y}")} == set(
        (await stage.ask("GET", "/blue/1", root_path, headers={"host": "blue.org"}), stage.owners())[1]
    )


@pytest.mark.parametrize("stage", [("pure", False), ("pure", True)], indirect=True, ids=str)
async def test_a_class_of_the_applications(stage: Stage) -> None:
    """A route that decides for itself which requests are its own is taken at its word, before and after routing."""
    await stage.ask("GET", "/versioned/1", headers={"version": "2"})
    assert {("GET", "/versioned/{new}"): 2} == stage.owners()


@pytest.mark.parametrize("stage", [("pure", False), ("pure", True)], indirect=True, ids=str)
async def test_an_error_before_routing(stage: Stage) -> None:
    """Middleware that fails has used it for the route that the request was on its way to."""
    for path, template in (("/v2/blue/items/5", "/v2/{tenant}/items/{id}"), ("/secret", "unmatched")):
        assert 500 == (await stage.ask("GET", path, headers={"x-refuse": "1"})).status_code
        assert {("GET", template): 1} == stage.owners()


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("early", [False, True])
async def test_a_root_path_of_its_own(make_engine: MakeEngine, registry: CollectorRegistry, *, early: bool) -> None:
    """FastAPI's own root_path is no part of any template, whether or not the proxy takes it off."""
    engine = make_engine()
    app, pages, sub, readers = FastAPI(root_path="/api"), Pages(engine), FastAPI(), []  # type: ignore[var-annotated]
    app.include_router(pages.items(), prefix="/v1")
    sub.include_router(pages.items(), prefix="/s")
    app.mount("/{tenant}", sub)
    app.add_middleware(Using, engine=engine, readers=readers)
    stage = Stage(app, engine, registry)
    readers += [stage.watched.snapshot] if early else []
    for path, template in (
        ("/v1/items/5", "/v1/items/{id}"),
        ("/api/v1/items/5", "/v1/items/{id}"),
        ("/api/blue/s/items/5", "/{tenant}/s/items/{id}"),
    ):
        assert USED == (await stage.ask("GET", path)).json()
        assert {("GET", template): 2} == stage.owners()
    # FastAPI itself does not find what is mounted there.
    assert 404 == (await stage.ask("GET", "/blue/s/items/5")).status_code
    assert {("GET", "unmatched"): 1} == stage.owners()


async def test_what_comes_later(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Routes, and routers included anew, are found while requests are served, for as long as they are called late."""
    engine = make_engine()
    app, router, pages = FastAPI(), APIRouter(), Pages(engine)
    router.add_api_route("/page", pages.page)
    # Nobody includes it here.
    app.mount("/alone", router)
    app.include_router(router, prefix="/zero")
    stage = Stage(app, engine, registry)
    prefixes = ["/alone", "/zero"]
    for number in range(4):
        app.include_router(router, prefix=f"/{number}")
        router.add_api_route(f"/late/{number}", pages.other)
        prefixes.append(f"/{number}")
        for prefix in prefixes:
            assert 200 == (await stage.ask("GET", f"{prefix}/page")).status_code
            assert {("GET", f"{prefix}/page"): 1} == stage.owners()
        # Old versions do not serve what was not there when it was included.
        served = (await stage.ask("GET", f"/zero/late/{number}")).status_code == 200
        assert ({("GET", f"/zero/late/{number}"): 1} if served else {}) == stage.owners()
