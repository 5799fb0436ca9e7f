"""A demonstration that needs nothing but Debian's packages: ``python -m poolwatch.demo``."""
