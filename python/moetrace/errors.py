"""Every error that moetrace raises on purpose.

Each message names what was found, what was expected and what to do. All derive from
:class:`MoetraceError`; those that are also a kind of standard error derive from that too, so
``except ValueError`` keeps working in a user's pipeline.
"""

from __future__ import annotations


class MoetraceError(Exception):
    """Base of all errors and the one to catch in a script."""


class CaseError(MoetraceError, ValueError):
    """A case, or a set of cases, can't be traced."""


class NoCasesError(CaseError):
    """There is nothing to trace."""


class CaseIndexError(CaseError, IndexError):
    """A position that a case set hasn't."""


class SubjectSpanError(CaseError):
    """The subject span is empty, out of range or covers the final token."""


class PromptLengthError(CaseError):
    """A prompt has more tokens than the model has positions."""


class SameObjectError(CaseError):
    """True and foil object are the same token."""


class TokenIdError(CaseError):
    """A token id lies outside the model's vocabulary."""


class DuplicateCaseError(CaseError):
    """Two cases of one set share a case id."""


class NoPartnerError(CaseError):
    """Cases whose subject has no other to be swapped with."""


class NoFoilError(CaseError):
    """Cases without a foil object, where a metric compares with one."""


class RecordError(MoetraceError, ValueError):
    """A record file or record can't be read: truncated, of an unknown layout, or lacking fields."""


class TokenizerError(MoetraceError, ValueError):
    """The tokenizer can't give what is needed (for instance no offsets and no fallback)."""


class ModelError(MoetraceError, ValueError):
    """The model can't be traced."""


class LayoutError(ModelError):
    """Decoder layers, blocks or experts were not found where a known layout has them."""


class EncoderDecoderError(ModelError):
    """An encoder-decoder model: the protocol needs a decoder-only language model."""


class TokenMixingError(ModelError):
    """Routing mixes tokens, so patching one token of a sequence is not defined."""


class NotCausalError(ModelError):
    """Tokens see later tokens: a masked or bidirectional model, not a causal one."""


class LoopedLayerError(ModelError):
    """A layer that runs several times in a forward, so that a patch of it has no single meaning."""


class WrappedModelError(ModelError):
    """A model inside another that changes what it computes, or where its weights are."""


class QuantizationError(ModelError):
    """Quantised weights that can't be loaded, or whose forward fails."""


class CheckpointError(ModelError):
    """A checkpoint's files are missing, cut off, changed, unreadable, or not those of the model."""


class EngineError(MoetraceError, RuntimeError):
    """An engine doesn't apply to this model, or its self-check failed."""


class RankError(MoetraceError, RuntimeError):
    """Of several processes that trace together one failed, was lost, or was asked for something else."""


class NonFiniteError(ModelError):
    """No case has finite logits."""


class ContributionError(MoetraceError, RuntimeError):
    """The experts' contributions don't sum to the routed part of the block's output."""


class HookError(MoetraceError, RuntimeError):
    """A hook that was armed never fired, or saw a shape that it doesn't know."""


class ArgumentError(MoetraceError, ValueError):
    """An argument of a public function is out of its range."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a public function is of another kind than it takes."""


class CorruptionError(ArgumentError):
    """A corruption gives something else than embeddings for the subject's tokens."""


class MetricError(ArgumentError):
    """A metric function gives something else than a number for each row of logits."""


class TokenRangeError(ArgumentError, IndexError):
    """A token that no forward of a capture or patch holds."""


class PatchError(MoetraceError, ValueError):
    """What a patch puts in a place doesn't fit there: another shape or dtype, or no tensor at all."""


class LayerRangeError(ArgumentError, IndexError):
    """A layer that the model doesn't have, or that has no site to patch."""


class LayerTypeError(LayerRangeError, ArgumentTypeError):
    """A layer that isn't a number."""


class MemoryBudgetError(MoetraceError, RuntimeError):
    """More memory is needed than there is."""


class RunFolderError(MoetraceError, RuntimeError):
    """A run folder belongs to another call, or can't be read."""


class MissingPackageError(MoetraceError, ImportError):
    """Something needs a package that isn't installed."""


class CoreImportError(MoetraceError, ImportError):
    """The compiled core doesn't go with what is installed."""


class MoetraceWarning(UserWarning):
    """Base of all warnings."""


class WrapperWarning(MoetraceWarning):
    """A model inside another is traced by itself."""


class QuantizationWarning(MoetraceWarning):
    """A quantised model isn't quantised where one would think."""


class EngineWarning(MoetraceWarning):
    """The tree engine no longer agreed with plain forwards, and the reference engine took over."""


class FewClustersWarning(MoetraceWarning):
    """So few clusters that intervals are too short and p-values too coarse to rely on."""


class NoEffectWarning(MoetraceWarning):
    """What is asked for can't have an effect, whatever the model does."""


class MemoryBudgetWarning(MoetraceWarning):
    """Nearly all memory that there is will be needed."""


class NonFiniteWarning(MoetraceWarning):
    """A case gave NaN or infinite logits; it is reported and the rest goes on."""
