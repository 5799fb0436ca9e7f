"""What poolwatch raises, and when.

::

    PoolwatchError
    ├── ArgumentError (ValueError)      an argument has a value that cannot be used
    │   └── ConflictError               it contradicts what this pool is already watched with
    ├── ArgumentTypeError (TypeError)   an argument has the wrong type
    ├── MetricNameError (ValueError)    the registry already holds a metric of one of our names
    └── WatchClosedError (RuntimeError) a closed Watch was asked for a snapshot

All of them come from calls the operator makes. Nothing is ever raised into a request.
"""


class PoolwatchError(Exception):
    """Base of every error of this library."""


class ArgumentError(PoolwatchError, ValueError):
    """An argument has a value that cannot be used."""


class ConflictError(ArgumentError):
    """A pool that is already watched was watched again with a different argument."""


class ArgumentTypeError(PoolwatchError, TypeError):
    """An argument has the wrong type."""


class MetricNameError(PoolwatchError, ValueError):
    """The registry already holds a metric of one of our names."""


class WatchClosedError(PoolwatchError, RuntimeError):
    """A closed Watch was asked for a snapshot."""
