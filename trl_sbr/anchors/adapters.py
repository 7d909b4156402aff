# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Adapters: found where PEFT puts them, and put on a base model that they leave as it is."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from peft import PeftModel, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .schema import read_json_as


logger = logging.get_logger(__name__)

ADAPTER_CONFIG_NAME = "adapter_config.json"

# One of these lies in every repository that this project reads
_ANY_FILE = ("config.json", ADAPTER_CONFIG_NAME, "safety_anchor_config.json", "sbr_run.json")


# Where PEFT's layers and wrappers keep what they were put on
_BASE_PARTS = ("token_adapter", "base_layer", "original_module")


class _AdapterConfig(TypedDict):
    base_model_name_or_path: NotRequired[str | None]
    revision: NotRequired[str | None]
    modules_to_save: NotRequired[list[str] | None]


@dataclass(frozen=True)
class AdapterFiles:
    """
    Where an adapter lies. PEFT saves one called `default` to the folder itself, and others to subfolders of their name.

    Args:
        name_or_path (`str`):
            Folder or Hub repository.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository.
        subfolder (`str`, *optional*, defaults to `""`):
            Subfolder that holds the adapter.
        others (`tuple[str, ...]`, *optional*):
            Subfolders that hold other adapters.
    """

    name_or_path: str
    revision: str | None = None
    subfolder: str = ""
    others: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.name_or_path}/{self.subfolder}" if self.subfolder else self.name_or_path

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """The keyword arguments with which PEFT finds it."""
        return {"revision": self.revision, **({"subfolder": self.subfolder} if self.subfolder else {})}

    def check_is_safetensors(self) -> None:
        """
        Make sure that the weights lie in a safetensors file: nothing is unpickled to test a stranger's claim.

        Raises:
            ValueError: If they do not.
        """
        kwargs = {
            "revision": self.revision,
            "subfolder": self.subfolder,
            "_raise_exceptions_for_missing_entries": False,
        }
        if cached_file(self.name_or_path, SAFETENSORS_WEIGHTS_NAME, **kwargs) is None:
            raise ValueError(
                f"The adapter {self} has no `{SAFETENSORS_WEIGHTS_NAME}`, and a pickle is not read to verify it. Save it again "
                "with `save_pretrained`, or ask its publisher."
            )

    def read_config(self) -> dict[str, Any]:
        """
        Read `adapter_config.json`.

        Raises:
            ValueError: If it is corrupted.
        """
        path = cached_file(self.name_or_path, ADAPTER_CONFIG_NAME, revision=self.revision, subfolder=self.subfolder)
        return read_json_as(_AdapterConfig, path, f"The `{ADAPTER_CONFIG_NAME}` of {self} is corrupted: get it again.")


@contextmanager
def disabled_adapters(model: PeftModel) -> Iterator[None]:
    """
    Context in which a model's adapters are off. What was frozen among their weights is so afterwards.

    Args:
        model ([`~peft.PeftModel`]):
            The model.
    """
    was_trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in was_trained:  # PEFT unfreezes all of the active adapters
            parameter.requires_grad_(requires_grad)


def find_adapter(name_or_path: str | Path, revision: str | None = None) -> AdapterFiles | None:
    """
    Find the adapter of a folder or Hub repository: the one in the folder itself, or else in its only subfolder that holds one.
    Checkpoints are not looked into, and no subfolder beside a whole model, where `trl-sbr harden` leaves what it has merged.

    Args:
        name_or_path (`str` or `Path`):
            Folder, folder within a repository's folder, or id of a Hub repository.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository.

    Returns:
        [`AdapterFiles`] or `None`: Where it lies; `None` if there is none.

    Raises:
        OSError: If it cannot be known, since the Hub is out of reach.
        ValueError: If several subfolders hold one and the folder itself none; it lists them.
    """
    name = str(name_or_path)
    files = _list_files(name, revision)
    folders = sorted(_adapter_folders(files))
    if not folders or ("" not in folders and _has_model(files)):
        return None
    if "" not in folders and len(folders) > 1:
        raise ValueError(
            f"`{name}` holds several adapters: {', '.join(folders)}. Name one: `{name}/{folders[0]}`, in a local folder."
        )
    return AdapterFiles(name, revision, folders[0], tuple(folders[1:]))


def list_adapter_folders(folder: Path) -> set[str]:
    """Returns the subfolders of a folder that hold an adapter, `""` if it holds one itself; whether or not a model lies there."""
    return _adapter_folders(_list_files(str(folder), None))


