"""Progress: a bar where somebody watches, lines in a log."""

from __future__ import annotations

import pytest

from moetrace import progress
from moetrace.progress import clock, progress_bar


@pytest.fixture
def time_of_day(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_left(capsys, time_of_day):
    with progress_bar(1000, "layers", True) as bar:
        for seconds in (4.0, 8.0, 12.0, 16.0):
            time_of_day[0] = 100.0 + seconds
            bar.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "layers: 300 of 1,000 cases, 0:28 left",
        "layers: 400 of 1,000 cases, 0:16 in all",
    ]


def test_what_is_soon_done_says_nothing_in_a_log(capsys, time_of_day):
    with progress_bar(3, "layers", True) as bar:
        time_of_day[0] += 5
        bar.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", [None, False])
def test_a_log_that_nobody_asked_for_is_empty(asked, capsys, time_of_day):
    with progress_bar(3, "layers", asked) as bar:
        time_of_day[0] += 50
        bar.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", [None, True, False])
def test_a_terminal_gets_a_bar(asked, capsys, monkeypatch):
    monkeypatch.setattr(progress, "somebody_watches", lambda: True)
    with progress_bar(3, "layers", asked) as bar:
        bar.update(3)
    assert ("layers:" in capsys.readouterr().err) == (asked is not False)


def test_no_line_after_an_error(capsys, time_of_day):
    def stopped() -> None:
        with progress_bar(9, "layers", True) as bar:
            time_of_day[0] += 11
            bar.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err.splitlines() == ["layers: 1 of 9 cases, 1:28 left"]


def test_times_are_read_by_people():
    assert [clock(s) for s in (0.4, 75, 3599.6, 3700)] == ["0:00", "1:15", "1:00:00", "1:01:40"]
