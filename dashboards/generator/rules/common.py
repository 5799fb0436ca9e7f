"""What several rules are made of."""

from generator.options import Options


def group_by(options: Options) -> str:
    """Return the labels by which alerts are kept apart.

    "by" and not "without": scrape configurations add pod, container, node and more, which would keep the processes of
    one job apart. A label that nobody sets costs nothing.
    """
    return ", ".join((*options.labels, "job", "pool"))


def process(options: Options) -> str:
    """Return the labels that name a pool in a process."""
    return ", ".join(options.process)
