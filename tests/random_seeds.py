"""How long random runs are, and whether they are the same each time, which they are unless the environment says more.

``POOLWATCH_RANDOM=10`` makes ten times as many examples, which nobody has seen before; Hypothesis prints the steps of
one that fails, and the seed that ``pytest --hypothesis-seed`` finds it by again.
"""

from __future__ import annotations

import os

from hypothesis import settings


def run_of(examples: int) -> settings:
    """Return the settings of a run of so many *examples*, or of as many times more as were asked for."""
    times = os.environ.get("POOLWATCH_RANDOM")
    return settings(
        max_examples=examples * int(times or 1),
        stateful_step_count=50,
        deadline=None,
        derandomize=times is None,
        database=None,
    )
