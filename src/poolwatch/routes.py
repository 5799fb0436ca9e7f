"""The full template of the route that a request went to, as the application's code has it; never a path."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.routing import Host, Match, Mount

from poolwatch.requests import OTHER, UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
# What a mounted application that shows no routes is asked for, or a route that shows no path.
_ANYTHING = "/{path:path}"
# How many mounts within mounts, and layers of middleware around an application, are looked through.
_LAYERS = 20
# How many endpoints that no route has make us look for new routes.
_MISSES = 100


class Node(NamedTuple):
    """A route, or what leads to others.

    Attributes:
        matcher: What has ``matches(scope)``.
        mark: What the router leaves in the scope when it has chosen it.
        endpoint: What the scope has as ``endpoint`` then.
        template: From the outermost router.
        above: The nodes that lead here.
        below: Where it leads; ``None`` for a route, or an application that shows no routes.
    """

    matcher: Any
    mark: object
    endpoint: object
    template: str
    above: tuple[Node, ...]
    below: list[Node] | None


class Routes:
    """Finds the templates of one application's routes.

    Called with a scope, returns its method and template. Reads what the router left in the scope; only what that does
    not tell apart, or not yet, is matched once more. Raises what a route of the application's own making raises.
    """

    def __init__(self) -> None:
        self._router: object = None
        self._nodes: list[Node] = []
        self._leaves: dict[int, list[Node]] = {}
        # Kept, so that no other object gets the number of one that is gone.
        self._missed: list[object] = []

    def __call__(self, scope: Any) -> tuple[str, str]:
        """Return one of the standard methods, ``WEBSOCKET`` or ``other``, and a template or ``unmatched``."""
        if scope["type"] == "websocket":
            method = "WEBSOCKET"
        else:
            method = scope["method"] if scope["method"] in METHODS else OTHER
        return method, self._template(scope) or UNMATCHED

    def _template(self, scope: Any) -> str | None:
        # Middleware may give the router a scope of its own; the application is in ours before any of it runs.
        router = scope.get("router") or getattr(scope.get("app"), "router", None)
        if router is not self._router:
            self._missed.clear()
            self._learn(router)
        endpoint, route, marks = scope.get("endpoint"), scope.get("route"), _marks(scope)
        leaves = self._leaves.get(id(endpoint), [])
        chosen = _chosen(leaves, marks)
        # An endpoint may have got another route since, or be reached by a router that shows none.
        unknown = () if chosen else marks if leaves else (endpoint,)
        if any(self._is_new(each) for each in unknown):
            self._learn(router)
            leaves = self._leaves.get(id(endpoint), [])
            chosen = _chosen(leaves, marks)
        found = {each.template for each in chosen}
        if len(found) == 1:
            return found.pop()
        # Else not routed yet, not by this router, or nowhere; or one of several routes of an endpoint.
        before = _unrouted(scope)
        matched = _match_again(before, chosen or leaves) or _match(before, self._nodes)
        if matched is None and route is None and len(found := {each.template for each in leaves}) == 1:
            # Routed by an older Starlette, and its path was rewritten.
            return found.pop()
        return matched

    def _learn(self, router: object) -> None:
        owner, routes = _routes_of(router)
        nodes = list(_nodes(routes or (), "", (), (routes,)))
        nodes += _frontends(owner, "", (), [*nodes])
        leaves: dict[int, list[Node]] = {}
        for node in _leaves(nodes):
            if node.endpoint is not None:
                leaves.setdefault(id(node.endpoint), []).append(node)
        self._nodes, self._leaves, self._router = nodes, leaves, router

    def _is_new(self, mark: object) -> bool:
        if mark is None or len(self._missed) >= _MISSES or any(each is mark for each in self._missed):
            return False
        self._missed.append(mark)
        return True


class _Included(NamedTuple):
    """A route of FastAPI's in one of the places where its router is included."""

    path: str
    endpoint: object
    context: Any

    def matches(self, scope: Any) -> Any:
        # As FastAPI asks it, which leaves the answer to the route: it may be of a class of the application's.
        # The scope is a copy of ours that had none.
        scope["fastapi"] = {"effective_route_context": self.context}
        try:
            return self.context.original_route.matches(scope)
        finally:
            del scope["fastapi"]


class _Frontend(NamedTuple):
    """A frontend of FastAPI's: it is tried last, when not even another method or a redirect would help."""

    path: str
    route: Any
    others: list[Node]
    redirects: bool

    def matches(self, scope: Any) -> Any:
        match, _ = self.route.matches_with_path(scope, self.path)
        if match is Match.NONE or (self.redirects and self._redirected(scope)):
            return Match.NONE, {}
        # The first PARTIAL is taken when there is nothing better: another route's, else this.
        return Match.PARTIAL, {}

    def _redirected(self, scope: Any) -> bool:
        path = scope["path"]
        other = {**scope, "path": path.rstrip("/") if path.endswith("/") else path + "/"}
        return any(each.matcher.matches(other)[0] is not Match.NONE for each in self.others)


