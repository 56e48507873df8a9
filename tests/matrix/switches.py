"""How each thing that saves memory is switched on, and which two of all things are refused: what the page of combinations asks, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

SMALLER_TILES = ("model.vae_tiling=true", "model.vae_tile_size=32")
ENCODES = ("run.cache='memory'",)
"""So that encoders do their work in every run."""
SAMPLES = (
    "validation.dataset_samples=1",
    "validation.resolutions=['64x64']",
    "validation.steps=1",
    "validation.at_start=false",
)
CHECKPOINTED = ("run.gradient_checkpointing=true",)
ADAPTER = ("plugins.lora.rank=4",)
ACCUMULATED = ("run.gradient_accumulation=2",)


@dataclass(frozen=True)
class Switch:
    """One setting or a few: `own` switch it on, and `needs` are there with it where nothing in the pair says otherwise.

    `changes` is how much the loss may change by it, relatively; None where it is another run. `trains` says that it
    settles what is trained: an adapter, or all.
    """

    name: str
    written: str
    """As a user would write it."""
    own: tuple[str, ...]
    needs: tuple[str, ...] = ()
    changes: float | None = None
    trains: bool = False
    encodes: bool = False
    """It acts on encoders: alone, and with another of this kind, it meets them at work in every run."""
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """What switches it on in families in which it is something else."""

    def settings(self, family: str) -> tuple[str, ...]:
        """What switches it on in a family."""
        return self.elsewhere.get(family, self.own)


def _optimizer(name: str, kind: str, *needs: str) -> Switch:
    return Switch(name, f'`[optimizer] type = "{kind}"`', (f"optimizer.type='{kind}'",), needs)


_ALL_ENCODERS = ("plugins.group_offload.encoders=['text_encoder', 'vae', 'audio_encoder']",)
_RECOMPUTED = (*CHECKPOINTED, *ADAPTER)
_SWITCHES = (
    Switch("full", "no adapter", (), trains=True),
    Switch("lycoris", "`lycoris`", ("plugins.lycoris.algo='lokr'", "plugins.lycoris.rank=4", "plugins.lycoris.factor=4"), trains=True),
    Switch("ema", "`ema`", ("plugins.ema.decay=0.9",), SAMPLES, changes=0.0),
    Switch(
        "quantize",
        "`quantize`",
        ("plugins.quantize.format='nf4-bnb'",),
        _RECOMPUTED,
        elsewhere=MappingProxyType({"wan_s2v": ("plugins.quantize.format='int8-torchao'",)}),
    ),
    Switch("quantized_encoders", "`quantize` of text encoders", ("plugins.quantize.text_encoders='int8-bnb'",), encodes=True),
    Switch("block_offload", "`group_offload`", ("plugins.group_offload.level='block'",), _RECOMPUTED, changes=0.0),
    Switch("leaf_offload", '`group_offload`, `level = "leaf"`', ("plugins.group_offload.level='leaf'",), CHECKPOINTED, changes=0.0),
    Switch(
        "offloaded_encoders",
        "`group_offload` with encoders",
        ("plugins.group_offload.encoders=['text_encoder', 'vae']",),
        _RECOMPUTED,
        changes=0.0,
        encodes=True,
        elsewhere=MappingProxyType({"wan_s2v": _ALL_ENCODERS}),
    ),
    Switch("cpu_offload", "`cpu_offload`", ("plugins.cpu_offload.encoders=true",), SAMPLES, changes=0.0, encodes=True),
    Switch("chunked_feed_forward", "`chunked_feed_forward`", ("plugins.chunked_feed_forward.chunks=2",), changes=1e-5),
    Switch("attention_backend", "`attention_backend`", ("plugins.attention_backend.training='_native_math'",), changes=1e-5),
    Switch("checkpointing_2", "`[run] gradient_checkpointing = 2`", ("run.gradient_checkpointing=2",), changes=0.0),
    Switch("activations", '`[run] activations = "cpu"`', ("run.activations='cpu'",), changes=0.0),
    Switch("compile", '`[run] compile = "blocks"`', ("run.compile='blocks'",), changes=1e-4),
    Switch("vae_tiling", "`[model] vae_tiling = true`", SMALLER_TILES, encodes=True),
    Switch("vae_slicing", "`[model] vae_slicing = true`", ("model.vae_slicing=true",), changes=1e-5, encodes=True),
    _optimizer("adamw8bit", "adamw8bit"),
    _optimizer("muon", "muon"),
    _optimizer("schedule_free", "adamw_schedulefree"),
    _optimizer("kahan", "adamw_kahan", "run.weights='bf16'"),
    Switch(
        "fused_backward_pass",
        "`[optimizer] fused_backward_pass = true`",
        ("optimizer.fused_backward_pass=true",),
        ("optimizer.clip_norm=false",),
        changes=0.0,
    ),
)
SWITCHES = {switch.name: switch for switch in _SWITCHES}

LEARNING = {
    switch.name: switch
    for switch in (
        Switch("masked", "`masked`", ()),
        Switch("crepa", "`crepa`", (), encodes=True),
        Switch("tread", "`tread`", ()),
        Switch("scheduled_sampling", "`scheduled_sampling`", ()),
        Switch("lora", "`lora`", ADAPTER, trains=True),
        Switch("checkpointing", "`[run] gradient_checkpointing = true`", CHECKPOINTED),
        Switch("accumulation", "`[run] gradient_accumulation = 2`", ACCUMULATED),
        Switch("resume", "a resumed run", ()),
    )
}
"""What changes what is learnt, to which others belong; those of them that have a table are switched on by it."""

_GROUPS, _FUSED, _EACH = "group_offload", "fused_backward_pass", "gradient_checkpointing"
REFUSED: Mapping[frozenset[str], tuple[str, ...]] = {
    frozenset(pair): words
    for pair, words in {
        ("full", "quantize"): ("quantise", "adapter"),
        ("lycoris", "lora"): ("lycoris", "lora"),
        ("block_offload", "cpu_offload"): (_GROUPS, "cpu_offload"),
        ("leaf_offload", "cpu_offload"): (_GROUPS, "cpu_offload"),
        ("offloaded_encoders", "cpu_offload"): (_GROUPS, "cpu_offload"),
        ("block_offload", "checkpointing_2"): (_GROUPS, _EACH),
        ("leaf_offload", "checkpointing_2"): (_GROUPS, _EACH),
        ("offloaded_encoders", "checkpointing_2"): (_GROUPS, _EACH),
        ("leaf_offload", "fused_backward_pass"): (_GROUPS, _FUSED),
        ("leaf_offload", "compile"): ('level = "leaf"', "compile"),
        ("fused_backward_pass", "accumulation"): (_FUSED, "gradient_accumulation"),
    }.items()
}
"""Pairs that are refused in every family, with the words by which the refusal names both."""
REFUSED_IN: Mapping[tuple[str, str], tuple[str, ...]] = {
    (family, name): (family, name)
    for name, families in {"chunked_feed_forward": ("sana", "sana_video"), "attention_backend": ("sana",)}.items()
    for family in families
}
"""What families refuse, likewise."""


_TRAINED_GROUPS = ("plugins.group_offload.level='block'", *CHECKPOINTED)
_FUSED_SETTINGS = ("optimizer.fused_backward_pass=true", "optimizer.clip_norm=false")
REFUSED_BESIDE: Sequence[tuple[str, str, tuple[str, ...]]] = (
    (
        "`group_offload`",
        "`[run] gradient_checkpointing` that is not `true`",
        ("plugins.group_offload.level='block'", *ADAPTER, "run.gradient_checkpointing=false"),
    ),
    ("`group_offload` without an adapter", "`[optimizer] fused_backward_pass = true`", (*_TRAINED_GROUPS, *_FUSED_SETTINGS)),
    ("`group_offload` without an adapter", "its `to_disk`", (*_TRAINED_GROUPS, "plugins.group_offload.to_disk='away'")),
    ("`group_offload` without an adapter", '`[run] precision = "fp16"`', (*_TRAINED_GROUPS, "run.precision='fp16'")),
    (
        "`quantize`",
        '`[run] compile = "blocks"` without `gradient_checkpointing`',
        ("plugins.quantize.format='int8-bnb'", *ADAPTER, "run.compile='blocks'"),
    ),
    (
        '`lycoris` with `algo = "full"` or `dora_wd = true`',
        "`quantize` of the same layers",
        ("plugins.lycoris.dora_wd=true", "plugins.quantize.format='int8-bnb'"),
    ),
    ("`[optimizer] fused_backward_pass = true`", "`clip_norm`", ("optimizer.fused_backward_pass=true", "optimizer.clip_norm=1.0")),
    ("`[optimizer] fused_backward_pass = true`", '`[run] precision = "fp16"`', (*_FUSED_SETTINGS, "run.precision='fp16'")),
    ("`[optimizer] fused_backward_pass = true`", '`type = "prodigy"`', (*_FUSED_SETTINGS, "optimizer.type='prodigy'")),
)
"""What else is refused, where one value of a setting excludes another: how both are written, and the settings."""


def refusals(family: str, on: Sequence[Switch]) -> list[tuple[str, ...]]:
    """Of each refusal that these settings get in a family, the words by which it names what it is about."""
    names = [one.name for one in on]
    told = [REFUSED_IN[family, name] for name in names if (family, name) in REFUSED_IN]
    return [*told, *([REFUSED[frozenset(names)]] if frozenset(names) in REFUSED else [])]


def settings(family: str, on: Sequence[Switch]) -> tuple[str, ...]:
    """All that switches these on in a family, and what they need as far as they do not settle it."""
    own = dict.fromkeys(one for switch in on for one in switch.settings(family))
    settled = {key(one) for one in own}
    needed = dict.fromkeys(one for switch in on for one in switch.needs if key(one) not in settled)
    if any(switch.trains for switch in on):
        needed.pop(*ADAPTER, None)
    if all(switch.encodes for switch in on):
        needed |= dict.fromkeys(ENCODES)
    return (*needed, *own)


def are_alternatives(family: str, one: Switch, other: Switch) -> bool:
    """Whether two cannot even be written together: other values of one key, or an adapter and none."""
    if one.trains and other.trains:
        return not (one.own and other.own)
    values = dict(setting.split("=", 1) for setting in one.settings(family))
    return any(values.get(name, value) != value for name, value in (setting.split("=", 1) for setting in other.settings(family)))


def key(setting: str) -> str:
    """What `key=value` sets."""
    return setting.partition("=")[0]
