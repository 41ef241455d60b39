"""
The compiled core of moetrace: token trees, the hooks that patch them, and what experts contribute. Tensors reach it as torch.ops.moetrace.*, everything else through this module.
"""
from __future__ import annotations
import collections.abc
import enum
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['Activation', 'Buffer', 'CaseShape', 'Chosen', 'ContributionTap', 'Corruption', 'ExpertLayout', 'Forward', 'Gate', 'HookScope', 'Job', 'Join', 'LayerFacts', 'LayerReader', 'Origin', 'Outcome', 'Pass', 'PassCase', 'Patch', 'PatchKind', 'Paths', 'Plan', 'ReadError', 'ReadOptions', 'Runs', 'Segment', 'Step', 'Sweep', 'Tap', 'TokenPatch', 'TokensKind', 'Trouble', 'additivity', 'banzhaf', 'banzhaf_interaction', 'cut', 'is_quiet', 'layer_rows', 'matched_control', 'pack', 'prefix_coalitions', 'quietly', 'sample_permutations', 'sampled_shapley', 'shapley', 'shapley_interaction', 'smallest_coalition', 'subsets', 'tree_cost', 'tree_rows']
class CaseShape:
    """
    What the tree has to know of a case: places in its prompt, in tokens.
    """
    def __init__(self, length: typing.SupportsInt | typing.SupportsIndex, subject_start: typing.SupportsInt | typing.SupportsIndex, subject_stop: typing.SupportsInt | typing.SupportsIndex, places: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]) -> None:
        ...
class Runs:
    """
    Where patched runs are patched: layers and places.
    """
    def __init__(self, layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], places: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = []) -> None:
        ...
    def __len__(self) -> int:
        ...
    @property
    def from_clean(self) -> list[bool]:
        ...
    @property
    def layers(self) -> list[int]:
        ...
    @property
    def places(self) -> list[int]:
        ...
class Join(enum.Enum):
    """
    Where forks join the pass; the first is the fastest.
    """
    AFTER_LAYER: typing.ClassVar[Join]
    BEFORE_LAYER: typing.ClassVar[Join]
    START: typing.ClassVar[Join]
    @classmethod
    def __new__(cls, value):
        ...