def _nodes(routes: Iterable[Any], prefix: str, above: tuple[Node, ...], inside: tuple[Any, ...]) -> Iterator[Node]:
    for route in routes:
        # FastAPI 0.137 and later keep an included router as one route; these are its own, with all prefixes.
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield _node(route, route, prefix, above, inside)
        else:
            for each in contexts():
                matcher = each.starlette_route or _Included(each.path, each.endpoint, each)
                yield _node(matcher, each, prefix, above, inside)


def _node(matcher: Any, mark: object, prefix: str, above: tuple[Node, ...], inside: tuple[Any, ...]) -> Node:
    path = getattr(matcher, "path", None)
    if not isinstance(matcher, (Mount, Host)):
        template = prefix + (path if isinstance(path, str) else _ANYTHING)
        return Node(matcher, mark, getattr(matcher, "endpoint", None), template, above, None)
    # A host has none.
    template = prefix + (path or "")
    router, routes = _routes_of(matcher.app) if len(above) < _LAYERS else (None, None)
    # One that is mounted in itself, under two names perhaps, is looked through once there.
    if routes is None or sum(each is routes for each in inside) > 1:
        return Node(matcher, mark, matcher.app, template + _ANYTHING, above, None)
    below: list[Node] = []
    node = Node(matcher, mark, matcher.app, template, above, below)
    below += _nodes(routes, template, (*above, node), (*inside, routes))
    below += _frontends(router, template, (*above, node), [*below])
    return node


def _frontends(app: Any, prefix: str, above: tuple[Node, ...], others: list[Node]) -> list[Node]:
    found = []
    try:
        router = getattr(app, "router", app)
        # Private, and nothing public leads to them; without it their requests are unmatched.
        for each in getattr(router, "_iter_low_priority_routes", tuple)():
            start = getattr(each, "frontend_prefix", "")
            for route in getattr(each, "original_route", each).routes:
                path = (start + route.path).rstrip("/")
                matcher = _Frontend(path or "/", route, others, router.redirect_slashes)
                found.append(Node(matcher, None, None, prefix + path + _ANYTHING, above, None))
    except Exception:  # noqa: BLE001
        return []
    # As FastAPI chooses: the longest, of two the one that was added first.
    return sorted(found, key=lambda node: -len(node.matcher.path))


def _routes_of(app: Any) -> tuple[Any, Sequence[Any] | None]:
    """Return *app* or, if it is middleware, the application inside, and its routes; ``None`` where they are unknown."""
    # A proxy of another framework's may be not to be asked now.
    with suppress(Exception):
        for _ in range(_LAYERS):
            routes = getattr(app, "routes", None)
            if isinstance(routes, Sequence) and all(hasattr(each, "matches") for each in routes):
                return app, routes
            app = getattr(app, "app", None)
    return None, None


def _leaves(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        if node.below is None:
            yield node
        else:
            yield from _leaves(node.below)


def _marks(scope: Any) -> tuple[object, ...]:
    route, context = scope.get("route"), (scope.get("fastapi") or {}).get("effective_route_context")
    # The same route may be included elsewhere, and be reached where nobody includes it.
    included = route is not None and getattr(context, "original_route", None) is route
    return (context,) if included else (context, route)


def _chosen(leaves: Iterable[Node], marks: tuple[object, ...]) -> list[Node]:
    return [each for each in leaves if any(each.mark is mark for mark in marks)]


def _unrouted(scope: Any) -> dict[str, Any]:
    """Return *scope* as it was before any router saw it."""
    before = {**scope, "root_path": scope.get("app_root_path", scope.get("root_path", "")), "path_params": {}}
    before.pop("fastapi", None)
    return before


def _match(scope: dict[str, Any], nodes: Iterable[Node]) -> str | None:
    """Return the template of the route that a router with *nodes* would choose; ``None`` if it has none."""
    partial = None
    for node in nodes:
        match, child = node.matcher.matches(scope)
        if match is Match.FULL:
            return node.template if node.below is None else _match({**scope, **child}, node.below)
        if match is Match.PARTIAL and partial is None:
            partial = node.template
    return partial


def _match_again(scope: dict[str, Any], leaves: Iterable[Node]) -> str | None:
    """Return the template of the first of *leaves* that *scope* leads to."""
    partial = None
    for leaf in leaves:
        match, inner = Match.FULL, scope
        for node in (*leaf.above, leaf):
            if match is not Match.NONE:
                match, child = node.matcher.matches(inner)
                inner = {**inner, **child}
        if match is Match.FULL:
            return leaf.template
        if match is Match.PARTIAL and partial is None:
            partial = leaf.template
    return partial
