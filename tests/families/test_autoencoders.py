"""Tiles and slices of every family's autoencoder: what they leave as it is, what they change, and what they save."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL
from torch import Tensor

from tunesmith import Modality, Part, PipelineModel, PipelinePlugin
from tunesmith.config import ConfigErrors, load_config
from tunesmith.live import LiveTensors
from tunesmith.pipelines.tiles import refusals
from tunesmith.session import assemble

from .conftest import Case, config_text

TILE = 64
TILED = {"vae_tiling": True, "vae_tile_size": TILE}


def plugin(case: Case, **settings: object) -> PipelinePlugin[Any]:
    kind = type(case.plugin)
    assert issubclass(kind, PipelinePlugin)
    return kind(case.plugin.name, kind.settings_type.model_validate({"path": str(case.checkpoint), **settings}))


def decoder(case: Case, **settings: object) -> PipelineModel:
    model = plugin(case, **settings).load_model(case.run, Part.DECODER)
    assert isinstance(model, PipelineModel)
    return model


def pixels(case: Case, width: int, height: int, count: int = 1) -> Tensor:
    """Noise in the shape of pictures or clips of five frames."""
    shape = (height, width) if case.family.modality is Modality.IMAGE else (5, height, width)
    return torch.rand((count, 3, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def encoded(model: PipelineModel, given: Tensor) -> tuple[Tensor, int]:
    """Latents, and the most bytes that were alive meanwhile."""
    with LiveTensors() as counted:
        latents = model.encode_pixels(given)["latents"]
    return latents, counted.peak


@torch.no_grad()
def decoded(model: PipelineModel, given: Tensor) -> tuple[Tensor, int]:
    with LiveTensors() as counted:
        made = model.decode(given)
    return made, counted.peak


def test_what_is_no_larger_than_a_tile_stays_as_it_is(case: Case) -> None:
    plain, tiled = decoder(case), decoder(case, **TILED)
    given = pixels(case, TILE, TILE)
    latents, _ = encoded(plain, given)
    assert torch.equal(encoded(tiled, given)[0], latents)
    assert torch.equal(decoded(tiled, latents)[0], decoded(plain, latents)[0])


def test_larger_samples_differ_a_little_and_take_less(case: Case) -> None:
    """What no neighbour is blended into is what a tile by itself gives, to the bit."""
    plain, tiled = decoder(case), decoder(case, **TILED)
    given, scale = pixels(case, 2 * TILE, TILE + 32), plain.family.scale
    for work, whole, tile in ((encoded, given, TILE), (decoded, encoded(plain, given)[0], TILE // scale)):
        expected, most = work(plain, whole)
        found, fewer = work(tiled, whole)
        alone, _ = work(plain, whole[..., :tile, :tile])
        edge = alone.shape[-1] // 2
        assert torch.equal(found[..., :edge, :edge], alone[..., :edge, :edge])
        assert found.shape == expected.shape
        assert 0 < float((found - expected).abs().mean()) < 0.5 * float(expected.std())
        assert fewer < 0.6 * most


def test_a_batch_in_slices_is_the_same_and_takes_less(case: Case) -> None:
    plain, sliced = decoder(case), decoder(case, vae_slicing=True)
    given = pixels(case, TILE, TILE, count=3)
    latents, most = encoded(plain, given)
    found, fewer = encoded(sliced, given)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-5)
    assert fewer < 0.6 * most
    torch.testing.assert_close(decoded(sliced, latents)[0], decoded(plain, latents)[0], rtol=0, atol=2e-5)


def test_only_tiles_count_in_the_keys_of_the_cache(case: Case) -> None:
    def fingerprints(**settings: object) -> dict[str, str]:
        return {field.key: field.fingerprint for field in plugin(case, **settings).fields(case.run)}

    before = fingerprints()
    files = plugin(case).component("vae").files
    assert before["latents"] == f"{case.run.fingerprint(*files)} {torch.float32}"  # as if there were no tiles
    assert fingerprints(vae_slicing=True) == before
    of_latents = {key for key, fingerprint in before.items() if fingerprint == before["latents"]}
    known = [before]
    for settings in ({"vae_tiling": True}, TILED):
        found = fingerprints(**settings)
        assert {key for key in before if found[key] != before[key]} == of_latents
        assert all(found["latents"] != other["latents"] for other in known)
        known.append(found)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("vae_tile_size = 100\nvae_tiling = true", "vae_tile_size = 100: tiles of this autoencoder are multiples of 8, from 16 on; use 96"),
        ("vae_tile_size = 8\nvae_tiling = true", "vae_tile_size = 8: tiles of this autoencoder are multiples of 8, from 16 on; use 16"),
        ("vae_tile_size = 64", "write `vae_tiling = true` beside it"),
    ],
)
def test_a_size_that_tiles_cannot_have_is_refused_before_anything_is_loaded(case: Case, setting: str, told: str) -> None:
    file = case.checkpoint.parent / "refused.toml"
    file.write_text(config_text(case.family.name, case.checkpoint).replace("[model]\n", f"[model]\n{setting}\n"))
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(file))
    [line] = str(raised.value).splitlines()
    assert told in line


def test_an_autoencoder_without_tiles_or_with_one_size_of_them_is_refused_by_name(case: Case) -> None:
    def refused(kind: type[Any], **settings: object) -> dict[str, str]:
        given = plugin(case, **settings).settings
        family: Any = SimpleNamespace(settings=given, encoder_types={"vae": kind}, configs={"vae": {}}, scale=8)
        return dict(refusals(family))

    assert refused(AsymmetricAutoencoderKL) == {}
    assert refused(AsymmetricAutoencoderKL, vae_tiling=True, vae_slicing=True) == {
        "vae_slicing": "vae_slicing = true: AsymmetricAutoencoderKL has no slices; take it out",
        "vae_tiling": "vae_tiling = true: AsymmetricAutoencoderKL has no tiles; take it out",
    }
    assert refused(AutoencoderKL, vae_tiling=True, vae_slicing=True) == {}
    assert refused(AutoencoderKL, **TILED) == {
        "vae_tile_size": "vae_tile_size = 64: tiles of AutoencoderKL have one size alone; take it out"
    }
