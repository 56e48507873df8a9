"""A loaded Wan S2V: encoding, prediction, decoding, sampling, and the map of its trunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith import AUDIO, PROMPT_EMBEDS, Batch, FieldValue, Media, PipelineModel, SampleRequest, TrunkModule

from . import vae as autoencoder
from .clips import MOTION_FRAMES, WARM_UP_FRAMES, latent_frames
from .family import WanS2VFamily
from .fields import (
    AUDIO_EMBEDS,
    CONTROL_LATENTS,
    MOTION_LATENTS,
    REFERENCE_LATENTS,
    encode_audio,
    encode_control,
    encode_motion,
    encode_reference,
    lasting,
    stacked,
)
from .pipeline import WanSpeechToVideoPipeline
from .prompts import MAX_TOKENS, encode_texts
from .rotary import take_rotary
from .sound import SAMPLE_RATE


@dataclass(frozen=True)
class Choice:
    """What a step gives the model of its batch: the motion before the clips or not, and the sound of all samples but the silent ones."""

    motion: bool = False
    silent: tuple[int, ...] = ()


class WanS2VModel(PipelineModel):
    """One part of a Wan S2V: `vae`, `text_encoder` and `audio_encoder` to encode, the transformer to train, or what decoding needs.

    `choose` tells what the current step gives of a batch; the plugin sets it.
    """

    family: WanS2VFamily
    blocks_in = "blocks"
    choose: Callable[[Batch], Choice] = staticmethod(lambda batch: Choice())

    def encode_pixels(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """The normalised posterior mean of clips [B, 3, 4n + 1, H, W] without its first latent, the reference's; of pictures one latent."""
        return {key: value[:, :, 1:].contiguous() for key, value in super().encode_pixels(lasting(pixels)).items()}

    def encode_texts(self, texts: list[str], negative: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 512, D] and mask [B, 512]."""
        return encode_texts(self.tools["tokenizer"], self.encoder("text_encoder"), texts)

    def encode(self, batch: Batch, device: torch.device) -> None:
        """Fill the fields that the batch wants: besides latents and embeddings what else the network is told."""
        super().encode(batch, device)
        for key, make in _OF_PIXELS.items():
            if batch.wants(key):
                batch.fields[key] = make(self.encoder("vae"), batch)
        if batch.wants(AUDIO_EMBEDS):
            batch.fields[AUDIO_EMBEDS] = encode_audio(self.encoder("audio_encoder"), self.tools["audio_processor"], batch)

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        """The velocity, in fp32, of noisy latents [B, C, n, h, w]; `sigma` is one number a sample, [B] or [B, 1, ...]."""
        text, _ = conditions.ragged(PROMPT_EMBEDS).padded(MAX_TOKENS)  # [B, 512, D], zeros behind the tokens
        choice = self.choose(conditions)
        audio = _audio(conditions, choice.silent)
        motion = _motion(conditions) if choice.motion else None
        control = _control(conditions, noisy)
        dtype = self.input_dtype
        (velocity,) = self.call(
            noisy.to(dtype),
            timestep=self.timesteps(sigma, noisy) * self.family.timestep_scale,
            encoder_hidden_states=text.to(dtype),
            motion_latents=None if motion is None else motion.to(dtype),
            audio_embeds=audio,
            image_latents=conditions.tensor(REFERENCE_LATENTS).to(dtype),
            pose_latents=None if control is None else control.to(dtype),
            motion_frames=(MOTION_FRAMES, latent_frames(MOTION_FRAMES)),
            drop_motion_frames=motion is None,
            return_dict=False,
        )
        prediction: Tensor = velocity.float()
        return prediction

    def decode(self, latents: Tensor, reference: Tensor | None = None) -> Tensor:
        """Pixels [B, 3, 4n, H, W] in [-1, 1] of training latents [B, C, n, h, w].

        The autoencoder takes the first latent that it is given for a single frame: that is `reference` [B, C, 1, h, w] or,
        without one, the first of the latents once more; its frame is left out.
        """
        before = latents[:, :, :1] if reference is None else reference.to(latents)
        return autoencoder.decode(self.encoder("vae"), torch.cat([before, latents], dim=2))[:, :, 1:]

    def pipeline(self, denoiser: nn.Module) -> WanSpeechToVideoPipeline:
        """The pipeline around a live transformer, without text encoder."""
        networks = {"vae": self.encoder("vae"), "audio_encoder": self.encoder("audio_encoder"), "transformer": denoiser}
        tools = {"scheduler": self.family.scheduler(), "audio_processor": self.tools["audio_processor"]}
        pipeline: WanSpeechToVideoPipeline = self.build(**networks, **tools)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def sample(self, pipeline: WanSpeechToVideoPipeline, request: SampleRequest) -> Media:
        """Film the reference with the sound, clip after clip for as long as it lasts; InputError for what cannot be had.

        Without sound, or with one of zeros alone, it is one clip in silence. Each clip has one frame less than the request.
        The first three frames of the film are thrown away, as the pipeline has it; so is the sound of their time, so that
        the rest is heard with the frames that were made of it.
        """
        (film,) = self.call_pipeline(pipeline, request, "pt")  # [F, 3, H, W] in [0, 1]
        clip = self.content(film.movedim(1, 0) * 2 - 1, request)
        heard = sound_of(request)[:, round(WARM_UP_FRAMES / request.fps * SAMPLE_RATE) :].cpu()
        if heard.numel():
            clip = replace(clip, audio=heard, sample_rate=SAMPLE_RATE)
        return Media(self.family.makes, request.name, clip, self.recipe(pipeline, request))

    def trunk(self) -> Sequence[TrunkModule]:
        """The blocks, and behind some of them the injection of sound."""
        layers = {f"blocks.{layer}": number for number, layer in enumerate(self.denoiser.config.audio_inject_layers)}
        entries = []
        for block in super().trunk():
            entries.append(block)
            if block.name in layers:
                injection = self.denoiser.audio_injector.injector[layers[block.name]]
                entries.append(
                    TrunkModule(
                        name=f"audio_injector.injector.{layers[block.name]}",
                        module=injection,
                        is_block=False,
                        per_token={"video_tokens": lambda tokens, indices: tokens.take(indices)},
                        attention=(injection,),
                    )
                )
        return entries

    def describe(self, block: Any) -> dict[str, Any]:
        """Of a block's arguments only the rotary factors belong to tokens."""
        return {"per_token": {"rotary_emb": take_rotary}, "attention": (block.attn1, block.attn2), "feed_forward": (block.ffn,)}

    def sampling_arguments(self, request: SampleRequest, device: torch.device) -> dict[str, Any]:
        """Reference, sound, prompts and poses, and into how many clips they make the film."""
        sound, control = sound_of(request), request.given.get("control")
        length = {"num_frames_per_chunk": request.frames - 1, "num_chunks": num_clips(sound.shape[-1], request), "fps": request.fps}
        return {
            **length,
            "image": (request.given["reference"][None].float() + 1) / 2,
            "audio": sound,
            "prompt_embeds": self.padded_prompt(request.conditions, device)[0],
            "negative_prompt_embeds": self.padded_prompt(request.negative, device)[0] if request.guidance > 1 else None,
            "pose_video": None if control is None else (control.float().transpose(0, 1) + 1) / 2,
        }

    def recipe(self, pipeline: Any, request: SampleRequest) -> dict[str, Any]:
        """How many clips were made, and where in its sound the film begins."""
        clips = num_clips(sound_of(request).shape[-1], request)
        begins = WARM_UP_FRAMES / request.fps
        return {**super().recipe(pipeline, request), "given": sorted(request.given), "clips": clips, "sound_begins_at": begins}


