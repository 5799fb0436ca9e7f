"""What the garbage collector need not look at: tests ask for thousands of collections, which are about their own."""

from __future__ import annotations

import gc


def set_aside() -> None:
    """Keep the garbage collector from what lives now: it would go through that again at each collection."""
    gc.collect()
    gc.freeze()
