"""Weights that accelerate keeps outside of the modules: in memory or on disk, until a forward needs them.

Its hooks (``_hf_hook``) map the names of a module's tensors to where the values are. Files are read here
straight into memory instead of through a memory map: one that is cut off is then an error that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from moetrace.errors import ModelError
from moetrace.weights.tensors import PLAIN, few_entries
from moetrace.weights.walk import walk

_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MOST_HEADER = 100_000_000  # bytes, as safetensors allows


@dataclass(frozen=True)
class FileRange:
    """Where a file holds a tensor."""

    path: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def read(self, into: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor, in new memory or in a byte buffer of at least its size. ModelError names the file."""
        bytes_of = torch.empty(self.size, dtype=torch.uint8) if into is None else into[: self.size]
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                view, done = bytes_of.numpy().data, 0
                while done < self.size:
                    got = file.readinto(view[done:])
                    if not got:
                        raise ModelError(
                            f"{self.path} is cut off: expected {self.size} bytes from {self.offset}, found "
                            f"{done}; copy the file again, or load the model anew"
                        )
                    done += got
        except OSError as failure:
            raise ModelError(f"{self.path} can't be read ({failure}); load the model anew") from failure
        return bytes_of.view(self.dtype).view(self.shape)

    def sample(self, step: int, most: int) -> torch.Tensor:
        """Every ``step``-th entry, flat, up to so many. ModelError names a file that is cut off or gone."""
        count = len(range(0, self.size, step * self.dtype.itemsize)[:most])
        if not count:
            return torch.empty(0, dtype=self.dtype)
        shape = (self.size // self.dtype.itemsize, self.dtype.itemsize)
        try:
            whole = np.memmap(self.path, np.uint8, "r", self.offset, shape)
        except (OSError, ValueError) as failure:
            raise ModelError(f"{self.path} can't be read ({failure}); load the model anew") from failure
        entries = np.array(whole[::step][:most])
        return torch.from_numpy(entries).view(self.dtype).flatten()

    def state(self) -> tuple[str, int, int, int]:
        """What tells the values from others: file, place, time of change, length. ModelError if it's gone."""
        return self.path, self.offset, *_state(self.path)


def _state(path: str) -> tuple[int, int]:
    """When a file was changed, and its length."""
    try:
        found = os.stat(path)
    except OSError as failure:
        raise ModelError(
            f"{path}, which holds weights of the model, is gone ({failure}); load the model anew"
        ) from failure
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Offloaded:
    """A module whose weights its hook brings in for each forward, and takes out after it.

    ``names``: of the tensors, dotted where they lie in children of the module.
    """

    module: nn.Module
    hook: Any
    names: tuple[str, ...]

    @property
    def absent(self) -> bool:
        """Whether a forward would load them now."""
        return bool(self.hook.offload)

    @property
    def device(self) -> torch.device:
        """Where they are needed."""
        return execution_device(self.hook) or torch.device("cpu")

    def holder(self, name: str) -> tuple[dict[str, Any], str]:
        """The dictionary of parameters or buffers that holds a tensor, and its key there."""
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        return (owner._parameters if leaf in owner._parameters else owner._buffers), leaf

    def place(self, name: str) -> torch.Tensor | FileRange:
        """The values as they are kept: a tensor in memory, or where a file holds it."""
        weights, key = self.hook.weights_map, name
        while hasattr(weights, "prefix"):
            weights, key = weights.dataset, f"{weights.prefix}{key}"
        in_memory = getattr(weights, "state_dict", weights)
        entry = None if key in in_memory else getattr(weights, "index", {}).get(key)
        found = None if entry is None else _range(entry, getattr(weights, "save_folder", None), key)
        if found is not None:
            return found
        value: torch.Tensor = self.hook.weights_map[name]
        return value

    def identity(self, name: str) -> tuple[Any, ...]:
        """What tells the values from others, whether or not they are in the module now."""
        place = self.place(name)
        if isinstance(place, FileRange):
            return place.state()
        return place.data_ptr(), 0 if place.is_inference() else place._version, few_entries(place)


def _range(entry: dict[str, Any], folder: Any, key: str) -> FileRange | None:
    """Where accelerate's index says that a tensor is; None in a dtype that isn't known here."""
    path = entry.get("safetensors_file")
    if path is None:
        dtype = getattr(torch, str(entry["dtype"]), None)
        path = os.path.join(folder, f"{key}.dat")
        return FileRange(path, 0, dtype, tuple(entry["shape"])) if isinstance(dtype, torch.dtype) else None
    name = entry.get("weight_name", key)
    start, found = _header(path, _state(path))
    if name not in found:
        raise ModelError(f"{path} has no tensor {name!r} any more; load the model anew")
    dtype = _SAFETENSORS.get(found[name]["dtype"])
    if dtype is None:
        return None
    return FileRange(path, start + found[name]["data_offsets"][0], dtype, tuple(found[name]["shape"]))


@lru_cache(maxsize=4096)
def _header(path: str, _state: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's data begin, and what it says of each tensor."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER:
                raise ValueError("its header's length isn't one")
            found = json.loads(file.read(length))
    except (OSError, ValueError) as failure:
        raise ModelError(f"{path}, which holds weights of the model, can't be read ({failure})") from failure
    return 8 + length, found


def offloaded_modules(root: nn.Module) -> Iterator[Offloaded]:
    """Modules whose plain weights accelerate keeps outside of them, whether or not they are in now.

    Weights of other kinds (bitsandbytes' codes) are left to its own hooks.
    """
    for module in walk(root):
        if names := offloaded_names(module):
            found = Offloaded(module, aligning_hook(module), names)
            holders = [found.holder(name) for name in names]
            if all(type(holder[leaf]) in PLAIN for holder, leaf in holders):
                yield found


def offloaded_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that a module's hook brings in, dotted where they lie in its children."""
    hook = aligning_hook(module)
    if hook is None or hook.weights_map is None:
        return ()
    from accelerate.utils import named_module_tensors

    found = named_module_tensors(
        module,
        include_buffers=hook.offload_buffers,
        recurse=hook.place_submodules,
        remove_non_persistent=True,
    )
    return tuple(name for name, _ in found)


def aligning_hook(module: nn.Module) -> Any:
    """The hook of accelerate that puts a module's weights and inputs where they belong; None without one."""
    hook = getattr(module, "_hf_hook", None)
    own: list[Any] = [one for one in getattr(hook, "hooks", (hook,)) if hasattr(one, "weights_map")]
    offloading = [one for one in own if one.weights_map is not None]
    return next(iter(offloading or own), None)


def execution_device(hook: Any) -> torch.device | None:
    """Where a module's forward runs, as accelerate was told; None where it wasn't."""
    device = getattr(hook, "execution_device", None)
    if device is None:
        return None
    if isinstance(device, int):
        accelerator = torch.accelerator.current_accelerator()
        return torch.device("cpu" if accelerator is None else accelerator.type, device)
    found = torch.device(device)
    return None if found.type == "meta" else found


def placement_note(model: nn.Module) -> str:
    """Where a model's weights are, in a few words: devices, and how many bytes are offloaded."""
    sizes = {"memory": 0, "disk": 0}
    for own in offloaded_modules(model):
        for name in own.names:
            place = own.place(name)
            if isinstance(place, FileRange):
                sizes["disk"] += place.size
            else:
                sizes["memory"] += place.nbytes
    notes = [f"{size} bytes offloaded to {where}" for where, size in sizes.items() if size]
    devices = sorted({str(weight.device) for weight in model.parameters() if not weight.is_meta})
    return ", ".join([*devices, *notes])


def execution_devices(root: nn.Module) -> set[torch.device]:
    """Where the modules inside run, as far as accelerate places them."""
    found = {execution_device(aligning_hook(module)) for module in walk(root)}
    return {device for device in found if device is not None}


def has_other_forward(module: nn.Module) -> bool:
    """Whether something else than accelerate's hooks stands in the place of a module's forward."""
    given = vars(module).get("forward")
    if given is None:
        return False
    ours = isinstance(given, partial) and getattr(given.func, "__module__", "") == "accelerate.hooks"
    before = getattr(vars(module).get("_old_forward"), "__func__", None)
    return not (ours and before is type(module).forward)