_OF_PIXELS: Mapping[str, Callable[[Any, Batch], FieldValue]] = {
    REFERENCE_LATENTS: encode_reference,
    MOTION_LATENTS: encode_motion,
    CONTROL_LATENTS: encode_control,
}


def sound_of(request: SampleRequest) -> Tensor:
    """The sound that a film is made with, [channels, samples]; no samples where none is given, or nothing but zeros."""
    sound = request.given.get(AUDIO)
    return torch.zeros((1, 0)) if sound is None or not bool(sound.any()) else sound


def num_clips(samples: int, request: SampleRequest) -> int:
    """How many clips a sound of so many samples takes; up to one frame of it at the end gets none of its own."""
    heard = math.ceil(samples * request.fps / SAMPLE_RATE) - 1
    return max(1, math.ceil(heard / (request.frames - 1)))


def _audio(conditions: Batch, silent: Sequence[int]) -> Tensor:
    """Features of sound [B, layers, width, 4n], zeros for silent samples; nothing is sent to the device for that."""
    audio = conditions.tensor(AUDIO_EMBEDS)
    if silent:
        audio = audio.clone()
    for row in silent:
        audio[row] = 0
    return audio


def _motion(conditions: Batch) -> Tensor | None:
    """The latents before the clips, [B, C, 19, h, w]; None unless every sample has them."""
    rows = conditions.ragged(MOTION_LATENTS).values
    return stacked(rows) if all(len(row) for row in rows) else None


def _control(conditions: Batch, noisy: Tensor) -> Tensor | None:
    """The poses' latents like `noisy`, zeros for samples without; None where no sample has any."""
    if CONTROL_LATENTS not in conditions.fields:
        return None
    rows = conditions.ragged(CONTROL_LATENTS).values
    if not any(len(row) for row in rows):
        return None
    return stacked([row if len(row) else row.new_zeros((noisy.shape[2], *row.shape[1:])) for row in rows])
