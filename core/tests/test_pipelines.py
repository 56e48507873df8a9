"""What families in the layout of a diffusers pipeline share, on a family that is made up: an image model of stock parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ConfigMixin, LTXVideoTransformer3DModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import T5EncoderModel

from tunesmith import (
    Batch,
    FamilyDefaults,
    InputError,
    LatentStatistics,
    Modality,
    PipelineFamily,
    PipelineModel,
    PipelinePlugin,
    PipelineSettings,
    Ragged,
    TokenGrid,
    take_rows,
)
from tunesmith.pipelines.latents import LatentFactor


class Settings(PipelineSettings):
    """Two published checkpoints."""

    checkpoints = MappingProxyType({"small": "acme/small", "large": "acme/large"})


class Pipeline:
    """Stands for a diffusers pipeline."""

    def __init__(self, tokenizer: Any, text_encoder: Any, vae: Any, scheduler: Any, transformer: Any, safe: bool = True) -> None:
        self.parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "scheduler": scheduler, "transformer": transformer}


class Acme(PipelineFamily[Settings]):
    """A family of pictures, or of clips if `modality` is set so."""

    name = "acme"
    modality = Modality.IMAGE
    pipeline_type = Pipeline
    denoiser_type = LTXVideoTransformer3DModel
    encoder_types = MappingProxyType({"vae": AutoencoderKL, "text_encoder": T5EncoderModel})
    fits = MappingProxyType({"vae": ("latent_channels", "in_channels"), "text_encoder": ("d_model", "caption_channels")})
    sampling_multiple = 16

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        raise NotImplementedError

    @staticmethod
    def published(name: str) -> Mapping[str, Mapping[str, Any]] | None:
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
        return {"transformer": {"in_channels": 4}, "scheduler": scheduler} if name == "small" else None


class Clips(Acme):
    """The same with clips, told a timestep for each token."""

    modality = Modality.VIDEO
    timesteps_by_token = True


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    configs = {
        "transformer/config.json": {"_class_name": "LTXVideoTransformer3DModel", "in_channels": 4, "caption_channels": 8},
        "vae/config.json": {"_class_name": "AutoencoderKL", "latent_channels": 4, "shift_factor": 0.5, "scaling_factor": 2.0},
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.5},
    }
    for name, config in configs.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(config))
    return tmp_path


def test_settings_name_one_checkpoint_that_is_known() -> None:
    assert Settings(variant="small").checkpoint == "acme/small"
    assert Settings(path="some/where").checkpoint == "some/where"
    for given, told in (
        ({}, "found neither"),
        ({"path": "a/b", "variant": "small"}, "found both"),
        ({"variant": "tiny"}, "known are small, large"),
    ):
        with pytest.raises(ValidationError, match=told):
            Settings.model_validate(given)


def test_text_encoders_run_in_bf16_on_a_gpu_unless_told_otherwise() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    told = Settings(variant="small")
    assert (told.dtypes(cpu)["text_encoder"], told.dtypes(gpu)["text_encoder"]) == (torch.float32, torch.bfloat16)
    assert Settings(variant="small", text_encoder_dtype="fp32").dtypes(gpu)["text_encoder"] is torch.float32
    assert told.dtypes(gpu)["vae"] is torch.float32


def test_configurations_are_completed_with_their_classes_defaults_and_kept_as_stated(checkpoint: Path) -> None:
    family = Acme(Settings(path=str(checkpoint)))
    assert family.configs["transformer"]["num_attention_heads"] == 32  # the class's own
    assert "num_attention_heads" not in family.stated["transformer"]
    assert (family.noise_shift, family.latents, family.known_by_heart) == (1.5, LatentFactor(2.0, 0.5), False)
    assert sum(1 for _ in family.on_meta().parameters()) > 0
    assert next(family.on_meta().parameters()).device.type == "meta"


def test_where_the_hub_cannot_be_asked_only_what_is_known_by_heart_answers() -> None:
    family = Acme(Settings(variant="small"))
    assert (family.known_by_heart, family.noise_shift, family.configs["vae"]["latent_channels"]) == (True, 3.0, 4)
    for settings in (Settings(variant="large"), Settings(variant="small", vae="some/vae"), Settings(path="some/other")):
        with pytest.raises(InputError, match=r"is not in the local cache.* there is none of this name"):
            Acme(settings)


def test_parts_from_elsewhere_must_be_of_their_kind_and_fit(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "encoder"
    other.mkdir()
    for config, told in (
        ({"model_type": "t5", "d_model": 16}, r"the text encoder of .*encoder makes 16 channels, but the transformer of .* takes 8"),
        ({"model_type": "bert", "d_model": 8}, r"holds a text encoder of type 'bert'; the family acme needs t5"),
    ):
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=told):
            Acme(Settings(path=str(checkpoint), text_encoder=str(other)))


def test_statistics_by_channel_are_never_passed_over(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "vae/config.json").read_text())
    (checkpoint / "vae/config.json").write_text(json.dumps({**config, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}))
    with pytest.raises(InputError, match="has latents_mean, and the family acme normalises latents by one factor"):
        Acme(Settings(path=str(checkpoint)))


def plugin_of(family: type[PipelineFamily[Any]], checkpoint: Path) -> PipelinePlugin[Any]:
    kind = type("AcmePlugin", (PipelinePlugin,), {"family_type": family, "model_type": PipelineModel})
    plugin: PipelinePlugin[Any] = kind("acme", Settings(path=str(checkpoint)))
    return plugin


class Placed(Acme):
    """With all that pictures need."""

    adapter_targets = ("to_q",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.set_geometry(channels=4, scale=8)
        self.defaults = FamilyDefaults((64, 64), 1, 1.0, 4.5, 20, 0)


class Unplaced(Acme):
    adapter_targets = ("to_q",)


class Plain(Unplaced):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.set_geometry(channels=4, scale=8)


class Moving(Placed):
    modality = Modality.VIDEO


class Unnamed(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A denoiser whose configuration says how many blocks it has by a name of its own."""

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, in_channels: int = 4, caption_channels: int = 8, depth: int = 7, width: int = 96) -> None:
        super().__init__()


