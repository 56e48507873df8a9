"""Files: in LyCORIS' own layout, which is also read, and, where there is one, in a layout that diffusers reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoKrConfig, LoraConfig
from peft.config import PeftConfig
from peft.tuners.lokr.layer import factorization
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith import InputError

from .adapters import PREFIX, TITLES, Adapted, Adapters, is_wide, key_of, lokr_factors
from .config import NAME, LayerOptions

FOLDER = "diffusers"
"""Folder for what diffusers reads."""
DENOISER = "transformer."
"""What diffusers calls the denoiser in the keys of a file."""


def write(folder: Path, adapters: Adapters) -> None:
    """Write `pytorch_lora_weights.safetensors` with its lycoris_config.json, and below `diffusers/` one that diffusers reads, if it can."""
    folder.mkdir(parents=True, exist_ok=True)
    described = adapters.config.as_json()
    weights = {f"{key_of(path)}.{name}": value for path, one in adapters.layers.items() for name, value in one.tensors().items()}
    save_file(_saveable(weights), folder / LORA_WEIGHT_NAME_SAFE, metadata={"format": "pt", "lycoris_config": described})
    (folder / NAME).write_text(described, encoding="utf-8")
    if unreadable_by_diffusers({path: (one.layer, one.options) for path, one in adapters.layers.items()}) is None:
        (folder / FOLDER).mkdir(exist_ok=True)
        tensors, config = for_diffusers(adapters.layers)
        metadata = {DENOISER + key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        save_file(
            {DENOISER + name: value for name, value in _saveable(tensors).items()},
            folder / FOLDER / LORA_WEIGHT_NAME_SAFE,
            metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True)},
        )


def _saveable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def unreadable_by_diffusers(layers: Mapping[str, tuple[nn.Module, LayerOptions]]) -> str | None:
    """Why `load_lora_adapter` of diffusers 0.42 cannot read these adapters, or None."""
    algorithms = sorted({options.algo for _, options in layers.values()})
    others = [TITLES[algo] for algo in algorithms if algo not in ("lokr", "locon")]
    if others:
        return f"it reads no {' and no '.join(others)}"
    if len(algorithms) > 1:
        return "it reads either LoKr or LoRA from a file, not both"
    for path, (layer, options) in layers.items():
        for reason in _obstacles(path, layer, options):
            return reason
    if algorithms == ["lokr"]:
        both = {options.decompose_both for _, options in layers.values()}
        if len(both) > 1 or _peft_factor(lokr_factors(layer, options) for layer, options in layers.values()) is None:
            return "it reads LoKr with one `factor` and one `decompose_both` for all layers"
    return None


def _peft_factor(factors: Iterable[tuple[tuple[int, int], tuple[int, int]]]) -> int | None:
    """The factor at which peft divides the sides of all layers as they are, or None: it takes larger factors otherwise than LyCORIS."""
    sides = {side for first, second in factors for side in zip(first, second, strict=True)}
    candidates = [-1, *sorted({small for small, _ in sides})]
    return next((one for one in candidates if all(factorization(small * large, one) == (small, large) for small, large in sides)), None)


def _obstacles(path: str, layer: nn.Module, options: LayerOptions) -> Iterator[str]:
    """What diffusers cannot express of one layer's adapter."""
    convolves = not isinstance(layer, nn.Linear)
    if convolves and layer.groups != 1:
        yield f"it knows no such adapter for {path}, a convolution of {layer.groups} groups"
    if options.use_tucker and is_wide(layer):
        yield "it knows no kernels in Tucker's decomposition"
    if options.algo == "lokr":
        if options.weight_decompose:
            yield "it knows no DoRA of LoKr"
        if options.unbalanced_factorization:
            yield "it knows no unbalanced factors"
        if isinstance(layer, nn.Conv3d):
            yield f"it knows no LoKr for {path}, a convolution of three dimensions"
    elif options.weight_decompose and not options.wd_on_out:
        yield "its DoRA has lengths of rows, not of columns"


