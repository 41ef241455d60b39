"""Quantised models: what of them is quantised, and errors of their packages in our words."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetrace.errors import ModelError, MoetraceError, QuantizationError, QuantizationWarning
from moetrace.weights.tensors import is_plain

if TYPE_CHECKING:
    from moetrace.models.anatomy import Anatomy

_UNPACKED = ("finegrained_fp8", "mxfp4", "nvfp4", "gguf", "bitnet")  # of transformers itself
_PACKAGES = (
    "torchao", "bitsandbytes", "optimum", "hqq", "gptqmodel", "auto_gptq", "awq", "aqlm", "auto_round",
    "compressed_tensors", "eetq", "kernels", "vptq", "fbgemm_gpu",
    *(f"transformers.integrations.{name}" for name in _UNPACKED),
)  # fmt: skip
_INSTEAD = {
    "fp8": "a checkpoint in FP8 is unpacked by quantization_config=transformers.FineGrainedFP8Config("
    "dequantize=True)",
    "mxfp4": "the weights are unpacked by quantization_config=transformers.Mxfp4Config(dequantize=True)",
    "torchao": "int8 weights (Int8WeightOnlyConfig) run on processors; 4-bit kinds need a GPU and packages "
    "that the log above names",
    "GGUF": "expected a file that transformers reads, and its package: pip install gguf",
}
REMEDY = (
    "load it with unpacked weights (FineGrainedFP8Config and Mxfp4Config take dequantize=True, GGUF files "
    "are unpacked by themselves), with int8 weights of torchao or bitsandbytes, or unquantised"
)


def method_of(model: nn.Module) -> str | None:
    """How a model is quantised, as its config or its weights say; None where it isn't."""
    found = getattr(getattr(model, "config", None), "quantization_config", None)
    if found is not None:
        return method_named(found)
    packages = {_package(weight) for weight in model.parameters()} - {None}
    return ", ".join(sorted(map(str, packages))) or None


def method_named(config: Any) -> str:
    """The method of a quantisation config of transformers, or of the dictionary that it is saved as."""
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method) or type(config).__name__)


def _package(weight: torch.Tensor) -> str | None:
    """Of a tensor subclass the package that it comes from; shards of a tensor are no codes."""
    kind = type(weight) if type(weight) is not nn.Parameter else type(weight.data)
    root = kind.__module__.partition(".")[0]
    return None if root in ("torch", "moetrace", "builtins") else root


def quantisation_note(anatomy: Anatomy) -> str:
    """What a reader of a result has to know: the method, and whether the routed experts are quantised."""
    method = method_of(anatomy.model)
    if method is None:
        return "none"
    if all(map(is_plain, anatomy.model.parameters())):
        return f"{method}, unpacked to {_dtypes(anatomy.model.parameters())}"
    modules = [site.experts for site in anatomy.sites if site is not None and site.experts is not None]
    experts = [weight for module in modules for weight in module.parameters() if weight.dim() > 1]
    plain = [weight for weight in experts if is_plain(weight)]
    if not experts:
        return method
    if len(plain) == len(experts):
        return f"{method}; routed experts are not quantised ({_dtypes(plain)})"
    return f"{method}; routed experts are quantised" + (" in part" if plain else "")


def _dtypes(weights: Iterable[torch.Tensor]) -> str:
    return ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))


def load_fault(name: str, method: str, failure: Exception) -> QuantizationError:
    """Why a quantised checkpoint can't be loaded, and what would do."""
    what = " ".join(str(failure).split())[:400].rstrip(".!")
    return QuantizationError(
        f"{name!r} can't be loaded with {method} weights: {what}; {_INSTEAD.get(method, REMEDY)}"
    )


def warn_of_plain_experts(model: nn.Module) -> None:
    """QuantizationWarning where the experts, most of a model, stayed what they were."""
    from moetrace.models.anatomy import find_anatomy

    try:
        note = quantisation_note(find_anatomy(model))
    except ModelError:  # said when it is traced
        return
    if "not quantised" in note:
        warnings.warn(
            f"{type(model).__name__}: {note}. Its package knows linear layers only, and transformers keeps a "
            "layer's experts in one tensor: they take as much memory as before",
            QuantizationWarning,
            stacklevel=3,
        )


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Whatever a quantisation package raises inside becomes a QuantizationError with a remedy."""
    try:
        yield
    except (MoetraceError, torch.OutOfMemoryError):
        raise
    except Exception as failure:
        package = _raised_by(failure)
        method = None if package is None else method_of(model)
        if method is None:
            raise
        what = " ".join(str(failure).split())[:300] or "without a message"
        raise QuantizationError(
            f"{type(model).__name__} is quantised ({method}), and {package} failed in its forward "
            f"({type(failure).__name__}: {what}); {REMEDY}"
        ) from failure


def _raised_by(failure: BaseException) -> str | None:
    """The quantisation package that an error comes from; None where it is none's."""
    frame: Any = failure.__traceback__
    found = None
    while frame is not None:
        name = str(frame.tb_frame.f_globals.get("__name__", ""))
        found = next((own for own in _PACKAGES if name == own or name.startswith(f"{own}.")), found)
        frame = frame.tb_next
    return found
