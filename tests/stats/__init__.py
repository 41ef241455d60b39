"""Tests of moetrace.stats."""
