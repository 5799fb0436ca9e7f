"""How an error of our own is told."""

from __future__ import annotations


def describe(where: str, error: Exception) -> str:
    """Say where an error of our own came from, without its text, which may hold a statement or a password."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "unknown place"
    return f"{type(error).__name__} in {where} at {place}"
