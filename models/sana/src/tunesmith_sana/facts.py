"""What the configurations of a checkpoint say: read from disk or the Hub, or known by heart for published ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

from tunesmith import InputError, Origin, UnreachableError, read_json

from .settings import VARIANTS, SanaSettings

_PIXELS_PER_LATENT = 32
_SMALL = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
_INTERPOLATION = {"2048": 1.0, "4096": 2.0}


@dataclass(frozen=True)
class Facts:
    """The configurations of one checkpoint's parts, complete with their classes' defaults.

    `known_by_heart` is true where they could not be read and are those of the published checkpoint of that name.
    """

    origin: Origin
    vae_origin: Origin
    text_origin: Origin
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    known_by_heart: bool = False


def pipeline_default(name: str) -> Any:
    """The default of one argument of `SanaPipeline.__call__`."""
    return inspect.signature(SanaPipeline.__call__).parameters[name].default


def read_facts(settings: SanaSettings) -> Facts:
    """Read the configurations that the settings name.

    Raises InputError if one is missing or the parts do not fit together, and if the Hub cannot be reached for a
    checkpoint that is not published under a known name.
    """
    origin = Origin(settings.checkpoint, settings.revision)
    vae_origin = Origin(settings.vae) if settings.vae else origin
    text_origin = Origin(settings.text_encoder) if settings.text_encoder else origin
    vae_names = ["vae/config.json", "config.json"] if settings.vae else ["vae/config.json"]
    by_heart = False
    try:
        transformer = read_json(origin, ["transformer/config.json"])
        scheduler = read_json(origin, ["scheduler/scheduler_config.json"])
        vae = read_json(vae_origin, vae_names)
    except UnreachableError:
        if settings.checkpoint not in VARIANTS.values() or settings.vae:
            raise
        transformer, vae, scheduler = published(settings.checkpoint)
        by_heart = True
    facts = Facts(
        origin,
        vae_origin,
        text_origin,
        {**_defaults(SanaTransformer2DModel), **transformer},
        {**_defaults(AutoencoderDC), **vae},
        scheduler,
        by_heart,
    )
    _check(facts)
    if settings.text_encoder:
        _check_text_encoder(facts)
    return facts


def published(checkpoint: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Transformer, autoencoder and scheduler of a published checkpoint, where they differ from their classes' defaults.

    Source: scripts/convert_sana_to_diffusers.py of diffusers, which wrote these checkpoints.
    """
    name = next(short for short, where in VARIANTS.items() if where == checkpoint)
    edge = next(part for part in name.split("-") if part in {"512", "1024", "2048", "4096"})
    transformer: dict[str, Any] = {"sample_size": int(edge) // _PIXELS_PER_LATENT}
    if name.startswith("600m"):
        transformer |= _SMALL
    if name.startswith("1.5-"):
        transformer |= {"qk_norm": "rms_norm_across_heads", "num_layers": 60 if "4.8b" in name else 20}
    if edge in _INTERPOLATION:
        transformer["interpolation_scale"] = _INTERPOLATION[edge]
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 6.0 if edge == "4096" else 3.0,
    }
    return transformer, {"scaling_factor": 0.41407}, scheduler


def _defaults(component: type) -> dict[str, Any]:
    """The arguments that a component's class has defaults for."""
    parameters = inspect.signature(component.__init__).parameters.values()  # type: ignore[misc]
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _check(facts: Facts) -> None:
    """Refuse what is no Sana, cannot be trained by flow matching, or does not fit together."""
    found = facts.transformer.get("_class_name", SanaTransformer2DModel.__name__)
    if found != SanaTransformer2DModel.__name__:
        raise InputError(f"{facts.origin} holds a {found}; the family sana trains a {SanaTransformer2DModel.__name__}")
    found = facts.vae.get("_class_name", AutoencoderDC.__name__)
    if found != AutoencoderDC.__name__:
        raise InputError(f"{facts.vae_origin} holds a {found}; the family sana needs an {AutoencoderDC.__name__}")
    if facts.transformer["guidance_embeds"]:
        raise InputError(f"{facts.origin} is a distilled Sana-Sprint (guidance_embeds); flow matching trains Sana and SANA-1.5 checkpoints")
    made, taken = facts.vae["latent_channels"], facts.transformer["in_channels"]
    if made != taken:
        raise InputError(
            f"the autoencoder of {facts.vae_origin} makes {made} channels, but the transformer of {facts.origin} takes {taken}"
        )


def _check_text_encoder(facts: Facts) -> None:
    """Refuse a text encoder from elsewhere whose states the transformer cannot take."""
    config = read_json(facts.text_origin, ["text_encoder/config.json", "config.json"])
    made, taken = config.get("hidden_size"), facts.transformer["caption_channels"]
    if config.get("model_type") != "gemma2":
        raise InputError(f"{facts.text_origin} holds a text encoder of type {config.get('model_type')!r}; the family sana needs gemma2")
    if made != taken:
        raise InputError(
            f"the text encoder of {facts.text_origin} makes {made} channels, but the transformer of {facts.origin} takes {taken}"
        )
