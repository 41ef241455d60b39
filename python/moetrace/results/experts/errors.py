"""What can be wrong with a question to an expert trace."""

from __future__ import annotations

from moetrace.errors import ArgumentError, MoetraceWarning


class ExpertRangeError(ArgumentError, IndexError):
    """An expert that the layer doesn't have."""


class NeverActiveError(ArgumentError):
    """An expert that is clean-active in none of the cases: it was never patched."""


class NoRecurrentExpertError(ArgumentError):
    """No expert is clean-active in as many cases as asked for."""


class NoControlsError(ArgumentError):
    """The expert is alone wherever it is clean-active, so there is nothing to compare it with."""


class CaseMismatchError(ArgumentError):
    """Two traces that must share their cases don't."""


class FewControlsWarning(MoetraceWarning):
    """Some cases have fewer other clean-active experts than controls were asked for."""
