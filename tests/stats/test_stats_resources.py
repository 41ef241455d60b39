"""Memory stays bounded, Ctrl-C is heard, other Python threads keep running."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from moetrace import stats

PEAK = """
import resource, sys, numpy as np
from moetrace import stats
x = np.random.default_rng(0).normal(0.1, 1, ({rows}, {columns}))
stats.bootstrap(x[:, :8], n_resamples=100), stats.sign_flip(x[:, :8], n_flips=100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{call}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(
    ("rows", "columns", "call"),
    [
        (128, 6144, "stats.bootstrap(x, ci='bca', n_resamples=5000, threads=2)"),
        (128, 6144, "stats.sign_flip(x, n_flips=10_000, correction='max_t', threads=2)"),
        (128, 8, "stats.bootstrap(x, n_resamples=1_000_000, threads=4)"),
        (20, 2, "stats.bootstrap(x, statistic='quantile', n_resamples=1_000_000, threads=4)"),
        (20_000, 2, "stats.bootstrap(x, n_resamples=12_000, threads=4)"),
        (20, 100, "stats.sign_flip(x, n_flips=3_000_000, correction='max_t')"),
    ],
)
def test_peak_memory_in_megabytes(rows, columns, call):
    script = PEAK.format(rows=rows, columns=columns, call=call)
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(printed.stdout) < 300


@pytest.mark.parametrize(
    "call",
    [
        lambda x: stats.bootstrap(x, n_resamples=1_000_000),
        lambda x: stats.bootstrap(x, n_resamples=1_000_000, threads=1),
        lambda x: stats.bootstrap(x, statistic="quantile", n_resamples=1_000_000),
        lambda x: stats.sign_flip(x, n_flips=2**31 - 1),
        lambda x: stats.sign_flip(x, n_flips=2**31 - 1, threads=1),
    ],
)
def test_ctrl_c_stops_soon(call):
    """Within a second where nothing runs beside; to its end each of the calls takes minutes."""
    sent = []

    def press():
        sent.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    x = np.random.default_rng(0).normal(0, 1, (128, 4096))
    timer = threading.Timer(0.5, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call(x)
    assert time.monotonic() - sent[0] < 10.0


def test_other_threads_run_meanwhile():
    ticks = []
    done = threading.Event()

    def tick():
        while not done.wait(0.01):
            ticks.append(None)

    other = threading.Thread(target=tick)
    other.start()
    x = np.random.default_rng(0).normal(0, 1, (128, 2048))
    begin = time.monotonic()
    while time.monotonic() - begin < 0.5:
        stats.sign_flip(x, n_flips=20_000, threads=1)
    done.set()
    other.join()
    assert len(ticks) > 5