class Uncounted(Placed):
    denoiser_type = Unnamed


class Counted(Uncounted):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.num_blocks, self.token_width = self.configs["transformer"]["depth"], self.configs["transformer"]["width"]


@pytest.mark.parametrize(
    ("family", "told"),
    [
        (Acme, r"the class Acme does not set adapter_targets; write `adapter_targets = \.\.\.` in its body"),
        (Unplaced, r"Unplaced does not say what its latents stand for; call self\.set_geometry\("),
        (Plain, r"Plain has no defaults; set self\.defaults = FamilyDefaults\("),
        (Moving, r'Moving generates clips, and makes = "image" .*write makes = "clip"'),
        (Uncounted, r"Uncounted does not say how many blocks it has, or how wide they are; set self\.num_blocks and self\.token_width"),
    ],
)
def test_facts_that_an_author_forgot_are_named_with_their_class(checkpoint: Path, family: type[PipelineFamily[Any]], told: str) -> None:
    describe_denoiser(checkpoint, family)
    with pytest.raises(TypeError, match=told):
        plugin_of(family, checkpoint).family()


def describe_denoiser(checkpoint: Path, family: type[PipelineFamily[Any]]) -> None:
    """Have the checkpoint hold the denoiser that a family trains."""
    config = {"_class_name": family.denoiser_type.__name__, "in_channels": 4, "caption_channels": 8}
    (checkpoint / "transformer/config.json").write_text(json.dumps(config))


def test_blocks_and_their_width_are_read_from_the_denoiser_or_told_by_the_family(checkpoint: Path) -> None:
    usual = Placed(Settings(path=str(checkpoint)))
    assert (usual.num_blocks, usual.token_width) == (28, 32 * 64)  # what diffusers gives a LTX transformer by default
    blocks: Any = usual.on_meta().transformer_blocks
    assert len(blocks) == usual.num_blocks
    assert blocks[0].attn1.to_q.in_features == usual.token_width
    describe_denoiser(checkpoint, Counted)
    told = plugin_of(Counted, checkpoint).family()
    assert (told.num_blocks, told.token_width) == (7, 96)


def test_a_family_with_all_facts_is_made_once(checkpoint: Path) -> None:
    plugin = plugin_of(Placed, checkpoint)
    assert plugin.family() is plugin.family()
    assert plugin.family().alignment == 8


def test_geometry_of_pictures_and_of_clips(checkpoint: Path) -> None:
    pictures, clips = Acme(Settings(path=str(checkpoint))), Clips(Settings(path=str(checkpoint)))
    pictures.set_geometry(4, 8, (1, 2, 2))
    assert (pictures.alignment, pictures.round_frames(33), pictures.latent_shape(1, 64, 96)) == (16, 1, (4, 8, 12))
    assert pictures.token_grid(1, 64, 96) == TokenGrid(1, 4, 6)
    clips.set_geometry(4, 32, (1, 1, 1), frame_scale=8)
    assert [clips.round_frames(frames) for frames in (1, 8, 9, 24, 25)] == [1, 1, 9, 17, 25]
    assert clips.frame_spans(17) == (range(1), range(1, 9), range(9, 17))
    assert (clips.latent_shape(17, 64, 96), clips.token_grid(17, 64, 96)) == ((4, 3, 2, 3), TokenGrid(3, 2, 3))


