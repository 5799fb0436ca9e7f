"""The source of everything in this directory that is marked as generated."""
