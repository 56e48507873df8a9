"""Features: what the encoder sees, which frames, how they are pooled, what their cache entry depends on, and where pixels are gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from tunesmith import (
    LATENTS,
    PIXELS,
    Batch,
    Caption,
    Crop,
    Field,
    KindPlugin,
    Modality,
    NoSettings,
    Part,
    Piece,
    PixelKind,
    PixelTable,
    Probe,
    Ragged,
    Source,
    Stage,
    TokenGrid,
    Window,
    hookimpl,
)
from tunesmith.progress import Progress
from tunesmith.session import assemble, run
from tunesmith_crepa import Crepa
from tunesmith_crepa.features import Encoder
from tunesmith_sana_video import SanaVideo

from .conftest import WIDTH, write_encoder
from .test_runs import crepa_of

FEATURES = "crepa_features"


def by_hand(folder: Path, frames: Tensor, registers: int, size: tuple[int, int]) -> Tensor:
    """Features [N, T, E] of frames [N, 3, H, W] in [-1, 1] by transformers and plain arithmetic; each token the mean of its patches."""
    shown = functional.interpolate((frames + 1) / 2, (56, 56), mode="bilinear", antialias=True)
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        shown[:, channel] = (shown[:, channel] - mean) / deviation
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(shown).last_hidden_state
    assert states.shape[1] == 1 + registers + 16
    grid = states[:, 1 + registers :].reshape(len(frames), 4, 4, WIDTH)
    rows = [range(4 * i // size[0], -(-4 * (i + 1) // size[0])) for i in range(size[0])]
    columns = [range(4 * i // size[1], -(-4 * (i + 1) // size[1])) for i in range(size[1])]
    cells = [grid[:, list(row)][:, :, list(column)].mean(dim=(1, 2)) for row in rows for column in columns]
    return torch.stack(cells, dim=1)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(4, 4), (2, 2), (4, 6), (3, 5)])
def test_features_are_patches_of_the_chosen_frames_pooled_to_the_grid(encoder, with_registers, registers, size):
    folder = with_registers if registers else encoder
    clips = torch.rand((2, 3, 7, 64, 96), generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = torch.stack(Encoder(str(folder), 56, frames_per_batch=3).features(clips, [0, 4, 6], TokenGrid(3, *size)))
    assert found.dtype == torch.float16
    assert found.shape == (2, 3 * size[0] * size[1], WIDTH)
    expected = by_hand(folder, clips[:, :, [0, 4, 6]].transpose(1, 2).flatten(0, 1), registers, size).reshape(found.shape)
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("image_size", [14, 42, 70])
def test_smaller_and_larger_squares_than_the_encoder_was_trained_at_can_be_seen(encoder, image_size):
    [found] = Encoder(str(encoder), image_size, 8).features(torch.zeros(1, 3, 64, 64), [0], TokenGrid(1, 2, 2))
    assert found.shape == (4, WIDTH)
    assert found.isfinite().all()


@pytest.mark.parametrize(("image_size", "seen"), [(14, 16), (56, 48), (112, 112)])
def test_patches_of_another_size_than_14_see_the_whole_picture_in_whole_patches(tmp_path, monkeypatch, image_size, seen):
    encoder = Encoder(str(write_encoder(tmp_path / "sixteen", patch_size=16)), image_size, 8)
    [found] = encoder.features(torch.zeros(1, 3, 64, 64), [0], TokenGrid(1, 2, 2))
    assert found.shape == (4, WIDTH)
    shown = []
    network = encoder.network

    def watched(pixels):
        shown.append(pixels)
        return network(pixels)

    monkeypatch.setattr(encoder, "network", watched)
    encoder.features(torch.zeros(1, 3, 64, 64), [0], TokenGrid(1, 2, 2))
    assert [tuple(pixels.shape) for pixels in shown] == [(1, 3, seen, seen)]


def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    config = Encoder(str(tmp_path), 56, 8).config
    assert (config["hidden_size"], config["patch_size"]) == (768, 14)


def test_short_names_are_checkpoints_of_the_hub():
    names = {f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")}
    assert {Encoder(name, 518, 1).origin.where for name in names} == {
        f"facebook/dinov2-{registers}{size}" for size in ("small", "base", "large", "giant") for registers in ("", "with-registers-")
    }
    assert Encoder("me/dinov2_vits14", 518, 1).origin.where == "me/dinov2_vits14"


@pytest.mark.parametrize(("family", "frames"), [("sana_video", [0, 4, 8]), ("wan_s2v", [4, 8]), ("sana", [0])])
def test_a_token_frame_is_compared_with_the_last_pixel_frame_that_it_stands_for(train, watched, clips, pictures, encoder, family, frames):
    train(family, "run", "", "", "run.steps=3")
    grid = watched[0].run.model.token_grid(watched[0].step.noisy)
    assert grid.frames == len(frames)
    for one in watched:
        (source,), (found,) = one.step.batch.sources, one.step.batch.ragged(FEATURES).values
        shown = one.run.datasets[source.dataset].load(source, PIXELS)
        shown = shown[:, None] if shown.ndim == 3 else shown
        expected = by_hand(encoder, shown[:, frames].transpose(0, 1), 0, (grid.height, grid.width))
        torch.testing.assert_close(found.float(), expected.flatten(0, 1), rtol=2e-3, atol=2e-3)


def test_pictures_beside_clips_are_compared_with_their_one_frame(train, watched, pictures):
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\nresolution_type = 'pixel'\n"
    train("wan_s2v", "run", "", stills, "run.steps=12")
    seen = {one.step.batch.sources[0].dataset: one.run.model.token_grid(one.step.noisy).frames for one in watched}
    assert seen == {"data": 2, "stills": 1}


def test_features_are_made_anew_for_another_encoder_square_or_token_grid(write, tmp_path, encoder):
    other = write_encoder(tmp_path / "other", registers=2)

    def fingerprint(family: str, *overrides: str) -> str:
        config = write(family, "keys", "", "", *overrides)
        assembly = assemble(config)
        (crepa,) = (plugin for plugin in assembly.hooks.plugins if isinstance(plugin, Crepa))

        class Run:
            family = assembly.family

            @staticmethod
            def fingerprint(*files: Path) -> str:
                return " ".join(str(file) for file in files)

        (field,) = crepa.fields(cast(Any, Run()))
        return field.fingerprint

    first = fingerprint("sana_video")
    assert fingerprint("sana_video", "plugins.crepa.weight=2.0", "plugins.crepa.distance=0") == first
    assert first != fingerprint("sana_video", "plugins.crepa.image_size=28")
    assert first != fingerprint("sana_video", f"plugins.crepa.encoder='{other}'")
    assert first != fingerprint("wan_s2v")


class LatentTable(PixelTable):
    """Clips whose latents alone were kept."""

    kind: Literal["kept_latents"]
    """Arrays [C, F, H, W]."""


class LatentKind(PixelKind[LatentTable]):
    """Latents as .npy files, without pixels."""

    table_type = LatentTable
    suffixes = frozenset({".npy"})
    probing = "kept-1"
    modalities = frozenset({Modality.VIDEO})

    @classmethod
    def probe(cls, file):
        return Probe(64, 64, 9, 8.0, 9 / 8)

    def pieces(self, probe, name):
        return (Piece(self.target(probe, name), 9, 8.0),)

    def part(self, piece, generator):
        return Crop((64, 64), (64, 64), (0, 0)), Window(0.0, 9, 8.0)

    def recipe(self, need):
        if need != "kept":
            raise KeyError(need)
        return "kept-1"

    def load(self, source: Source, need: str) -> Tensor:
        return torch.from_numpy(np.load(source.file))


class KeptLatents(KindPlugin[NoSettings]):
    """Brings them."""

    stage = Stage.LOAD
    kind = LatentKind


class FromKept(SanaVideo):
    """The family, whose latents are taken as they were kept."""

    def fields(self, run):
        return [Field(LATENTS, "kept", per_sample=True, needs=("kept",)), *(field for field in super().fields(run) if not field.per_sample)]

    @hookimpl
    def encode_batch(self, run, batch):
        if batch.wants(LATENTS):
            batch.fields[LATENTS] = batch.inputs["kept"]
        return SanaVideo.encode_batch(self, run, batch)


def test_where_pixels_are_gone_latents_are_decoded_and_that_is_told_once(write, tmp_path, watched, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    for number in range(2):
        np.save(kept / f"{number}.npy", np.random.default_rng(number).standard_normal((4, 3, 8, 8)).astype(np.float32))
        (kept / f"{number}.txt").write_text("kept")
    told: list[str] = []
    monkeypatch.setattr(Progress, "message", lambda self, text: told.append(text))
    config = write("sana_video", "run", "", "", "run.steps=4")
    table = LatentTable(kind="kept_latents", path=str(kept), resolution=64, resolution_type="pixel")
    classes = {**config.classes, "sana_video": FromKept, "kept_latents": KeptLatents}
    plugins = {name: value for name, value in config.plugins.items() if name != "video"} | {"kept_latents": NoSettings()}
    config = replace(config, datasets=(table,), classes=classes, plugins=plugins)
    with Progress("quiet") as progress:
        run(config, "latest", progress)
    assert [text for text in told if "pixels" in text] == ["crepa: kept has no pixels; decoding its latents in every step is slow"]
    last = watched[-1]
    assert [len(row) for row in last.step.batch.ragged(FEATURES).values] == [0]
    score = last.step.metrics["crepa_alignment_score"]
    assert score.isfinite()
    decoder = last.run.load(Part.DECODER)
    with torch.no_grad():
        pixels = decoder.decode(last.step.batch.tensor(LATENTS))
    grid = last.run.model.token_grid(last.step.noisy)
    found = crepa_of(last.run)._features(last.run, last.step.batch, grid)
    expected = by_hand(Path(crepa_of(last.run).settings.encoder), pixels[0, :, [0, 4, 8]].transpose(0, 1), 0, (grid.height, grid.width))
    torch.testing.assert_close(found.float(), expected.reshape(found.shape), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("family", "left_out"), [("sana_video", 0), ("wan_s2v", 1)])
@pytest.mark.parametrize("frames", [1, 9])
def test_frames_that_are_decoded_stand_for_the_same_tokens_as_those_of_the_file(write, family, left_out, frames):
    """A decoder that gives the pixels back, but for a first frame that the family does not decode; a picture lasts."""
    config = write(family, "decoded")
    cast_of_run = assemble(config)
    [crepa] = [one for one in cast_of_run.hooks.plugins if isinstance(one, Crepa)]
    pixels = torch.rand((1, 3, frames, 64, 96), generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded = pixels[:, :, left_out:] if frames > 1 else pixels.expand(-1, -1, 1 + 3 * left_out, -1, -1)
    window = Window(0.0, frames, 16.0) if frames > 1 else None
    source = Source("kept", Path("a"), Caption(""), Crop((96, 64), (96, 64), (0, 0)), window)
    nothing = Ragged([torch.zeros(0, 1)])
    batch = Batch((source,), (source.caption,), fields={LATENTS: torch.zeros(1), FEATURES: nothing})
    crepa._decoder = cast(Any, SimpleNamespace(decode=lambda latents: decoded))
    grid = cast_of_run.family.token_grid(frames, 64, 96)
    found = crepa._features(cast(Any, SimpleNamespace(family=cast_of_run.family)), batch, grid)
    [expected] = crepa.encoder.features(pixels, cast_of_run.family.last_frames(frames, 64, 96), grid)
    assert torch.equal(found[0], expected)
