"""Every value that a label of the catalogue can take, where they are known beforehand."""

# The first nine are also reasons of a reconnect: another connection takes the place of the one that went.
REPLACED = (
    "recycle",
    "pool_invalidated",
    "soft_invalidated",
    "invalidated",
    "disconnect",
    "pre_ping",
    "guard_dead",
    "guard_deadline",
    "cancelled",
)
CLOSED = (
    *REPLACED,
    "reset_failed",
    "overflow",
    "unpooled",
    "disposed",
    "detached",
    "leaked",
    "failed",
    "other",
)
STATES = ("checked_out", "idle", "condemned", "dead")
RISKS = ("safe", "unknown", "protected", "soon", "imminent", "expired", "dead")
FAILURES = ("timeout", "connect", "cancelled", "other")
CAUSES = ("inactivity", "killed", "shutdown", "network", "unknown")
PHASES = ("in_use", "ping_failed", "pre_ping", "guard", "return")
CHECKS = (
    "recycle_unprotected",
    "recycle_churn",
    "guard_and_pre_ping",
    "pre_ping_broken",
    "lifo_tail",
    "unlimited_overflow",
    "process_over_server",
    "fleet_over_server",
    "limit_unknown",
    "hidden_limit",
    "pool_cannot_queue",
)
