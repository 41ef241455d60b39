"""Engines: how a trace is run on a model."""
