"""A loaded model whose parts are those of a diffusers pipeline: encoding, sampling, and the recipe of a sample."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..batch import LATENTS, LATENTS_STD, PROMPT_EMBEDS, Batch, FieldValue, Ragged
from ..data.given import REFERENCE
from ..family import Modality, TokenGrid
from ..media import Clip, Media, SampleRequest
from ..model import Model, TrunkModule
from ..prompts import encode_captions
from ..sampling import plain_config
from .family import PipelineFamily


class PipelineModel(Model):
    """One part of a model: the networks to encode, the one to train, or those to decode.

    A subclass says how texts are encoded and what a block is; it overrides `predict`, `sampling_arguments`,
    `encode_pixels`, `decode` or `trunk` where its networks and its pipeline are not called as is usual in diffusers.
    `tools` are what is no network, such as the tokenizer; they are there with the encoders.
    """

    family: PipelineFamily[Any]
    blocks_in: ClassVar[str] = "transformer_blocks"
    """The denoiser's list of blocks."""
    frames_as: ClassVar[str] = "num_frames"
    """What the pipeline calls the number of frames to make."""

    def __init__(
        self,
        family: PipelineFamily[Any],
        denoiser: nn.Module | None,
        encoders: Mapping[str, nn.Module],
        tools: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(family, denoiser, encoders)
        self.component = family.denoiser_part
        self.tools = dict(tools or {})

    @abstractmethod
    def encode_texts(self, texts: list[str], negative: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, D] and mask [B, T] of texts, as the pipeline makes them; padding comes last."""

    @abstractmethod
    def describe(self, block: Any) -> dict[str, Any]:
        """What `TrunkModule` is to say of a block besides its name."""

    def encode(self, batch: Batch, device: torch.device) -> None:
        """Fill the fields that the batch wants; pictures are clips of one frame to a video family."""
        if batch.wants(LATENTS) or batch.wants(LATENTS_STD):
            if batch.pixels is None:
                raise RuntimeError("latents are wanted of a batch that has no pixels")
            pixels = batch.pixels.to(device)
            is_picture = self.family.modality is Modality.VIDEO and pixels.ndim == 4
            made = self.encode_pixels(pixels.unsqueeze(2) if is_picture else pixels)
            batch.fields |= {key: value for key, value in made.items() if batch.wants(key)}
        if batch.wants(PROMPT_EMBEDS):
            batch.fields[PROMPT_EMBEDS] = encode_captions(partial(self.encode_texts, device=device), batch.captions)

    def encode_pixels(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """The field `latents`, in fp32, of pixels in [-1, 1]: [B, 3, H, W] of an image family, otherwise [B, 3, F, H, W].

        Nothing is drawn: they are the mean, where the autoencoder gives a distribution, and `latents_std` its deviation.
        """
        vae, latents = self.encoder("vae"), self.family.latents
        encoded = vae.encode(pixels.to(vae.dtype), return_dict=False)[0]
        if isinstance(encoded, Tensor):
            return {LATENTS: latents.normalise(encoded)}
        return {LATENTS: latents.normalise(encoded.mean), LATENTS_STD: latents.measure(encoded.std)}

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] or [B, 3, F, H, W] in [-1, 1] of training latents."""
        vae = self.encoder("vae")
        restored = self.family.latents.restore(latents).to(vae.dtype)
        pixels: Tensor = vae.decode(restored, return_dict=False)[0].float()
        return pixels.clamp(-1, 1)

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        """The velocity, in fp32, that a denoiser with the usual arguments tells of noisy latents [B, C, ...] at `sigma`."""
        length = self.family.prompt_length if self.fixed_lengths else None
        embeds, mask = conditions.ragged(PROMPT_EMBEDS).padded(length)  # [B, T, D], [B, T]
        dtype = self.input_dtype
        (velocity,) = self.call(
            noisy.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=mask,
            timestep=self.timesteps(sigma, noisy) * self.family.timestep_scale,
            return_dict=False,
        )
        prediction: Tensor = velocity.float()
        channels = self.family.channels  # what further channels say of the variance is dropped
        return prediction if prediction.shape[1] == channels else prediction[:, :channels]

    def timesteps(self, sigma: Tensor, noisy: Tensor) -> Tensor:
        """Sigma in the shape that the denoiser takes timesteps in: [B], or where it differs within a sample, of the token grid.

        Raises ValueError if it differs and the denoiser takes one a sample.
        """
        if sigma.numel() == len(noisy):
            return sigma.float().reshape(-1)
        if not self.family.timesteps_by_token:
            raise ValueError(
                f"{self.family.name} takes one sigma a sample; {len(noisy)} samples came with sigma of shape {tuple(sigma.shape)}"
            )
        frames, height, width = self.family.patch
        spread = sigma.float().expand(-1, -1, *noisy.shape[2:])
        return spread[:, :, ::frames, ::height, ::width]  # [B, 1, F, H, W] of the token grid

    @cached_property
    def input_dtype(self) -> torch.dtype:
        """The precision of the denoiser's first layer; its own `dtype` goes through all parameters."""
        layers = (layer for layer in self.denoiser.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d))
        return next(layer.weight.dtype for layer in layers if layer.weight.is_floating_point())

    def build(self, **parts: Any) -> Any:
        """The diffusers pipeline of these parts; those that it must have and that are not given are None."""
        kind = self.family.pipeline_type
        _, *accepted = inspect.signature(kind.__init__).parameters.values()
        absent = {one.name: None for one in accepted if one.default is one.empty and one.name not in parts}
        return kind(**absent, **parts)

    def pipeline(self, denoiser: nn.Module) -> Any:
        """The diffusers pipeline around a live denoiser, without text encoders."""
        parts = {name: self.encoder(name) for name in self.family.decoder_parts}
        pipeline = self.build(**parts, **{self.family.denoiser_part: denoiser}, scheduler=self.family.scheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def sample(self, pipeline: Any, request: SampleRequest) -> Media:
        """Make one picture or clip, from its first frame where that is given; InputError for a size or a scheduler that cannot be had."""
        if REFERENCE in request.given and self.family.first_frame_pipeline is not None:
            pipeline = self.family.first_frame_pipeline(**pipeline.components)
            pipeline.set_progress_bar_config(disable=True)
        latents = self.call_pipeline(pipeline, request, "latent")
        with torch.autocast(latents.device.type, enabled=False):  # the autoencoder keeps its own precision
            pixels = self.decode(latents)[0]
        return Media(self.family.makes, request.name, self.content(pixels, request), self.recipe(pipeline, request))

    def call_pipeline(self, pipeline: Any, request: SampleRequest, output_type: str) -> Any:
        """What the pipeline makes of a request, a batch of one in the form that it calls `output_type`; errors as of `sample`."""
        self.family.require_size(request.width, request.height)
        pipeline.scheduler = self.family.scheduler(request.scheduler)
        return pipeline(
            width=request.width,
            height=request.height,
            guidance_scale=request.guidance,
            num_inference_steps=request.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type=output_type,
            return_dict=False,
            **self.sampling_arguments(request, pipeline._execution_device),
        )[0]

    def sampling_arguments(self, request: SampleRequest, device: torch.device) -> dict[str, Any]:
        """What the pipeline's `__call__` is given besides size, guidance, steps and generator."""
        arguments = self.prompt_arguments(request, device)
        if self.family.modality is Modality.VIDEO:
            arguments[self.frames_as] = request.frames
        if REFERENCE in request.given:
            arguments["image"] = ImageOps.fit(as_image(request.given[REFERENCE]), (request.width, request.height))
        return arguments

    def content(self, pixels: Tensor, request: SampleRequest) -> Any:
        """What a writer takes of one sample's pixels in [-1, 1]: a Pillow image of [3, H, W], a `Clip` of [3, F, H, W]."""
        return Clip(as_bytes(pixels), request.fps) if self.family.makes == "clip" else as_image(pixels)

    def prompt_arguments(self, request: SampleRequest, device: torch.device) -> dict[str, Any]:
        """Embeddings and masks of prompt and negative prompt, padded to `prompt_length`, under the names usual in diffusers."""
        embeds, mask = self.padded_prompt(request.conditions, device)
        negative, negative_mask = self.padded_prompt(request.negative, device)
        return {
            "negative_prompt": None,
            "prompt_embeds": embeds,
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": negative,
            "negative_prompt_attention_mask": negative_mask,
        }

    def recipe(self, pipeline: Any, request: SampleRequest) -> dict[str, Any]:
        """All that a sample was made with; a family adds what it alone has."""
        origin = self.family.place(self.family.denoiser_part).origin
        length = {"frames": request.frames, "fps": request.fps} if self.family.modality is Modality.VIDEO else {}
        return {
            "family": self.family.name,
            "model": origin.where,
            "revision": origin.revision,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            **length,
            "guidance": request.guidance,
            "sampling_steps": request.steps,
            "seed": request.seed,
            **({"given": sorted(request.given)} if request.given else {}),
            "scheduler": type(pipeline.scheduler).__name__,
            "scheduler_config": plain_config(pipeline.scheduler),
        }

    def trunk(self) -> Sequence[TrunkModule]:
        """The blocks; a family that does something between them overrides this."""
        blocks = enumerate(getattr(self.denoiser, self.blocks_in))
        return [TrunkModule(f"{self.blocks_in}.{index}", block, is_block=True, **self.describe(block)) for index, block in blocks]

    def token_grid(self, latents: Tensor) -> TokenGrid:
        """The token grid of latents [B, C, H, W] or [B, C, F, H, W]."""
        frames = latents.shape[2] if latents.ndim == 5 else 1
        return self.family.grid_of(frames, *latents.shape[-2:])

    def padded_prompt(self, fields: Mapping[str, FieldValue], device: torch.device) -> tuple[Tensor, Tensor]:
        """Prompt embeddings [1, T, D], padded to the family's `prompt_length`, and mask [1, T], as the pipeline takes them."""
        value = fields[PROMPT_EMBEDS]
        if not isinstance(value, Ragged):
            raise TypeError(f"{PROMPT_EMBEDS} must come as ragged values")
        embeds, mask = value.to(device).padded(self.family.prompt_length)
        return embeds, mask.to(embeds.dtype)


def as_bytes(pixels: Tensor) -> Tensor:
    """Pixels [3, ...] in [-1, 1] as uint8 [..., 3] on the CPU."""
    return ((pixels * 0.5 + 0.5).clamp(0, 1).movedim(0, -1).float() * 255).round().to("cpu", torch.uint8)


def as_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, H, W] in [-1, 1] as a Pillow image."""
    return Image.fromarray(as_bytes(pixels).numpy())
