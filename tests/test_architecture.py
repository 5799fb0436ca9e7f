"""Modules import only from below, third parties only where they are named, and the door shows what it should."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import poolwatch

SOURCE = Path(poolwatch.__file__).parent

# From the ground up; a module imports only from floors below its own.
FLOORS: dict[str, int] = {
    "errors": 0,
    "labels": 0,
    "histogram": 0,
    "requests": 1,
    "trouble": 0,
    "traces": 0,
    "catalog": 2,
    "slot": 2,
    "usage": 2,
    "snapshot": 2,
    "ledger": 3,
    "routes": 3,
    "arguments": 2,
    "unreturned": 4,
    "classes": 2,
    "sockets": 2,
    "privates": 3,
    "drivers": 3,
    "deadline": 3,
    "server": 4,
    "checks": 4,
    "hotpath": 4,
    "records": 4,
    "activity": 5,
    "reasons": 5,
    "losses": 5,
    "asking": 6,
    "closing": 6,
    "guard": 6,
    "pings": 6,
    "listeners": 7,
    "timing": 8,
    "reader": 8,
    "collector": 8,
    "attachment": 9,
    "watch": 10,
    "middleware": 11,
    "__init__": 12,
    "demo": 13,
}
THIRD_PARTY: dict[str, set[str]] = {
    "errors": set(),
    "labels": set(),
    "catalog": set(),
    "histogram": set(),
    "requests": set(),
    "trouble": set(),
    "traces": {"greenlet"},
    "slot": set(),
    "usage": set(),
    "ledger": set(),
    "snapshot": set(),
    "routes": {"starlette"},
    "unreturned": set(),
    "arguments": {"sqlalchemy", "prometheus_client"},
    "classes": {"sqlalchemy"},
    "privates": {"sqlalchemy"},
    "drivers": {"sqlalchemy"},
    "deadline": set(),
    "sockets": set(),
    "server": {"sqlalchemy"},
    "checks": set(),
    "hotpath": set(),
    "records": {"sqlalchemy"},
    "activity": {"sqlalchemy"},
    "reasons": {"sqlalchemy"},
    "losses": {"sqlalchemy"},
    "asking": {"sqlalchemy"},
    "closing": {"sqlalchemy"},
    "guard": {"sqlalchemy"},
    "pings": {"sqlalchemy"},
    "listeners": {"sqlalchemy"},
    "timing": {"sqlalchemy"},
    "reader": {"sqlalchemy"},
    "collector": {"prometheus_client"},
    "attachment": {"sqlalchemy"},
    "watch": {"prometheus_client", "sqlalchemy"},
    "middleware": {"prometheus_client", "starlette"},
    "__init__": set(),
    "demo": {"sqlalchemy", "prometheus_client", "starlette", "uvicorn", "pymysql"},
}
MODULES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the room that the module at *path* is, or is in."""
    inside = path.relative_to(SOURCE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports(path: Path) -> set[str]:
    """Return the dotted names that the module at *path* imports, those for type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "poolwatch" else {module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    """No module reads upward, and none knows a third party that its floor does not."""
    own = room(path)
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "poolwatch":
            other = rest.partition(".")[0]
            # What the package exports is the door itself.
            floor = FLOORS.get(other, FLOORS["__init__"])
            assert other == own or floor < FLOORS[own], f"{own} imports {name}"
        elif first not in sys.stdlib_module_names:
            assert first in THIRD_PARTY[own], f"{own} imports {name}"


def test_every_room_is_known() -> None:
    """A new module says on which floor it stands."""
    assert {room(path) for path in MODULES} == set(FLOORS) == set(THIRD_PARTY)


def test_public_door() -> None:
    """What the package exports is listed, sorted, and there."""
    public = {name for name, value in vars(poolwatch).items() if not name.startswith("_") and not _is_module(value)}
    assert sorted(poolwatch.__all__) == sorted(public - {"annotations", "TYPE_CHECKING"})
    assert poolwatch.__version__
    with pytest.raises(AttributeError, match="nothing_like_it"):
        poolwatch.nothing_like_it  # noqa: B018


def _is_module(value: object) -> bool:
    return isinstance(value, type(sys))


def test_import_without_drivers_and_extras() -> None:
    """Importing the package needs no database driver, no server and no extra, and registers nothing."""
    program = """
import sys
for name in ("aiomysql", "pymysql", "asyncpg", "uvicorn"):
    sys.modules[name] = None
import poolwatch
from prometheus_client import REGISTRY
assert not [name for name in REGISTRY._names_to_collectors if name.startswith("sqlalchemy_pool")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