class Plan:
    """
    One batch of cases laid out as rows of one forward pass.
    """
    @property
    def base_rows(self) -> int:
        """
        Rows of a case before its first fork.
        """
    @property
    def branch(self) -> numpy.ndarray:
        """
        (cases, rows): -2 padding, -1 prefix and clean, else the noised branch.
        """
    @property
    def cases(self) -> int:
        ...
    @property
    def chains(self) -> list[int]:
        """
        Rows of each fork.
        """
    @property
    def clean_twin(self) -> numpy.ndarray:
        """
        (cases, rows): clean row at the same position.
        """
    @property
    def fork(self) -> numpy.ndarray:
        """
        (cases, rows): fork of a row, -1 for none.
        """
    @property
    def noised_twin(self) -> numpy.ndarray:
        """
        (cases, rows): of a fork's row the noised row of its draw there.
        """
    @property
    def position(self) -> numpy.ndarray:
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
        Rows of the forks up to layer l, and all others.
        """
    @property
    def source(self) -> numpy.ndarray:
        """
        (cases, rows): base row that a row copies.
        """
class Paths:
    """
    Every run of a batch as a sequence: base runs first, then forks.
    """
    @property
    def bases(self) -> int:
        """
        Sequences before the first fork.
        """
    @property
    def cut(self) -> numpy.ndarray:
        """
        (sequences,): position of a fork's first own row, 0 elsewhere.
        """
    @property
    def length(self) -> numpy.ndarray:
        """
        (sequences,): tokens.
        """
    @property
    def longest(self) -> int:
        """
        Tokens of the longest sequence.
        """
    @property
    def origin(self) -> numpy.ndarray:
        """
        (sequences,): the sequence that a fork goes on from, its own elsewhere.
        """
    @property
    def place(self) -> numpy.ndarray:
        """
        (cases, rows): token that a row is, as sequence * longest + position; 0 for padding.
        """
    @property
    def row(self) -> numpy.ndarray:
        """
        (sequences, longest): row of each token as case * rows + row; behind the end the last again.
        """
    @property
    def rows(self) -> int:
        """
        Rows of each case that are there.
        """
class Activation(enum.Enum):
    """
    Of an expert's gate.
    """
    GELU: typing.ClassVar[Activation]
    GELU_TANH: typing.ClassVar[Activation]
    RELU: typing.ClassVar[Activation]
    RELU_SQUARED: typing.ClassVar[Activation]
    SILU: typing.ClassVar[Activation]
    @classmethod
    def __new__(cls, value):
        ...
class Gate:
    """
    What stands between the two products of an expert: act(gate) * (up + shift).
    """
    def __init__(self, *, gated: bool = True, interleaved: bool = False, activation: Activation = ..., slope: typing.SupportsFloat | typing.SupportsIndex = 1.0, limit: typing.SupportsFloat | typing.SupportsIndex = ..., limits_activated: bool = False, shift: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> None:
        """
        `gated`: else act(up) alone; `interleaved`: gate and up column by column; `slope`: of silu, x * sigmoid(slope * x); `limit`: of the gate from above, before the activation or (`limits_activated`) behind it, and of up on either side.
        """
    @property
    def activation(self) -> Activation:
        ...
    @property
    def gated(self) -> bool:
        ...
    @property
    def interleaved(self) -> bool:
        ...
    @property
    def limit(self) -> float:
        ...
    @property
    def limits_activated(self) -> bool:
        ...
    @property
    def shift(self) -> float:
        ...
    @property
    def slope(self) -> float:
        ...
class ExpertLayout:
    """
    How a module stores its experts.
    """
    def __init__(self, gate: Gate, *, transposed: bool = False, biased: bool = False) -> None:
        """
        `transposed`: weights (experts, in, out) instead of (experts, out, in).
        """
    @property
    def biased(self) -> bool:
        ...
    @property
    def gate(self) -> Gate:
        ...
    @property
    def transposed(self) -> bool:
        ...
class PatchKind(enum.Enum):
    """
    What a patched run changes at one layer.
    """
    BLOCK: typing.ClassVar[PatchKind]
    EXPERTS: typing.ClassVar[PatchKind]
    NULL: typing.ClassVar[PatchKind]
    @classmethod
    def __new__(cls, value):
        ...
class Origin(enum.Enum):
    """
    Which run a patched run leaves from.
    """
    DENOISE: typing.ClassVar[Origin]
    NOISE: typing.ClassVar[Origin]
    @classmethod
    def __new__(cls, value):
        ...
class Chosen(enum.Enum):
    """
    Which experts' patch vectors a run adds.
    """
    ANCHOR: typing.ClassVar[Chosen]
    CLEAN: typing.ClassVar[Chosen]
    EXPERTS: typing.ClassVar[Chosen]
    MATCHED: typing.ClassVar[Chosen]
    SLOT: typing.ClassVar[Chosen]
    SUBSET: typing.ClassVar[Chosen]
    UNION: typing.ClassVar[Chosen]
    @classmethod
    def __new__(cls, value):
        ...
class Patch:
    """
    What a patched run changes at one layer.
    """
    __hash__: typing.ClassVar[None] = None
    @staticmethod
    def block(layer: typing.SupportsInt | typing.SupportsIndex, place: typing.SupportsInt | typing.SupportsIndex = 0, origin: Origin = ...) -> Patch:
        ...
    @staticmethod
    def null(layer: typing.SupportsInt | typing.SupportsIndex, place: typing.SupportsInt | typing.SupportsIndex = 0, origin: Origin = ...) -> Patch:
        ...
    @staticmethod
    def of_experts(layer: typing.SupportsInt | typing.SupportsIndex, chosen: Chosen, *, subset: typing.SupportsInt | typing.SupportsIndex = 0, experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], equal_norm: bool = False, place: typing.SupportsInt | typing.SupportsIndex = 0, origin: Origin = ...) -> Patch:
        """
        `subset`: bit j for slot j. `experts`: by index. `equal_norm`: of anchor and matched (equation 10).
        """
    def __eq__(self, arg0: Patch) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def with_fixed_routing(self) -> Patch:
        """
        The same patch, whose tokens later layers route as they do those of the run that it leaves from.
        """
    @property
    def chosen(self) -> Chosen:
        ...
    @property
    def equal_norm(self) -> bool:
        ...
    @property
    def experts(self) -> list[int]:
        ...
    @property
    def fixed_routing(self) -> bool:
        ...
    @property
    def kind(self) -> PatchKind:
        ...
    @property
    def layer(self) -> int:
        ...
    @property
    def origin(self) -> Origin:
        ...
    @property
    def place(self) -> int:
        ...
    @property
    def subset(self) -> int:
        ...
class Sweep:
    """
    Every routed expert of a layer patched by itself.
    """
    def __init__(self, layer: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, of_union: bool = False, place: typing.SupportsInt | typing.SupportsIndex = 0, origin: Origin = ..., per_token: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        """
        `top_k`: a run routes the tokens of the place to at most so many experts; `per_token`: and one of them, 0 where unsaid.
        """
    def __repr__(self) -> str:
        ...
    @property
    def layer(self) -> int:
        ...
    @property
    def of_union(self) -> bool:
        ...
    @property
    def origin(self) -> Origin:
        ...
    @property
    def per_token(self) -> int:
        ...
    @property
    def place(self) -> int:
        ...
    @property
    def top_k(self) -> int:
        ...
class Corruption(enum.Enum):
    """
    What a corruption's vectors do to the subject's embeddings.
    """
    ADDED: typing.ClassVar[Corruption]
    REPLACED: typing.ClassVar[Corruption]
    @classmethod
    def __new__(cls, value):
        ...
class Job:
    """
    What a trace does to every case: patches, and sweeps over the experts of layers.
    """
    def __init__(self, layers: typing.SupportsInt | typing.SupportsIndex, draws: typing.SupportsInt | typing.SupportsIndex, patches: collections.abc.Sequence[Patch], sweeps: collections.abc.Sequence[Sweep], place_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], corruption: Corruption = ...) -> None:
        """
        `place_tokens`: of each place, in any case of the trace: tokens at most; 1 where unsaid.
        """
    def knocking_out(self, taken: bool, named: bool) -> Job:
        """
        The same with patches that switch experts off. `taken`: their own contributions are taken away; `named`: cases say what comes instead.
        """
    @property
    def runs(self) -> Runs:
        """
        Where each run is patched: the patches, then the slots of the sweeps.
        """
class PassCase:
    """
    A case as a pass sees it.
    """
    def __init__(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], subject_start: typing.SupportsInt | typing.SupportsIndex, subject_stop: typing.SupportsInt | typing.SupportsIndex, places: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]], vectors: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> None:
        """
        `places`: of each place its positions, ascending; none where the case doesn't have it. `vectors`: float32 (draws, subject tokens, width), which change the subject's embeddings.
        """
    def replace(self, layer: typing.SupportsInt | typing.SupportsIndex, position: typing.SupportsInt | typing.SupportsIndex, experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], vectors: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> None:
        """
        What experts of a layer contribute instead at a token, at the experts' output: float32 (experts, width).
        """
class LayerFacts:
    """
    What a pass has to know of a layer of the model.
    """
    def __init__(self, *, experts: bool, expert_count: typing.SupportsInt | typing.SupportsIndex = 0, fused_from: typing.SupportsInt | typing.SupportsIndex = 0, checked_rows: typing.SupportsInt | typing.SupportsIndex = 2, layout: ExpertLayout | None = None) -> None:
        """
        `fused_from`: rows from which on the fused routine computes experts, 0 for never; `checked_rows`: rows that the module computes all the same, for comparison; `layout`: of the experts' weights, None where it isn't known.
        """
class Trouble(enum.Enum):
    """
    What can go wrong at a site.
    """
    CANNOT_JOIN: typing.ClassVar[Trouble]
    CONTRIBUTION: typing.ClassVar[Trouble]
    NOT_FUSED: typing.ClassVar[Trouble]
    SHAPE: typing.ClassVar[Trouble]
    @classmethod
    def __new__(cls, value):
        ...
class Pass:
    """
    One forward pass of a batch of cases with all their runs, and its hooks.
    """
    def __init__(self, job: Job, layers: collections.abc.Sequence[LayerFacts], cases: collections.abc.Sequence[PassCase], begin: typing.SupportsInt | typing.SupportsIndex, end: typing.SupportsInt | typing.SupportsIndex, join: Join) -> None:
        """
        `begin`, `end`: which runs of the job.
        """
    def input_ids(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 (cases, start rows)
        """
    def last_rows(self, count: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 (cases, runs, count): rows of the same runs at the final positions, the final one first.
        """
    def misfired(self) -> str:
        """
        Says which sites didn't fire exactly once; empty if all did.
        """
    def paths(self, rows: typing.SupportsInt | typing.SupportsIndex) -> Paths:
        """
        Every run as a sequence, while so many rows of each case are there.
        """
    def position_ids(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 (cases, start rows): a row's depth in the tree
        """
    def reset(self) -> None:
        """
        Forget what was seen: the model is run again.
        """
    def scale_experts(self, layer: typing.SupportsInt | typing.SupportsIndex, factor: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        Say what a layer's block multiplies its experts' output by, before the layer ends.
        """
    def visibility(self) -> numpy.typing.NDArray[numpy.uint8]:
        """
        uint8 (cases, rows, rows): 1 where the second row is the first or its ancestor
        """
    @property
    def complaint(self) -> str:
        """
        What went wrong, in words.
        """
    @property
    def final_rows(self) -> list[int]:
        """
        Rows that are read out: clean, noised for each draw, then every fork.
        """
    @property
    def fused_calls(self) -> int:
        """
        Calls of experts that the fused routine served.
        """
    @property
    def misfired_modules(self) -> list[tuple[str, int]]:
        """
        Their modules, as in `troubled_module`.
        """
    @property
    def plan(self) -> Plan:
        ...
    @property
    def start_rows(self) -> int:
        """
        Rows of each case in the model's input.
        """
    @property
    def trouble(self) -> Trouble | None:
        """
        What went wrong at a site.
        """
    @property
    def troubled_module(self) -> tuple[str, int]:
        """
        Where it went wrong: the kind of module and its layer.
        """
class Outcome:
    """
    What the passes of one batch gave, in arrays.
    """
    def __init__(self, job: Job, cases: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def take(self, run: Pass, differences: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], scales: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex], direct: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], direct_linear: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> None:
        """
        Take in a pass over the same cases: logit differences (cases, final rows), what each routed layer's block multiplies its experts' output by, and direct effects (cases, runs, draws; empty where nobody asked).
        """
    @property
    def clean(self) -> numpy.ndarray:
        """
        float64 (cases,)
        """
    @property
    def direct(self) -> numpy.ndarray:
        """
        float64 (cases, patches, draws), NaN where nobody asked
        """
    @property
    def direct_linear(self) -> numpy.ndarray:
        """
        float64 (cases, patches, draws), NaN where nobody asked
        """
    @property
    def layers(self) -> dict:
        """
        For each routed layer and place its arrays by case, draw and expert (or slot).
        """
    @property
    def noised(self) -> numpy.ndarray:
        """
        float64 (cases, draws)
        """
    @property
    def patched(self) -> numpy.ndarray:
        """
        float64 (cases, patches, draws)
        """
    @property
    def present(self) -> typing.Any:
        """
        bool (cases, patches): whether the case has the place of the patch.
        """
class HookScope:
    """
    Hooks on modules: armed in order, removed in reverse when the scope is left, also after an exception or an interrupt.
    """
    def __enter__(self) -> typing.Any:
        ...
    def __exit__(self, *args) -> None:
        ...
    def __init__(self) -> None:
        ...
    def arm(self, run: Pass, anatomy: typing.Any, routed_call: typing.Any) -> None:
        """
        Every hook of a pass, on the modules of an anatomy. `routed_call` reads hidden states, index and weights from the call of an experts module.
        """
    def before(self, module: typing.Any, function: typing.Any) -> None:
        """
        function(module, args, kwargs) before each call of a module.
        """
    def behind(self, module: typing.Any, function: typing.Any) -> None:
        """
        function(module, args, kwargs, output) behind each call of a module.
        """
    def close(self) -> None:
        """
        Remove every hook, the last armed first.
        """
    def pause(self) -> None:
        """
        Take every hook off for a time, so that a module runs as it does by itself.
        """
    def resume(self) -> None:
        """
        Put on again what `pause` took off, in the same order.
        """
class Step(enum.IntEnum):
    """
    What torch.ops.moetrace.fire asks of a tap.
    """
    KEEP: typing.ClassVar[Step]
    READ: typing.ClassVar[Step]
    VALUE: typing.ClassVar[Step]
    @classmethod
    def __new__(cls, value):
        ...
    def __format__(self, format_spec):
        ...
class TokensKind(enum.Enum):
    """
    Which tokens of a user's forwards are meant.
    """
    ALL: typing.ClassVar[TokensKind]
    COLUMNS: typing.ClassVar[TokensKind]
    LAST: typing.ClassVar[TokensKind]
    ROWS: typing.ClassVar[TokensKind]
    @classmethod
    def __new__(cls, value):
        ...
class Forward:
    """
    The forward of a user's own that is in progress, and which of its tokens are chosen.
    """
    def __init__(self, kind: TokensKind, numbers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], sequences: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        ...
    def begin(self, batch: typing.SupportsInt | typing.SupportsIndex, tokens: typing.SupportsInt | typing.SupportsIndex, past: typing.SupportsInt | typing.SupportsIndex, last: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        A forward of (batch, tokens) starts behind `past` cached tokens. `last`: of each sequence the token of this forward that is its last; empty for the end. IndexError for a token before the first one, ValueError for tokens that the batch hasn't.
        """
    def end(self) -> None:
        """
        The forward is over.
        """
    def unreached(self) -> list[int]:
        """
        Tokens that were asked for and that no forward held.
        """
    @property
    def batch(self) -> int:
        """
        Sequences of the forward.
        """
    @property
    def chosen(self) -> int:
        """
        Chosen tokens of each sequence.
        """
    @property
    def longest(self) -> int:
        """
        The most tokens that a sequence has had.
        """
    @property
    def number(self) -> int:
        """
        Forwards so far.
        """
    @property
    def past(self) -> int:
        """
        Tokens before them in a cache.
        """
    @property
    def rows(self) -> list[int]:
        """
        Chosen rows of (batch * tokens).
        """
    @property
    def running(self) -> bool:
        """
        Whether one is in progress in this thread.
        """
    @property
    def running_elsewhere(self) -> bool:
        """
        Whether one is in progress in another thread.
        """
    @property
    def tokens(self) -> int:
        """
        Tokens of each.
        """
class Tap:
    """
    Keeps what passes a place at the chosen tokens.
    """
    def __init__(self, name: str, forward: Forward) -> None:
        ...
    def hook(self, forward: Forward) -> typing.Any:
        """
        To hang behind a module.
        """
    def reset(self) -> None:
        """
        Forget what was kept.
        """
    def routing_hook(self, forward: Forward, routed_call: typing.Any) -> typing.Any:
        """
        To hang before an experts module.
        """
    @property
    def fired(self) -> int:
        """
        How often something passed.
        """
    @property
    def number(self) -> int:
        """
        By which torch.ops.moetrace.fire reaches it.
        """
    @property
    def repeated(self) -> bool:
        """
        Whether something passed more than once in a forward.
        """
    @property
    def steps(self) -> list[int]:
        """
        Tokens of each forward that is kept.
        """
class TokenPatch:
    """
    Replaces what passes a place at the chosen tokens.
    """
    def __init__(self, name: str, forward: Forward) -> None:
        ...
    def hook(self, forward: Forward, function: typing.Any) -> typing.Any:
        """
        To hang behind a module: function(rows) gives what stands in their place.
        """
    def routing_hook(self, forward: Forward, routed_call: typing.Any, function: typing.Any) -> typing.Any:
        """
        To hang before an experts module: function(index, weights) gives what it is called with.
        """
    @property
    def fired(self) -> int:
        """
        How often it replaced something.
        """
class ContributionTap:
    """
    What experts contribute to their sum at the chosen tokens.
    """
    def __init__(self, name: str, forward: Forward, expert: typing.SupportsInt | typing.SupportsIndex = -1) -> None:
        ...
    def hook(self, forward: Forward, routed_call: typing.Any, layout: ExpertLayout | None, function: typing.Any) -> typing.Any:
        """
        To hang behind an experts module: function(*found) is told what was found.
        """
class ReadError(OSError):
    pass
class Buffer:
    """
    Bytes of one layer.
    """
class Segment:
    """
    Bytes of a file and where they belong in a layer's buffer.
    """
    def __init__(self, file: typing.SupportsInt | typing.SupportsIndex, offset: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex, destination: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class ReadOptions:
    """
    How a checkpoint is read; lengths in bytes.
    """
    def __init__(self, bytes: typing.SupportsInt | typing.SupportsIndex = 8388608, gap: typing.SupportsInt | typing.SupportsIndex = 131072, direct: bool = True) -> None:
        ...
class LayerReader:
    """
    Layers of a checkpoint in two buffers: while one layer is used, a thread reads another.
    """
    def __init__(self, files: collections.abc.Sequence[str], layers: collections.abc.Sequence[collections.abc.Sequence[Segment]], options: ReadOptions = ...) -> None:
        """
        layers: for each layer what is read of which of the files.
        """
    def acquire(self, layer: typing.SupportsInt | typing.SupportsIndex) -> typing_extensions.Buffer:
        """
        The layer's bytes, which stay as they are until it is released. Raises ReadError.
        """
    def prefetch(self, layer: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Start reading a layer if it isn't there and a buffer is free.
        """
    def release(self, layer: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The layer's buffer may be filled with another one.
        """
    def stop(self) -> None:
        """
        End what is being read, close files and free buffers that aren't in use.
        """
    @property
    def buffer_bytes(self) -> int:
        ...
    @property
    def bytes_read(self) -> int:
        ...
    @property
    def seconds_waited(self) -> float:
        ...
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
def cut(shape: CaseShape, runs: Runs, draws: typing.SupportsInt | typing.SupportsIndex, layers: typing.SupportsInt | typing.SupportsIndex, join: Join, budget: typing.SupportsInt | typing.SupportsIndex) -> list[tuple[int, int]]:
    """
    Ranges of a case's runs that keep each tree within the budget; 0 for no budget.
    """
def is_quiet() -> bool:
    """
    Whether hooks of users' forwards in this thread do nothing now.
    """
def layer_rows(cases: collections.abc.Sequence[CaseShape], runs: Runs, begin: typing.SupportsInt | typing.SupportsIndex, end: typing.SupportsInt | typing.SupportsIndex, draws: typing.SupportsInt | typing.SupportsIndex, layers: typing.SupportsInt | typing.SupportsIndex, join: Join) -> list[int]:
    """
    Token rows of each case of a batch while each layer runs, and last all of them.
    """
def matched_control(experts: typing.Annotated[numpy.typing.ArrayLike, numpy.int64], weights: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], anchor: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Place of the gate-weight-matched control of the expert at place `anchor` (equation 8); -1 for none.
    """
def pack(rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], budget: typing.SupportsInt | typing.SupportsIndex) -> list[list[int]]:
    """
    Cut items into batches so that items x rows of the longest stays within the budget.
    """
def prefix_coalitions(permutations: typing.Annotated[numpy.typing.ArrayLike, numpy.int64]) -> numpy.typing.NDArray[numpy.uint64]:
    """
    The distinct coalitions that form while players join, ascending.
    """
def quietly(function: typing.Any, *args, **kwargs) -> typing.Any:
    """
    Call a function; hooks of users' forwards in this thread do nothing for the time.
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
def tree_cost(shape: CaseShape, runs: Runs, draws: typing.SupportsInt | typing.SupportsIndex, layers: typing.SupportsInt | typing.SupportsIndex, join: Join) -> int:
    """
    Token rows of one case in the average layer, at least a quarter of all.
    """
def tree_rows(shape: CaseShape, runs: Runs, begin: typing.SupportsInt | typing.SupportsIndex, end: typing.SupportsInt | typing.SupportsIndex, draws: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Token rows of one case with the runs from `begin` to `end`, forks of every draw.
    """
__version__: str = '0.1.0'
