"""
The compiled core of moetrace: token trees, the hooks that patch them, and what experts contribute.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import torch
import typing
__all__: list[str] = ['AddRows', 'BirthRows', 'CaseShape', 'ExpertSite', 'Fork', 'GrowRows', 'HookTable', 'Kind', 'OverwriteRows', 'Plan', 'Players', 'Recipe', 'Site', 'TORCH_VERSION', 'additivity', 'banzhaf', 'banzhaf_interaction', 'gated_contributions', 'gated_output', 'gather_rows', 'make_plan', 'pack', 'prefix_coalitions', 'sample_permutations', 'sampled_shapley', 'shapley', 'shapley_interaction', 'smallest_coalition', 'subsets', 'visibility']
class CaseShape:
    """
    What the tree has to know of a case: places in its prompt, in tokens.
    """
    def __init__(self, length: typing.SupportsInt | typing.SupportsIndex, subject_start: typing.SupportsInt | typing.SupportsIndex, subject_stop: typing.SupportsInt | typing.SupportsIndex, patch_position: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def length(self) -> int:
        ...
    @property
    def patch_position(self) -> int:
        ...
    @property
    def subject_start(self) -> int:
        ...
    @property
    def subject_stop(self) -> int:
        ...
class Fork:
    """
    A patched run that leaves noised branch `branch` at the entry of layer `layer`.
    """
    def __init__(self, layer: typing.SupportsInt | typing.SupportsIndex, branch: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        ...
    @property
    def branch(self) -> int:
        ...
    @property
    def layer(self) -> int:
        ...
class Plan:
    """
    One batch of cases laid out as rows of one forward pass.
    """
    def fork_last(self, fork: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Row of a fork's final token.
        """
    def fork_start(self, fork: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        First row of a fork, by its index as given.
        """
    def noised_last(self, branch: typing.SupportsInt | typing.SupportsIndex = 0) -> int:
        """
        Row of a noised final token.
        """
    @property
    def base_rows(self) -> int:
        """
        Rows of a case before its first fork.
        """
    @property
    def branch(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        (cases, rows): -2 padding, -1 prefix and clean, else the noised branch.
        """
    @property
    def cases(self) -> int:
        ...
    @property
    def chain(self) -> int:
        """
        Rows of each fork.
        """
    @property
    def clean_last(self) -> int:
        """
        Row of the clean final token.
        """
    @property
    def clean_twin(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        (cases, rows): clean row at the same position.
        """
    @property
    def fork(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        (cases, rows): fork of a row, -1 for none.
        """
    @property
    def position(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        (cases, rows): place in the prompt.
        """
    @property
    def rows(self) -> int:
        """
        All rows of a case, forks included.
        """
    @property
    def rows_at_layer(self) -> list[int]:
        """
        Rows alive while layer l runs.
        """
    @property
    def source(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        (cases, rows): base row that a row copies.
        """
class Site:
    """
    One armed place in a model; a forward hook when called.
    """
    def __call__(self, module: typing.Any, args: typing.Any, output: typing.Any) -> typing.Any:
        """
        As a torch forward hook: replaces the output, or the first item of a tuple.
        """
    def fire(self, value: torch.Tensor) -> torch.Tensor:
        """
        What the model goes on with in place of `value`.
        """
    @property
    def fired(self) -> int:
        """
        How often it fired.
        """
    @property
    def name(self) -> str:
        ...
class OverwriteRows(Site):
    """
    Replace rows by other rows of the value.
    """
    def __init__(self, name: str, rows: typing.SupportsInt | typing.SupportsIndex, destination: torch.Tensor, source: torch.Tensor) -> None:
        ...
class AddRows(Site):
    """
    Add vectors to rows, in float32.
    """
    def __init__(self, name: str, rows: typing.SupportsInt | typing.SupportsIndex, destination: torch.Tensor, addend: torch.Tensor) -> None:
        ...
class GrowRows(Site):
    """
    Append rows that start as copies of present ones.
    """
    def __init__(self, name: str, source: torch.Tensor) -> None:
        ...
class BirthRows(Site):
    """
    Append rows behind a layer whose output is stream + block.
    """
    def __init__(self, name: str, source: torch.Tensor, written: torch.Tensor, stream_row: torch.Tensor) -> None:
        ...
    def adds_up(self, output: torch.Tensor) -> bool:
        """
        Whether the layer's output is stream + block, bit for bit.
        """
    def tell(self, stream: torch.Tensor, block: torch.Tensor, own: torch.Tensor) -> None:
        """
        Before it fires: stream and block output of all rows, and the written rows' block outputs.
        """
class HookTable:
    """
    The armed sites of one forward pass.
    """
    def __init__(self) -> None:
        ...
    def __len__(self) -> int:
        ...
    def add(self, site: Site) -> None:
        ...
    def check_fired(self) -> None:
        """
        RuntimeError naming sites that didn't fire exactly once.
        """
    def reset(self) -> None:
        """
        Forget what fired: the pass is run again.
        """
class Kind:
    """
    Which patch vectors a recipe takes.
    
    Members:
    
      CLEAN : Every clean-routed expert (equation 14).
    
      UNION : Every clean- or noised-routed expert (equation 15).
    
      PLACE : The expert at one of the 2k places.
    
      SUBSET : A bitmask over the 2k places.
    
      EXPERTS : The named experts.
    
      ANCHOR : The named expert, where it is clean-routed beside another.
    
      MATCHED : Its gate-weight-matched control (equation 8).
    """
    ANCHOR: typing.ClassVar[Kind]
    CLEAN: typing.ClassVar[Kind]
    EXPERTS: typing.ClassVar[Kind]
    MATCHED: typing.ClassVar[Kind]
    PLACE: typing.ClassVar[Kind]
    SUBSET: typing.ClassVar[Kind]
    UNION: typing.ClassVar[Kind]
    __members__: typing.ClassVar[dict[str, Kind]]
    @typing.overload
    def __eq__(self, other: Kind) -> bool:
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
    def __ne__(self, other: Kind) -> bool:
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
class Recipe:
    """
    Which patch vectors a patched run adds, said before the routing is known.
    """
    def __init__(self, kind: Kind, place: typing.SupportsInt | typing.SupportsIndex = 0, subset: typing.SupportsInt | typing.SupportsIndex = 0, experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], equal_norm: bool = False) -> None:
        ...
    @property
    def equal_norm(self) -> bool:
        ...
    @property
    def experts(self) -> list[int]:
        ...
    @property
    def kind(self) -> Kind:
        ...
    @property
    def place(self) -> int:
        ...
    @property
    def subset(self) -> int:
        ...
class Players:
    """
    Experts that either run routes to, 2k places for each item.
    """
    @property
    def clean_weight(self) -> torch.Tensor:
        """
        float32 (items, 2k)
        """
    @property
    def delta(self) -> torch.Tensor:
        """
        (items, 2k, width): patch vectors (equation 6)
        """
    @property
    def expert(self) -> torch.Tensor:
        """
        int64 (items, 2k)
        """
    @property
    def noised_active(self) -> torch.Tensor:
        """
        bool (items, 2k)
        """
    @property
    def noised_weight(self) -> torch.Tensor:
        """
        float32 (items, 2k)
        """
    @property
    def norm(self) -> torch.Tensor:
        """
        float32 (items, 2k): their norms
        """
    @property
    def valid(self) -> torch.Tensor:
        """
        bool (items, 2k): part of the routing union
        """
class ExpertSite(Site):
    """
    Patches at the output of a layer's experts.
    """
    def __init__(self, name: str, rows: typing.SupportsInt | typing.SupportsIndex, clean: torch.Tensor, noised: torch.Tensor, destination: torch.Tensor | None, recipes: collections.abc.Sequence[Recipe]) -> None:
        ...
    def route(self, index: torch.Tensor, weight: torch.Tensor, contribution: torch.Tensor) -> None:
        """
        Routing (wanted, k) and contributions (wanted, k, width) of the wanted rows, before it fires.
        """
    @property
    def output_size(self) -> float:
        """
        Largest |output| over the wanted rows.
        """
    @property
    def patched(self) -> torch.Tensor:
        """
        (items * recipes, width): the experts' output of each fork, recipes innermost.
        """
    @property
    def players(self) -> Players:
        ...
    @property
    def sum_error(self) -> float:
        """
        Largest |sum of contributions - output| over the wanted rows.
        """
    @property
    def wanted(self) -> torch.Tensor:
        """
        int64: rows whose contributions are needed.
        """
def additivity(coalitions: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
    """
    Sum of the single players' gains, the grand coalition's gain, and their difference.
    """
def banzhaf(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    (cases, 2^k) values of all coalitions -> (cases, k) Banzhaf values.
    """
def banzhaf_interaction(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    (cases, 2^k) -> (cases, k, k) Banzhaf interaction indices; the values on the diagonal.
    """
def gated_contributions(gate_up: torch.Tensor, down: torch.Tensor, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    (n, k, width): contribution of every routed (row, expert) pair of silu-gated experts.
    """
def gated_output(gate_up: torch.Tensor, down: torch.Tensor, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    (n, width): output of silu-gated experts; (wanted, k, width): contributions of the wanted rows.
    """
def gather_rows(value: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """
    Rows `source` (batch, n) of each case of `value` (batch, rows, ...): (batch, n, ...).
    """
def make_plan(cases: collections.abc.Sequence[CaseShape], forks: collections.abc.Sequence[Fork], branches: typing.SupportsInt | typing.SupportsIndex, layers: typing.SupportsInt | typing.SupportsIndex) -> Plan:
    """
    Lay out a batch of cases with noised branches and forks. ValueError for shapes that don't fit.
    """
def pack(rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], budget: typing.SupportsInt | typing.SupportsIndex) -> list[list[int]]:
    """
    Cut items into batches so that items x rows of the longest stays within the budget.
    """
def prefix_coalitions(permutations: typing.Annotated[numpy.typing.ArrayLike, numpy.int64]) -> numpy.typing.NDArray[numpy.uint64]:
    """
    The distinct coalitions that form while players join, ascending.
    """
def sample_permutations(players: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex, antithetic: bool) -> numpy.typing.NDArray[numpy.int64]:
    """
    (count, players) permutations; a function of the arguments alone.
    """
def sampled_shapley(permutations: typing.Annotated[numpy.typing.ArrayLike, numpy.int64], coalitions: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], antithetic: bool) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
    """
    Means and standard errors, each (cases, players).
    """
def shapley(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    (cases, 2^k) values of all coalitions -> (cases, k) Shapley values.
    """
def shapley_interaction(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """
    (cases, 2^k) -> (cases, k, k) Shapley interaction indices; the values on the diagonal.
    """
def smallest_coalition(coalitions: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], share: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.float64]]:
    """
    Size, mask and value of each case's smallest coalition; -1, 0 and NaN where there is none.
    """
def subsets(players: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.uint64]:
    """
    Every non-empty coalition of k players as a bitmask, ascending.
    """
def visibility(plan: Plan) -> numpy.typing.NDArray[numpy.uint8]:
    """
    (cases, rows, rows) uint8: 1 where the second row is the first or its ancestor.
    """
TORCH_VERSION: str = '2.13.0'
