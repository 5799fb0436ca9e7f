"""What to do about lost connections, by what the loss was: text for an alert, chosen by its labels."""

AT_CHECKOUT = "pool_pre_ping or watch(engine, guard=True), with aiomysql under uvloop only the latter,"
IDLE_ONES = f"{AT_CHECKOUT} spares users those that were idle."
HIDDEN = (
    "Where the dashboard shows a hidden limit, tell watch() of it, as inactivity_limit, with guard=True or with"
    " pool_recycle below it."
)

PING_FAILED = (
    "pool_pre_ping met them in vain: SQLAlchemy does not take its error for a lost connection, as with"
    " aiomysql under uvloop. Turn on watch(engine, guard=True) in its place, set pool_recycle below the limit, or"
    " change the driver or the event loop."
)
BY_CAUSE = {
    "inactivity": (
        f"They had been silent for as long as their limit allows. Turn on {AT_CHECKOUT} or set"
        " pool_recycle below the limit; one that was held all the while has to be given back sooner."
    ),
    "killed": (
        "They were closed in order while the server lived: by KILL, by a limit on statements or"
        f" transactions, or by a proxy. Find out who does it. {HIDDEN} {IDLE_ONES}"
    ),
    "shutdown": (
        f"The server goes down again and again; its log says why. {IDLE_ONES} What was under way has to be tried again."
    ),
    "network": (
        "They were reset or broken off: by a load balancer or firewall that forgets silent ones, a crash,"
        f" or a bad line. {HIDDEN} Otherwise, {IDLE_ONES}"
    ),
}
UNKNOWN = f"The driver does not tell why; the server's log may. {HIDDEN} {IDLE_ONES}"


def remedy() -> str:
    """Return the template that chooses by the labels `phase` and `cause`."""
    chosen = [f'{{{{ if eq $labels.phase "ping_failed" }}}}{PING_FAILED}']
    chosen += [f'{{{{ else if eq $labels.cause "{cause}" }}}}{text}' for cause, text in BY_CAUSE.items()]
    return "".join([*chosen, f"{{{{ else }}}}{UNKNOWN}{{{{ end }}}}"])