def _adapter_folders(files: list[str]) -> set[str]:
    pattern = rf"(?:(?!checkpoint-\d+/)[^/]+/)?{re.escape(ADAPTER_CONFIG_NAME)}"
    return {str(PurePosixPath(file).parent).removeprefix(".") for file in files if re.fullmatch(pattern, file)}


def _has_model(files: list[str]) -> bool:
    weights = r"model[^/]*\.safetensors|pytorch_model[^/]*\.bin"
    return "config.json" in files and any(re.fullmatch(weights, file) for file in files)


def _list_files(name: str, revision: str | None) -> list[str]:
    if os.path.isdir(name):
        paths = [*Path(name).glob("*"), *Path(name).glob(f"*/{ADAPTER_CONFIG_NAME}")]
        return [path.relative_to(name).as_posix() for path in paths if path.is_file()]
    try:
        return [file.rfilename for file in HfApi().model_info(name, revision=revision).siblings]
    except (OfflineModeIsEnabled, HTTPError):
        return _list_cached_files(name, revision)
    except HFValidationError:
        return []


def _list_cached_files(name: str, revision: str | None) -> list[str]:
    """As the Hub's cache knows them, which may not have all files of a repository."""
    cached = (try_to_load_from_cache(name, file, revision=revision) for file in _ANY_FILE)
    snapshot = next((str(Path(path).parent) for path in cached if isinstance(path, str)), None)
    if snapshot is None:
        return []  # whoever loads it says what is wrong
    files = _list_files(snapshot, None)
    if not _adapter_folders(files) and "config.json" not in files:
        raise OSError(
            f"The Hub is out of reach, and its cache does not know whether `{name}` holds an adapter. Try again when it is back, or "
            f"name a folder that holds all of it."
        )
    return files


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    The parameters and buffers of a model, by their names in the base model, less those of its adapters.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = []
    for name, module in base.named_modules(remove_duplicate=False):
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            parts = [*module._modules, *module._parameters, *module._buffers]
            own += [f"{name}.{part}." for part in parts if part not in _BASE_PARTS]
    tensors = {}
    for find in (base.named_parameters, base.named_buffers):
        for name, tensor in find(remove_duplicate=False):
            if not f"{name}.".startswith(tuple(own)):
                tensors[_base_name(name)] = tensor
    return tensors


