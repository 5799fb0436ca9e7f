"""Situations on every driver and event loop."""
