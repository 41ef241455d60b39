"""Traces: what a user calls."""
