"""Peak memory of a sweep above the model's own, measured in a process of its own.

```
python -m benchmarks.memory --cases 256
```

prints JSON. What is measured: resident memory (RSS). "The model's own" is the RSS after building the model,
with moetrace imported, garbage collected and freed heap given back to the system; no forward has run yet, so
thread pools and kernels' workspaces count as the sweep's. The peak is the kernel's high-water mark (VmHWM),
reset just before the sweep; where that can't be reset it is the largest of RSS samples 2 ms apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

from benchmarks import ours
from benchmarks.model import build_cases, build_model
from moetrace.weights.heap import give_back_freed

SAMPLE_SECONDS = 0.002


def give_back_freed_heap() -> None:
    """Without it, memory freed while the model was built would hide a part of the sweep's."""
    gc.collect()
    give_back_freed()


def reset_high_water_mark() -> bool:
    """Set the kernel's high-water mark of this process to its RSS of now; False where it can't be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def high_water_mark() -> int:
    """The kernel's high-water mark of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class PeakMemory:
    """``with PeakMemory() as peak: work()``, then ``peak.above`` in bytes and ``peak.method``."""

    def __enter__(self) -> PeakMemory:
        give_back_freed_heap()
        self._process = psutil.Process()
        self.before = self._process.memory_info().rss
        self.method = "VmHWM" if reset_high_water_mark() else f"RSS every {SAMPLE_SECONDS * 1000:g} ms"
        self._sampled = self.before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._sampled = max(self._sampled, self._process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        peak = high_water_mark() if self.method == "VmHWM" else self._sampled
        self.above = peak - self.before


def main() -> None:
    """One sweep in this process, and its JSON on standard output."""
    parser = argparse.ArgumentParser(description="peak memory of a sweep above the model's own")
    parser.add_argument("--cases", type=int, default=256)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import moetrace  # noqa: F401  (its own pages aren't the sweep's)

    model, cases = build_model(options.layers), build_cases(options.cases)
    with PeakMemory() as peak:
        ours.rescue(model, cases)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(
        json.dumps(
            {
                "cases": options.cases,
                "peak_above_model_mb": peak.above / 1e6,
                "model_weights_mb": weights / 1e6,
                "before_mb": peak.before / 1e6,
                "method": peak.method,
            }
        )
    )


if __name__ == "__main__":
    main()