def for_diffusers(layers: Mapping[str, Adapted]) -> tuple[dict[str, Tensor], PeftConfig]:
    """Weights by peft's names, with the scale alpha / rank multiplied into them, and the configuration that they need."""
    is_lokr = next(iter(layers.values())).options.algo == "lokr"
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, one in layers.items():
        own = _lokr(one) if is_lokr else _lora(one)
        ranks[path] = _lokr_rank(own) if is_lokr else own["lora_A.weight"].shape[0]
        tensors.update({f"{path}.{name}": value for name, value in own.items()})
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    others = {f"^{path}": own for path, own in ranks.items() if own != rank}
    options = next(iter(layers.values())).options
    if not is_lokr:
        dora = any(one.options.weight_decompose for one in layers.values())
        config = LoraConfig(
            r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=dict(others), target_modules=list(layers), use_dora=dora
        )
        return tensors, config
    return tensors, LoKrConfig(
        r=rank,
        alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(layers),
        decompose_both=options.decompose_both,
        decompose_factor=_peft_factor(lokr_factors(one.layer, one.options) for one in layers.values()),
    )


def _lora(one: Adapted) -> dict[str, Tensor]:
    adapter = one.adapter
    weights = {"lora_A.weight": adapter.lora_down.weight, "lora_B.weight": adapter.lora_up.weight * adapter.scale}
    if one.options.weight_decompose:
        lengths = adapter.dora_scale
        weights["lora_magnitude_vector"] = lengths.flatten() if isinstance(one.layer, nn.Linear) else lengths.transpose(0, 1)
    return weights


def _lokr(one: Adapted) -> dict[str, Tensor]:
    weights = {name: value for name, value in one.tensors().items() if name.startswith("lokr_")}
    first = "lokr_w1" if "lokr_w1" in weights else "lokr_w1_a"
    return {**weights, first: weights[first] * one.adapter.scale}


def _lokr_rank(weights: Mapping[str, Tensor]) -> int:
    """The rank at which peft makes factors of these shapes: it keeps them whole where it is at least half of the larger side."""
    for name in ("lokr_w2_a", "lokr_w1_a"):
        if name in weights:
            return weights[name].shape[1]
    return max(weights["lokr_w2"].shape)


def read(source: Path) -> tuple[Path, dict[str, Tensor]]:
    """The tensors of a file in LyCORIS' layout, or of the one in a folder; InputError if it is none."""
    path = source / LORA_WEIGHT_NAME_SAFE if source.is_dir() else source
    start = f"lycoris cannot start from {path}"
    if not path.is_file():
        raise InputError(f"{start}: there is no such file; `init_from` takes a {LORA_WEIGHT_NAME_SAFE} in LyCORIS' layout, or its folder")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{start}: it is no safetensors file ({error})") from None
    if not any(name.startswith(PREFIX) for name in tensors):
        raise InputError(f"{start}: it has no keys such as {PREFIX}<layer>.lokr_w1, which LyCORIS writes")
    return path, tensors


def check_layers(path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, LayerOptions]) -> None:
    """InputError if a file is for other layers."""
    _refuse(path, {key_of(layer) for layer in layers}, {name.partition(".")[0] for name in tensors})


def start_from(path: Path, tensors: Mapping[str, Tensor], adapters: Adapters) -> None:
    """Take up the weights of a file; InputError if they are for other layers, of other shapes or at another scale."""
    expected = {f"{key_of(layer)}.{name}": value for layer, one in adapters.layers.items() for name, value in one.tensors().items()}
    _refuse(path, expected.keys(), tensors.keys())
    for layer, one in adapters.layers.items():
        for name, target in one.tensors().items():
            found = tensors[f"{key_of(layer)}.{name}"]
            if found.shape != target.shape:
                shapes = f"{list(found.shape)} there and {list(target.shape)} here"
                raise InputError(
                    f"{path} does not fit: {name} of {layer} is {shapes}; take the `rank` and `factor` that it was trained with"
                )
            if name in ("alpha", "on_input") and not torch.isclose(found.float(), target.float()):
                setting = "alpha" if name == "alpha" else "train_on_input"
                raise InputError(f"{path} does not fit: {layer} was trained with {setting} {found.item():g}, and not {target.item():g}")
            with torch.no_grad():
                target.copy_(found)


def _refuse(path: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    """InputError if names are not the same."""
    here, there = set(expected), set(found)
    for problem, names in {"has nothing for": sorted(here - there), "has weights beyond `targets` for": sorted(there - here)}.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            advice = "the settings and the model must be those that it was trained with"
            raise InputError(f"{path} {problem} {names[0]}{more}: {advice}, as its {NAME} says")
