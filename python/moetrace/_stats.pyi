"""
Resampling statistics; knows nothing of torch. moetrace.stats is the interface to it.
"""
from __future__ import annotations
import numpy
import numpy.typing
import typing
__all__: list[str] = ['BootstrapIntervals', 'BootstrapOptions', 'Interval', 'SelectedRanks', 'SignFlipCounts', 'Ties', 'adjust_benjamini_hochberg', 'adjust_holm', 'bootstrap_mean', 'bootstrap_quantile', 'bootstrap_ratio', 'cluster_sums', 'integers', 'monotone', 'rank_selected', 'sample_without_replacement', 'sign_flip']
class Interval:
    """
    How an interval is read off the replicates.
    
    Members:
    
      percentile
    
      basic
    
      bca
    
      studentized
    """
    __members__: typing.ClassVar[dict[str, Interval]]
    basic: typing.ClassVar[Interval]
    bca: typing.ClassVar[Interval]
    percentile: typing.ClassVar[Interval]
    studentized: typing.ClassVar[Interval]
    @typing.overload
    def __eq__(self, other: Interval) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: Interval) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class BootstrapOptions:
    """
    How a bootstrap is drawn and read.
    """
    def __init__(self, *, interval: Interval, confidence: typing.SupportsFloat | typing.SupportsIndex, resamples: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, clusters: typing.SupportsInt | typing.SupportsIndex, two_stage: bool, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class BootstrapIntervals:
    """
    One entry for each column.
    """
    @property
    def degenerate(self) -> numpy.typing.NDArray[numpy.uint8]:
        ...
    @property
    def estimate(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def high(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def low(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def standard_error(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
class SignFlipCounts:
    """
    Flips that are at least as extreme as what was observed.
    """
    @property
    def exact(self) -> bool:
        ...
    @property
    def flips(self) -> int:
        ...
    @property
    def order(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
    @property
    def own(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
    @property
    def single_step(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
    @property
    def step_down(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
class Ties:
    """
    Where candidates that tie with the selected one are put.
    
    Members:
    
      ahead
    
      midway
    
      behind
    """
    __members__: typing.ClassVar[dict[str, Ties]]
    ahead: typing.ClassVar[Ties]
    behind: typing.ClassVar[Ties]
    midway: typing.ClassVar[Ties]
    @typing.overload
    def __eq__(self, other: Ties) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: Ties) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class SelectedRanks:
    """
    One entry for each case; rank 0 where it can't be ranked.
    """
    @property
    def candidates(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
    @property
    def rank(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def tied(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
def adjust_benjamini_hochberg(p: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Benjamini and Hochberg's adjustment.
    """
def adjust_holm(p: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Holm's adjustment.
    """
def bootstrap_mean(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], labels: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], options: BootstrapOptions) -> BootstrapIntervals:
    """
    Means of the columns of x (cases x columns).
    """
def bootstrap_quantile(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], q: typing.SupportsFloat | typing.SupportsIndex, labels: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], options: BootstrapOptions) -> BootstrapIntervals:
    """
    Quantiles of the columns of x at level q.
    """
def bootstrap_ratio(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], y: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], labels: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], options: BootstrapOptions) -> BootstrapIntervals:
    """
    Ratios of the means of x to those of y.
    """
def cluster_sums(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], labels: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], clusters: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
    """
    Sums of the rows of each cluster.
    """
def integers(n: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.uint32]:
    """
    count integers, each uniform over range(n) and independent of the others.
    """
def monotone(p: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], order: typing.Annotated[numpy.typing.ArrayLike, numpy.int64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    Step-down values made monotone along an order.
    """
def rank_selected(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], active: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8], selected: typing.Annotated[numpy.typing.ArrayLike, numpy.int64], ties: Ties) -> SelectedRanks:
    """
    Rank of the selected column among the active ones of each case.
    """
def sample_without_replacement(n: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int64]:
    """
    k distinct integers of range(n) in random order; a function of the four arguments alone.
    """
def sign_flip(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], flips: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> SignFlipCounts:
    """
    Sign flips of the rows of x (cases, or sums of clusters), shared by all columns.
    """