def _base_name(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    for part in _BASE_PARTS:
        name = name.replace(f".{part}.", ".")
    return name


class BaseWeightsError(ValueError):
    """An adapter brings weights of its base model along, which are not the base model's own."""


@contextmanager
def base_weights_unchanged(model: nn.Module, adapter: AdapterFiles | str) -> Iterator[None]:
    """
    While an adapter is loaded within, no weight of the base model may change. PEFT puts whatever an adapter's file holds where
    its name says: an unembedding too, which would answer as it likes to the anchored states.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model that it is loaded into. Not sharded.
        adapter ([`AdapterFiles`] or `str`):
            The adapter, or the folder that holds it.

    Raises:
        BaseWeightsError: If the file carries weights of the base model, and they are not the base model's own.
    """
    adapter = AdapterFiles(adapter) if isinstance(adapter, str) else adapter
    tensors = base_tensors(model)
    versions = {name: tensor._version for name, tensor in tensors.items()}
    carried = carried_base_weights(model, adapter)
    # PEFT copies the embeddings into the file when an adapter lies on one of them
    copies = {name for name, tensor in carried.items() if _is_equal(tensor, tensors[name])}
    resized = [n for n, t in carried.items() if t.shape[1:] == tensors[n].shape[1:] and len(t) != len(tensors[n])]
    if resized:
        shapes = [f"`{n}` of shape {tuple(carried[n].shape)} for {tuple(tensors[n].shape)}" for n in resized]
        raise BaseWeightsError(
            f"The adapter {adapter} carries weights of its base model, of other shapes than the base model's own: "
            f"{', '.join(shapes)}. Tokens were added to the model before the training, so that it has an unembedding of its "
            "own, which no anchor of the base model vouches for. Save the model with its added tokens and its tokenizer "
            "(`save_pretrained`) first, and train the adapter on that folder."
        )
    yield
    written = [name for name, tensor in tensors.items() if tensor._version != versions[name]]
    changed = [n for n in written if n not in copies or not _is_equal(carried[n], tensors[n])]
    if changed:
        listing = ", ".join(f"`{name}`" for name in changed[:3]) + (
            f" and {len(changed) - 3} more" if changed[3:] else ""
        )
        raise BaseWeightsError(
            f"The adapter {adapter} carries weights of its base model, which it changes: {listing}. Its claim is about the base "
            "model with an adapter, and such weights go round it (an unembedding, embeddings or biases that were trained, or "
            "put into the file). Train it with `bias='none'` and without the unembedding, or ask its publisher."
        )


def carried_base_weights(model: nn.Module, adapter: AdapterFiles) -> dict[str, torch.Tensor]:
    """The tensors in an adapter's file that bear the name of a tensor of the base model, by that name; not `modules_to_save`."""
    names = base_tensors(model).keys()
    saved = tuple(adapter.read_config().get("modules_to_save") or ())
    found = {}
    for key, tensor in load_peft_weights(adapter.name_or_path, device="cpu", **adapter.hub_kwargs).items():
        name = _base_name(key)
        module = name.rpartition(".")[0]
        is_saved_module = ".original_module." not in key and any(
            f".{module}".endswith(f".{target}") or f".{target}." in f".{module}." for target in saved
        )
        if name in names and not is_saved_module:
            found[name] = tensor
    return found


def _is_equal(carried: torch.Tensor, own: torch.Tensor) -> bool:
    return carried.shape == own.shape and torch.equal(carried.to(own.dtype), own.detach().to(carried.device))


def load_adapter(
    model: nn.Module, adapter: AdapterFiles, allow_base_weights: bool = False, **kwargs: Any
) -> PeftModel:
    """
    Put an adapter on its base model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The base model.
        adapter ([`AdapterFiles`]):
            The adapter, see [`find_adapter`].
        allow_base_weights (`bool`, *optional*, defaults to `False`):
            Whether the file may carry weights of the base model, among them embeddings for added tokens: for who looks at what
            the adapter does, and claims nothing of it.
        **kwargs:
            Further arguments of [`~peft.PeftModel.from_pretrained`].

    Returns:
        [`~peft.PeftModel`]: The model with the adapter.

    Raises:
        BaseWeightsError: If it carries weights for the model that are not the model's own.
        ValueError: If it does not fit the model.
    """
    if allow_base_weights:
        carried = carried_base_weights(model, adapter)
        if carried:
            logger.warning(f"The adapter {adapter} brings weights of the base model along: {', '.join(carried)}.")
        _resize(model, carried)
        return _load(model, adapter, **kwargs)
    with base_weights_unchanged(model, adapter):
        return _load(model, adapter, **kwargs)


def _load(model: nn.Module, adapter: AdapterFiles, **kwargs: Any) -> PeftModel:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, adapter.name_or_path, **adapter.hub_kwargs, **kwargs)
    except (RuntimeError, UserWarning) as error:
        raise ValueError(
            f"The adapter `{adapter}` does not fit `{model.config._name_or_path}`: {str(error)[:300]}. Give the model that it "
            "was trained on with `--model_name_or_path`."
        ) from error


def _resize(model: nn.Module, carried: dict[str, torch.Tensor]) -> None:
    """Give the embeddings as many rows as those that the adapter brings along."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    tensors = base_tensors(model)
    for name, tensor in carried.items():
        is_embedding = any(tensors[name] is getattr(module, "weight", None) for module in embeddings)
        if is_embedding and len(tensor) != len(tensors[name]):
            model.resize_token_embeddings(len(tensor), mean_resizing=False)
            return


def tokenizer_source(name_or_path: str, revision: str | None, adapter: AdapterFiles | None) -> dict[str, Any]:
    """Where the tokenizer of a model lies, chat template and all: beside the adapter, or else beside the base model."""
    if adapter is not None:
        flags = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        name = adapter.name_or_path
        if cached_file(name, "tokenizer_config.json", revision=adapter.revision, **flags) is not None:
            return {"pretrained_model_name_or_path": name, "revision": adapter.revision}
    return {"pretrained_model_name_or_path": name_or_path, "revision": revision}


def load_processing_class(
    name_or_path: str, revision: str | None, adapter: AdapterFiles | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """
    Loads the tokenizer or processor of a model: the one that was saved beside the adapter, if there is one.

    Args:
        name_or_path (`str`):
            The model, or base model of the adapter.
        revision (`str`, *optional*):
            Its revision on the Hub.
        adapter ([`AdapterFiles`], *optional*):
            The adapter.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with it may run.
    """
    source = tokenizer_source(name_or_path, revision, adapter)
    return AutoProcessor.from_pretrained(**source, trust_remote_code=trust_remote_code)
