"""lycoris_config.json: what is trained, in the form that other trainers and LyCORIS itself read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from tunesmith import InputError

from .settings import USED_BY, Algorithm, Factor, LayerSettings, LycorisSettings, Rank, inherited
from .targets import expression

NAME = "lycoris_config.json"
EVERY_LAYER = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")
"""What LyCORIS adapts where nothing is said; its norms only count with `train_norm`."""
ADVICE = {
    "train_norm": "norms cannot be trained here",
    "use_scalar": "the scale is folded into weights when they are saved, so that a resumed run would be another",
    "preset": "name the layers in `apply_preset`",
    "use_cp": 'it is "use_tucker" now',
    "use_conv_cp": 'it is "use_tucker" now',
    "disable_conv_cp": 'it is "use_tucker" now',
    "block_size": "it is for an algorithm that is not offered here",
    "constraint": "it is for algorithms that are not offered here",
    "rescaled": "it is for algorithms that are not offered here",
    "rs_lora": "set an alpha",
    "lora_prefix": 'files are written with the prefix "lycoris"',
    "unet_target_module": 'LyCORIS reads "target_module" here',
    "unet_target_name": 'LyCORIS reads "target_name" here',
    "text_encoder_target_module": "only the denoiser is trained",
    "text_encoder_target_name": "only the denoiser is trained",
    "linear_dim": 'for some modules it is called "dim"',
    "linear_alpha": 'for some modules it is called "alpha"',
    "dora_wd": 'for some modules it is called "weight_decompose"',
    "wd_on_output": 'for some modules it is called "wd_on_out"',
}
"""What to say of keys that LyCORIS or other trainers know, where they are of no use."""
OF_ALL = ("linear_dim", "linear_alpha")
"""Keys that trainers write for every algorithm."""
FileAlgorithm: TypeAlias = Annotated[Algorithm, BeforeValidator(lambda algo: "locon" if algo == "lora" else algo)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def written(self) -> set[str]:
        """The keys that say something else than the default."""
        return {name for name in self.model_fields_set if getattr(self, name) != type(self).model_fields[name].default}


class ModuleConfig(LayerSettings):
    """What is other for some modules: the settings of some layers, a few of them by other keys."""

    algo: FileAlgorithm | None = None
    """The algorithm; `lora` is LoCon."""
    rank: Rank | None = Field(None, alias="dim")
    """Rank of the update."""
    dora_wd: bool | None = Field(None, alias="weight_decompose")
    """Train the length of each row apart from its direction."""
    wd_on_output: bool | None = Field(None, alias="wd_on_out")
    """Lengths of rows, or else of columns."""


KEYS = {name: field.alias or name for name, field in ModuleConfig.model_fields.items()}
"""What the settings of layers are called in the file."""


class Preset(_Table):
    """Which modules are trained: all layers within modules of some classes, and layers by the beginning of their paths."""

    enable_conv: bool = True
    target_module: tuple[str, ...] = EVERY_LAYER
    target_name: tuple[str, ...] = ()
    module_algo_map: Mapping[str, ModuleConfig] = {}
    name_algo_map: Mapping[str, ModuleConfig] = {}
    use_fnmatch: bool = False
    exclude_name: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerOptions:
    """What one layer gets."""

    algo: str
    rank: int
    alpha: float
    factor: int
    full_matrix: bool
    decompose_both: bool
    unbalanced_factorization: bool
    use_tucker: bool
    weight_decompose: bool
    wd_on_out: bool
    train_on_input: bool
    bypass_mode: bool | None


class NetworkConfig(_Table):
    """The whole file; `linear_alpha` is `linear_dim` where it is left out."""

    required: ClassVar[tuple[str, ...]] = ("algo", "multiplier", "linear_dim", "linear_alpha", "apply_preset")

    algo: FileAlgorithm = "locon"
    multiplier: float = 1.0
    linear_dim: int = Field(ge=1)
    linear_alpha: float | None = Field(None, gt=0)
    conv_dim: int | None = Field(None, ge=1)
    conv_alpha: float | None = Field(None, gt=0)
    factor: Factor = -1
    full_matrix: bool = False
    decompose_both: bool = False
    unbalanced_factorization: bool = False
    use_tucker: bool = False
    dora_wd: bool = False
    wd_on_output: bool = True
    train_on_input: bool = False
    bypass_mode: bool | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    apply_preset: Preset = Preset()

    @field_validator("multiplier")
    @classmethod
    def _full_strength(cls, multiplier: float) -> float:
        if multiplier != 1:
            raise ValueError("an adapter is trained as strong as it is used: set it to 1, and scale by linear_alpha")
        return multiplier

    def options(self, module: ModuleConfig | None, *, wide: bool) -> LayerOptions | None:
        """What a layer gets that `module` speaks of; `wide` convolutions, of kernels above 1, have a rank of their own, or none."""
        one, conv = module or ModuleConfig(), wide and self.conv_dim is not None
        if wide and not self.apply_preset.enable_conv and one.rank is None:
            return None
        rank = one.rank or (self.conv_dim if conv else None) or self.linear_dim
        alpha = one.alpha or (self.conv_alpha if wide else None) or self.linear_alpha or float(rank)
        return LayerOptions(
            algo=one.algo or self.algo,
            rank=rank,
            alpha=alpha,
            factor=self.factor if one.factor is None else one.factor,
            full_matrix=inherited(one.full_matrix, self.full_matrix),
            decompose_both=inherited(one.decompose_both, self.decompose_both),
            unbalanced_factorization=inherited(one.unbalanced_factorization, self.unbalanced_factorization),
            use_tucker=inherited(one.use_tucker, self.use_tucker),
            weight_decompose=inherited(one.dora_wd, self.dora_wd),
            wd_on_out=inherited(one.wd_on_output, self.wd_on_output),
            train_on_input=inherited(one.train_on_input, self.train_on_input),
            bypass_mode=self.bypass_mode if one.bypass_mode is None else one.bypass_mode,
        )

    def contradictions(self, layers: Mapping[str, LayerOptions]) -> Iterator[str]:
        """Arguments that exclude each other for a layer that is adapted."""
        if self.dropout and self.rank_dropout:
            yield "`dropout` and `rank_dropout` together: each needs another way to add the update; take one of them"
        found = {(one.algo, one.weight_decompose, one.bypass_mode, one.full_matrix and one.decompose_both) for one in layers.values()}
        for algo, decomposed, bypass, both in sorted(found, key=str):
            if algo not in USED_BY["bypass_mode"]:
                continue
            if decomposed and bypass:
                yield f"DoRA of {algo} cannot be added to what a layer gives: take `bypass_mode` out"
            if self.dropout and (decomposed or bypass is False):
                yield f"`dropout` does nothing where the update of {algo} is added to the weight, as with DoRA or `bypass_mode = false`"
            if self.rank_dropout and algo == "lokr":
                yield "`rank_dropout` of lokr is drawn on the CPU by LyCORIS, and fails elsewhere: use `module_dropout` or `dropout`"
            if both and algo == "lokr":
                yield "`decompose_both` does nothing with `full_matrix`: take one of them out"

    def ignored(self) -> Iterator[str]:
        """Keys of a file that its algorithms do not read; trainers write ranks for all, so these are left out."""
        preset = self.apply_preset
        maps = {**preset.module_algo_map, **preset.name_algo_map}
        used = {self.algo, *(one.algo or self.algo for one in maps.values())}
        for name in sorted(self.written.difference(OF_ALL)):
            if name in USED_BY and not USED_BY[name] & used:
                yield f'"{name}" does nothing with {" and ".join(sorted(used))}'
        for target, one in maps.items():
            for name in sorted(one.model_dump(exclude_none=True)):
                if not USED_BY.get(name, used) & {one.algo or self.algo}:
                    yield f'"{KEYS[name]}" of "{target}" does nothing with {one.algo or self.algo}'

    def as_json(self) -> str:
        """The file's text: what trainers ask for, and what is not the default."""
        said = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
        needed = self.model_dump(mode="json", include=set(self.required) - {"apply_preset"})
        alpha = self.linear_alpha or float(self.linear_dim)
        return json.dumps({**needed, **said, "linear_alpha": alpha}, indent=2) + "\n"


