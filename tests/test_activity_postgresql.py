"""Inactivity is what PostgreSQL counts: the moments that we export against its own, whatever was sent last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from activity_steps import AUTOCOMMIT, MODES, QUIET, compare, do_nothing, execute_raw
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from activity_steps import Step
    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

POSTGRESQL = [each for each in VARIANTS if not each.driver.mysql and not each.tls]


# Nothing is open when the pool takes a raw connection back, or the pool leaves it open: nothing is sent.
SILENT = [{"pool_reset_on_return": None}, AUTOCOMMIT, AUTOCOMMIT | QUIET]


@pytest.mark.parametrize("options", MODES, ids=str)
@on_each(POSTGRESQL)
async def test_agrees_with_the_server(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """Held and idle, the last activity we export is the server's own; ROLLBACK is sent in transactions alone."""
    raw: list[Step] = [do_nothing] if options in SILENT else [execute_raw, do_nothing]
    assert {} == await compare(make_client, server, options, raw)
