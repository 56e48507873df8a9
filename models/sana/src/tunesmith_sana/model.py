"""A loaded Sana: prediction, decoding, sampling, and the map of its trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import SanaPipeline
from torch import Tensor, nn

from tunesmith import (
    Batch,
    FieldValue,
    GridConvolution,
    GridLayout,
    Media,
    Model,
    Ragged,
    SampleRequest,
    TokenGrid,
    TrunkModule,
    make_scheduler,
    plain_config,
)

from .family import SanaFamily, check_sampling_size
from .prompts import MAX_TOKENS

LATENTS = "latents"
PROMPT_EMBEDS = "prompt_embeds"


class SanaModel(Model):
    """One part of a Sana: `vae` and `text_encoder` to encode, the transformer to train, or `vae` to decode.

    `tokenizer` is there with the text encoder; `instruction` are the lines put before positive prompts.
    """

    family: SanaFamily

    def __init__(
        self,
        family: SanaFamily,
        denoiser: nn.Module | None,
        encoders: Mapping[str, nn.Module],
        tokenizer: Any | None,
        instruction: Sequence[str] | None,
    ) -> None:
        super().__init__(family, denoiser, encoders)
        self.tokenizer = tokenizer
        self.instruction = instruction

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        """The velocity, in fp32, of noisy latents [B, C, H, W]; `sigma` is one number a sample, [B] or [B, 1, ...]."""
        embeds, mask = conditions.ragged(PROMPT_EMBEDS).padded()  # [B, T, D], [B, T]
        dtype = self.denoiser.patch_embed.proj.weight.dtype  # `denoiser.dtype` goes through all parameters
        (velocity,) = self.call(
            noisy.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=mask,
            timestep=_per_sample(sigma, noisy.shape[0]) * self.family.timestep_scale,
            return_dict=False,
        )
        prediction: Tensor = velocity.float()
        channels = self.family.channels  # what further channels say of the variance is dropped
        return prediction if prediction.shape[1] == channels else prediction[:, :channels]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] of training latents [B, C, h, w]."""
        vae = self.encoder("vae")
        pixels: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0].float()
        return pixels.clamp(-1, 1)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Training latents [B, C, h, w], in fp32, of pixels [B, 3, H, W] in [-1, 1]."""
        vae = self.encoder("vae")
        latents: Tensor = vae.encode(pixels.to(vae.device, vae.dtype), return_dict=False)[0].float()
        return latents * float(vae.config.scaling_factor)

    def encoding_pipeline(self) -> SanaPipeline:
        """The diffusers pipeline that turns prompts into embeddings, without a transformer."""
        return SanaPipeline(self.tokenizer, self.encoder("text_encoder"), vae=None, transformer=None, scheduler=None)

    def pipeline(self, denoiser: nn.Module) -> SanaPipeline:
        """The diffusers pipeline around a live transformer, without text encoder."""
        scheduler = make_scheduler(self.family.facts.scheduler, None)
        pipeline = SanaPipeline(tokenizer=None, text_encoder=None, vae=self.encoder("vae"), transformer=denoiser, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def sample(self, pipeline: SanaPipeline, request: SampleRequest) -> Media:
        """Paint one picture; InputError for a size or a scheduler that cannot be had."""
        check_sampling_size(request.width, request.height)
        pipeline.scheduler = make_scheduler(self.family.facts.scheduler, request.scheduler)
        embeds, mask = _padded(request.conditions, pipeline.device)
        negative_embeds, negative_mask = _padded(request.negative, pipeline.device)
        latents = pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=embeds,
            prompt_attention_mask=mask,
            negative_prompt_embeds=negative_embeds,
            negative_prompt_attention_mask=negative_mask,
            width=request.width,
            height=request.height,
            guidance_scale=request.guidance,
            num_inference_steps=request.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            use_resolution_binning=False,
            output_type="latent",
        ).images
        with torch.autocast(latents.device.type, enabled=False):  # the autoencoder keeps its own precision
            pixels = self.decode(latents)
        image = pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
        return Media("image", request.name, image, self._recipe(pipeline, request))

    def trunk(self) -> Sequence[TrunkModule]:
        """The transformer blocks; nothing happens between them."""
        return [
            TrunkModule(
                name=f"transformer_blocks.{index}",
                module=block,
                is_block=True,
                grid=("height", "width"),
                convolutions=(GridConvolution(block.ff.conv_depth, GridLayout.IMAGES),),
                attention=(block.attn1, block.attn2),
                feed_forward=(block.ff,),
            )
            for index, block in enumerate(self.denoiser.transformer_blocks)
        ]

    def token_grid(self, latents: Tensor) -> TokenGrid:
        """The token grid of latents [B, C, H, W]."""
        height, width = latents.shape[-2:]
        return TokenGrid(1, height // self.family.patch, width // self.family.patch)

    def _recipe(self, pipeline: SanaPipeline, request: SampleRequest) -> dict[str, Any]:
        origin = self.family.facts.origin
        return {
            "family": self.family.name,
            "model": origin.where,
            "revision": origin.revision,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "complex_human_instruction": None if self.instruction is None else "\n".join(self.instruction),
            "width": request.width,
            "height": request.height,
            "guidance": request.guidance,
            "sampling_steps": request.steps,
            "seed": request.seed,
            "scheduler": type(pipeline.scheduler).__name__,
            "scheduler_config": plain_config(pipeline.scheduler),
        }


def _per_sample(sigma: Tensor, num_samples: int) -> Tensor:
    """Sigma as fp32 [B]; ValueError if it differs within a sample, for which Sana has no timestep."""
    if sigma.numel() != num_samples:
        raise ValueError(f"sana takes one sigma a sample; {num_samples} samples came with sigma of shape {tuple(sigma.shape)}")
    return sigma.float().reshape(num_samples)


def _padded(fields: Mapping[str, FieldValue], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompt embeddings [1, 300, D] and mask [1, 300] as the pipeline takes them."""
    value = fields[PROMPT_EMBEDS]
    if not isinstance(value, Ragged):
        raise TypeError(f"{PROMPT_EMBEDS} must come as ragged values")
    embeds, mask = value.to(device).padded(MAX_TOKENS)
    return embeds, mask.to(embeds.dtype)