def from_settings(settings: LycorisSettings, targets: tuple[str, ...]) -> NetworkConfig:
    """The settings as such a file; `targets` where they name none."""
    overrides = {expression(target): _module_config(one, settings) for target, one in settings.overrides.items()}
    preset = Preset(target_module=(), target_name=tuple(map(expression, settings.targets or targets)), name_algo_map=overrides)
    given = settings.model_dump(exclude={"rank", "alpha", "targets", "overrides", "config", "init_from"})
    return NetworkConfig(**given, linear_dim=settings.rank, linear_alpha=settings.alpha or float(settings.rank), apply_preset=preset)


def _module_config(one: LayerSettings, common: LycorisSettings) -> ModuleConfig:
    """An override by the file's names; without any alpha it is the override's own rank."""
    given = {KEYS[name]: value for name, value in one.model_dump(exclude_none=True).items()}
    if one.rank is not None and one.alpha is None and common.alpha is None:
        given["alpha"] = float(one.rank)
    return ModuleConfig(**given)


def read_config(file: Path) -> NetworkConfig:
    """Read such a file; InputError if it is none, with every key that is not known and the nearest that is."""
    path = file / NAME if file.is_dir() else file
    if not path.is_file():
        raise InputError(f"there is no file {path}; `config` takes a {NAME} or its folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no object with keys such as algo and linear_dim")
    try:
        return NetworkConfig.model_validate(_without_switched_off(found))
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_complaint(one) for one in error.errors())) from None


def _without_switched_off(found: dict[str, Any]) -> dict[str, Any]:
    """The file without keys that are of no use here and switched off there."""
    return {key: value for key, value in found.items() if key in NetworkConfig.model_fields or key not in ADVICE or value}


def _complaint(error: Any) -> str:
    *table, key = error["loc"] or ("it",)
    where = f" in {'.'.join(map(str, table))}" if table else ""
    if error["type"] != "extra_forbidden":
        return f'"{key}"{where}: {error["msg"].removeprefix("Value error, ")}, and not {error["input"]!r}'
    if key in ADVICE:
        return f'"{key}"{where} cannot be used: {ADVICE[key]}'
    kind = NetworkConfig if not table else Preset if len(table) == 1 else ModuleConfig
    known = [field.alias or name for name, field in kind.model_fields.items()]
    near = difflib.get_close_matches(str(key), known, 1)
    return f'"{key}"{where} is unknown; ' + (f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}")