def test_a_size_between_two_that_can_be_sampled_is_told_with_the_nearest(checkpoint: Path) -> None:
    family = Acme(Settings(path=str(checkpoint)))
    family.set_geometry(4, 8)
    family.require_size(64, 96)
    with pytest.raises(InputError, match="72x90 cannot be sampled: acme paints in multiples of 16; use 64x96"):
        family.require_size(72, 90)
    family.set_geometry(4, 24)
    with pytest.raises(InputError, match="64x96 cannot be sampled: acme paints in multiples of 48; use 48x96"):
        family.require_size(64, 96)


def test_latents_by_factor_and_by_channel_go_there_and_back() -> None:
    latents = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    factor, channels = LatentFactor(2.0, 0.5), LatentStatistics((1.0, 2.0, 3.0), (0.5, 2.0, 4.0))
    torch.testing.assert_close(factor.normalise(latents), (latents - 0.5) * 2)
    torch.testing.assert_close(channels.normalise(latents)[:, 1], (latents[:, 1] - 2) / 2)
    torch.testing.assert_close(channels.measure(latents)[:, 2], latents[:, 2] / 4)
    for one in (factor, channels):
        torch.testing.assert_close(one.restore(one.normalise(latents)), latents, rtol=0, atol=1e-6)


class Echo(nn.Module):
    """Answers with what it was given as a timestep, spread over twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.given: dict[str, Tensor] = {}

    def forward(self, latents: Tensor, return_dict: bool, **given: Tensor) -> tuple[Tensor]:
        self.given = given
        return (torch.cat([latents, latents], dim=1),)


class EchoModel(PipelineModel):
    """A model around it."""

    def encode_texts(self, texts: list[str], negative: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def describe(self, block: Any) -> dict[str, Any]:
        raise NotImplementedError


def test_the_denoiser_is_told_sigma_by_sample_or_by_token(checkpoint: Path) -> None:
    family = Clips(Settings(path=str(checkpoint)))
    family.set_geometry(4, 8, (1, 2, 2), frame_scale=4)
    model, batch = EchoModel(family, Echo(), {}), Batch(fields={"prompt_embeds": Ragged([torch.ones(3, 8), torch.ones(2, 8)])})
    noisy, sigma = torch.randn(2, 4, 3, 4, 6), torch.tensor([0.25, 0.5])
    assert torch.equal(model.predict(noisy, sigma, batch), noisy)
    assert model.denoiser.given["timestep"].tolist() == [250.0, 500.0]
    assert model.denoiser.given["encoder_attention_mask"].tolist() == [[True, True, True], [True, True, False]]
    frames = sigma.view(2, 1, 1, 1, 1) * torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 3, 1, 1)
    model.predict(noisy, frames, batch)
    assert model.denoiser.given["timestep"].shape == (2, 1, 3, 2, 3)
    assert model.denoiser.given["timestep"][1, 0, :, 1, 2].tolist() == [0.0, 500.0, 500.0]
    still = Acme(Settings(path=str(checkpoint)))
    still.set_geometry(4, 8, (1, 2, 2))
    with pytest.raises(ValueError, match="acme takes one sigma a sample"):
        EchoModel(still, Echo(), {}).predict(noisy, frames, batch)


def test_a_denoiser_is_saved_where_its_pipeline_looks_for_it(checkpoint: Path) -> None:
    class Unet(Acme):
        denoiser_part = "unet"

    (checkpoint / "transformer").rename(checkpoint / "unet")
    assert EchoModel(Unet(Settings(path=str(checkpoint))), None, {}).component == "unet"


def test_a_pipeline_is_built_with_none_for_the_parts_that_are_not_given(checkpoint: Path) -> None:
    built = EchoModel(Acme(Settings(path=str(checkpoint))), None, {}).build(vae="an autoencoder")
    assert built.parts == {"tokenizer": None, "text_encoder": None, "vae": "an autoencoder", "scheduler": None, "transformer": None}


def test_rows_are_taken_of_each_of_several_tensors_and_what_is_the_same_for_all_stays() -> None:
    indices = torch.tensor([[0, 2], [1, 3]])
    table, same = torch.arange(8.0).view(1, 4, 1, 2), torch.ones(2, 1, 6)
    cosines, sines = take_rows((table, -table), indices)
    assert cosines.shape == (2, 2, 1, 2)
    assert torch.equal(cosines[1, :, 0], table[0, [1, 3], 0])
    assert torch.equal(sines, -cosines)
    assert take_rows(same, indices) is same
