"""Bootstrap and max-T of a layer grid and of a full expert grid, against numpy and scipy.

```
python -m benchmarks.stats --repeats 3
```

Two threads throughout. The yardstick of the full grid is the bare single-precision product of
10,000 x 128 by 128 x 6,144 in numpy. scipy's BCa is measured on a slice of the columns and
extrapolated. The numpy twins do the same algorithm vectorised: counts or signs times cases, in
blocks. Memory is the kernel's high-water mark above what was resident before the call. Prints a
table and keeps it as ``benchmarks/results/stats.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from benchmarks import report
from moetrace import stats

CASES, LAYERS, EXPERTS = 128, 48, 6144
RESAMPLES, FLIPS = 5_000, 10_000


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of several runs."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def extra_megabytes(run: Callable[[], object]) -> float:
    """Peak resident memory of a call above what was resident before it (Linux)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")

    def field(name: str) -> float:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    before = field("VmRSS")
    run()
    return field("VmHWM") - before


def numpy_max_t(x: np.ndarray, flips: int) -> np.ndarray:
    """Step-down max-T as numpy does it: signs times cases by blocks, then successive maxima."""
    rng = np.random.default_rng(0)
    single = x.astype(np.float32)
    observed = np.abs(single.sum(axis=0))
    order = np.argsort(observed)
    ahead = np.zeros(x.shape[1])
    for begin in range(0, flips, 500):
        signs = (
            rng.integers(0, 2, (min(500, flips - begin), len(x)), dtype=np.int8).astype(np.float32) * 2 - 1
        )
        maxima = np.maximum.accumulate(np.abs(signs @ single)[:, order], axis=1)
        ahead[order] += (maxima >= observed[order]).sum(axis=0)
    return (ahead + 1) / (flips + 1)


def numpy_bca(x: np.ndarray, resamples: int) -> np.ndarray:
    """BCa intervals of the mean as numpy does it: counts times cases by blocks of columns, then sorts."""
    rng = np.random.default_rng(0)
    n = len(x)
    counts = np.zeros((resamples, n))
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    found = np.empty((2, x.shape[1]))
    for begin in range(0, x.shape[1], 512):
        part = x[:, begin : begin + 512]
        means = counts @ part / n
        z0 = scipy_stats.norm.ppf((means < part.mean(axis=0)).mean(axis=0))
        jack = -(part - part.mean(axis=0)) / (n - 1)
        accel = -(jack**3).sum(axis=0) / (6 * (jack**2).sum(axis=0) ** 1.5)
        means.sort(axis=0)
        for side, z in enumerate(scipy_stats.norm.ppf([0.025, 0.975])):
            level = scipy_stats.norm.cdf(z0 + (z0 + z) / (1 - accel * (z0 + z)))
            found[side, begin : begin + 512] = means[
                np.clip((level * resamples).astype(int), 0, resamples - 1), np.arange(part.shape[1])
            ]
    return found


def scipy_bca_seconds(x: np.ndarray, columns: int) -> float:
    """scipy's BCa on some columns, extrapolated to all."""
    begin = time.perf_counter()
    scipy_stats.bootstrap(
        (x[:, :columns],), np.mean, axis=0, n_resamples=RESAMPLES, method="BCa", vectorized=True
    )
    return (time.perf_counter() - begin) * x.shape[1] / columns


def measure(name: str, x: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """One grid: both statistics, their numpy twins, scipy and the bare product."""
    single = x.astype(np.float32)
    signs = np.sign(np.random.default_rng(1).standard_normal((FLIPS, CASES))).astype(np.float32)

    def flip() -> object:
        return stats.sign_flip(x, n_flips=FLIPS, correction="max_t", threads=options.threads)

    def boot() -> object:
        return stats.bootstrap(x, ci="bca", n_resamples=RESAMPLES, threads=options.threads)

    flip(), boot()
    found = {
        "max_t": seconds(flip, options.repeats),
        "bootstrap": seconds(boot, options.repeats),
        "gemm": seconds(lambda: signs @ single, options.repeats),
        "numpy_max_t": seconds(lambda: numpy_max_t(x, FLIPS), 1),
        "numpy_bootstrap": seconds(lambda: numpy_bca(x, RESAMPLES), 1),
        "scipy_bca": scipy_bca_seconds(x, options.slice_columns),
        "max_t_megabytes": extra_megabytes(flip),
        "bootstrap_megabytes": extra_megabytes(boot),
    }
    rows = [
        ["step-down max-T over the bare product", f"{found['max_t'] / found['gemm']:.2f}"],
        ["BCa bootstrap over the bare product", f"{found['bootstrap'] / found['gemm']:.2f}"],
        ["numpy max-T over ours", f"{found['numpy_max_t'] / found['max_t']:.1f}"],
        ["numpy BCa over ours", f"{found['numpy_bootstrap'] / found['bootstrap']:.1f}"],
        ["scipy BCa over ours (extrapolated)", f"{found['scipy_bca'] / found['bootstrap']:.1f}"],
        [
            "extra memory, MB: max-T, bootstrap",
            f"{found['max_t_megabytes']:.0f}, {found['bootstrap_megabytes']:.0f}",
        ],
    ]
    print(f"\n{name}: {x.shape[0]} cases x {x.shape[1]}\n" + report.table(["what", "ratio"], rows))
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="bootstrap and max-T against numpy and scipy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slice-columns", type=int, default=16, help="columns that scipy is measured on")
    options = parser.parse_args()
    machine = report.environment() | {"blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default")}
    rng = np.random.default_rng(0)
    grids = {"layer grid": (CASES, LAYERS), "expert grid": (CASES, EXPERTS)}
    content = {
        name: measure(name, rng.standard_normal(shape) + 0.1, options) for name, shape in grids.items()
    }
    print(f"kept as {report.write('stats', {'environment': machine, **content}).name}")


if __name__ == "__main__":
    main()
