"""`[plugins.lycoris]`: the algorithm, its arguments, and which layers differ; whatever would do nothing is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from tunesmith import InputPath, Settings

from .targets import is_pattern


def _no_zero(factor: int) -> int:
    if factor == 0:
        raise ValueError("0 is no size of a factor: -1 makes both as near to each other as they can be")
    return factor


Algorithm: TypeAlias = Literal["lokr", "loha", "locon", "ia3", "full"]
Rank: TypeAlias = Annotated[int, Field(ge=1)]
Factor: TypeAlias = Annotated[int, Field(ge=-1), AfterValidator(_no_zero)]

LOW_RANK = frozenset({"lokr", "loha", "locon"})
USED_BY: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("rank", "alpha", "use_tucker", "dora_wd", "wd_on_output", "bypass_mode", "dropout"), LOW_RANK),
    **dict.fromkeys(("factor", "full_matrix", "decompose_both", "unbalanced_factorization"), frozenset({"lokr"})),
    "rank_dropout": frozenset({"loha", "locon"}),
    "train_on_input": frozenset({"ia3"}),
}
"""Arguments that only some algorithms read."""


class LayerSettings(Settings):
    """`[plugins.lycoris.overrides]`: what is other for some layers, by their names; what is left out is as for all."""

    algo: Algorithm | None = None
    """The algorithm."""
    rank: Rank | None = None
    """Rank of the update."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank."""
    factor: Factor | None = None
    """Of LoKr: the size of the first factor."""
    full_matrix: bool | None = None
    """Of LoKr: keep the second factor whole."""
    decompose_both: bool | None = None
    """Of LoKr: decompose the first factor too."""
    unbalanced_factorization: bool | None = None
    """Of LoKr: exchange the sides of the output's factors."""
    use_tucker: bool | None = None
    """Decompose the kernels of convolutions too."""
    dora_wd: bool | None = None
    """Train the length of each row apart from its direction (DoRA)."""
    wd_on_output: bool | None = None
    """Of DoRA: lengths of rows, or else of columns."""
    train_on_input: bool | None = None
    """Of (IA)^3: scale what goes in, and not what comes out."""
    bypass_mode: bool | None = None
    """Add to what the layer gives, or else to its weight."""


class LycorisSettings(Settings):
    """`[plugins.lycoris]`: the algorithm and its arguments, where it attaches and what it starts from."""

    refused_keys: ClassVar[Mapping[str, str]] = {
        "linear_dim": "it is `rank` here",
        "linear_alpha": "it is `alpha` here",
        "apply_preset": "name layers in `targets` and `overrides`, or a whole lycoris_config.json in `config`",
        "preset": "name layers in `targets`",
        "multiplier": "the adapter is trained as strong as it is used; `alpha` scales it",
    }

    algo: Algorithm = "lokr"
    """LoKr (a Kronecker product), LoHa (a Hadamard product), LoCon (LoRA, of convolutions too), (IA)^3 (a scale for each channel) or the
    whole difference of weight and bias."""
    rank: Rank = 16
    """Rank of the update."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank; the rank when not given."""
    factor: Factor = -1
    """Of LoKr: the size of the first factor, where it divides the layer's sides; -1 makes both as near to each other as they can be."""
    full_matrix: bool = False
    """Of LoKr: keep the second factor whole instead of decomposing it at the rank."""
    decompose_both: bool = False
    """Of LoKr: decompose the first factor too, where it is larger than twice the rank."""
    unbalanced_factorization: bool = False
    """Of LoKr: let the output's larger factor be the first."""
    use_tucker: bool = False
    """Decompose the kernels of convolutions too, instead of keeping them in one of the factors."""
    dora_wd: bool = False
    """Train the length of each row of the weight apart from its direction (DoRA)."""
    wd_on_output: bool = True
    """Of DoRA: lengths of rows, one for each output channel; or else of columns, one for each input channel."""
    train_on_input: bool = False
    """Of (IA)^3: scale what goes into the layers, and not what comes out of them."""
    bypass_mode: bool | None = None
    """Add the update to what a layer gives, which with LoKr and LoCon needs no second weight in memory, or else to its weight; both are the
    same function. By default wherever that is exact."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the update's outputs that are zeroed while training, where the update is added to what the layer gives."""
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the ranks, or of the update's rows, that are zeroed while training."""
    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the layers that do without their update in a step of training."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names that layers end in, such as "to_q", or regular expressions for their whole path; the family's own when not given."""
    overrides: Mapping[str, LayerSettings] = {}
    """What is other for some layers, named as in `targets`, whether they are among these or not; the first that matches counts."""
    config: InputPath | None = None
    """A lycoris_config.json that says all this instead: algo, linear_dim, linear_alpha, apply_preset, ..."""
    init_from: InputPath | None = None
    """A file in LyCORIS' layout, or its folder, whose weights the adapter starts with; without it the adapter starts as no change."""

    @field_validator("targets", "overrides")
    @classmethod
    def _patterns_compile(cls, targets: Iterable[str] | None) -> Iterable[str] | None:
        for target in filter(is_pattern, targets or ()):
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"{target!r} is no regular expression: {error}") from None
        return targets

    @model_validator(mode="after")
    def _everything_counts(self) -> LycorisSettings:
        problems = [*self._beside_config(), *self._without_effect()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _beside_config(self) -> Iterator[str]:
        """Settings that the file says."""
        if self.config is not None:
            for name in sorted(self.model_fields_set - {"config", "init_from"}):
                yield f"`{name}` and `config` together: the file says what is trained; take one of them out"

    def _without_effect(self) -> Iterator[str]:
        """Settings that no layer's algorithm reads."""
        algorithms = {self.algo, *(one.algo or self.algo for one in self.overrides.values())}
        yield from _ignored(self.model_fields_set, algorithms, "")
        for target, one in self.overrides.items():
            where = f" for {target!r}"
            yield from _ignored(one.model_fields_set, {one.algo or self.algo}, where)
            if not one.model_fields_set:
                yield f"nothing is other{where}: say what, or take it out"
        own = (self.full_matrix, self.model_fields_set if algorithms == {"lokr"} else set(), self.algo)
        others = [
            (inherited(one.full_matrix, self.full_matrix), one.model_fields_set, one.algo or self.algo) for one in self.overrides.values()
        ]
        for full_matrix, written, algorithm in (own, *others):
            lost = written & {"rank", "alpha", "decompose_both", "use_tucker"}
            if full_matrix and lost and algorithm == "lokr":
                yield f"`{min(lost)}` does nothing with `full_matrix`: take one of them out"
        decomposed = [inherited(one.dora_wd, self.dora_wd) for one in self.overrides.values()]
        lengths = ["wd_on_output" in one.model_fields_set for one in self.overrides.values()]
        idle = any(named and not used for named, used in zip(lengths, decomposed, strict=True))
        if idle or ("wd_on_output" in self.model_fields_set and not (self.dora_wd or any(decomposed))):
            yield "`wd_on_output` does nothing without `dora_wd`: take it out, or set `dora_wd = true`"


def inherited(own: bool | None, common: bool) -> bool:
    """What counts for some layers: their own setting, or else the one for all."""
    return common if own is None else own


def _ignored(written: Iterable[str], algorithms: Iterable[str], where: str) -> Iterator[str]:
    used = set(algorithms)
    for name in sorted(written):
        if name in USED_BY and not USED_BY[name] & used:
            yield f"`{name}` does nothing with {' and '.join(sorted(used))}{where}: it is for {', '.join(sorted(USED_BY[name]))}"
