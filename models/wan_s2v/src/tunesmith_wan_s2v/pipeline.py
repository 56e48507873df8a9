"""The pipeline around the network: a picture, a sound and a text to a video of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias, cast

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    FeatureExtractionMixin,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    UMT5EncoderModel,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from tunesmith import InputError

from . import vae as autoencoder
from .clips import (
    FRAMES_PER_LATENT,
    MOTION_FRAMES,
    WARM_UP_FRAMES,
    check_frames,
    first_motion,
    fit_audio,
    latent_frames,
    next_motion,
    pose_clips,
)
from .inputs import Pictures, Videos, picture_pixels, picture_size, video_pixels
from .prompts import MAX_TOKENS, NEGATIVE_PROMPT, encode_texts
from .scene import Conditions, Sampling, Scene, Shooting, repeated
from .sizes import output_size
from .sound import SAMPLE_RATE, hidden_states, num_clips, num_steps, pick_frames, resample

FPS = 16
FRAMES_PER_CLIP = 80
STEPS = 40
GUIDANCE = 4.5
"""What Wan samples this model with."""

OUTPUT_TYPES = ("latent", "pt", "np", "pil")

Texts: TypeAlias = str | Sequence[str] | None
Sounds: TypeAlias = Tensor | NDArray[np.float32] | Sequence[Tensor | NDArray[np.float32]]
Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


class WanSpeechToVideoPipeline(DiffusionPipeline, WanLoraLoaderMixin):  # type: ignore[misc]
    """Wan 2.2 S2V: films of a speaking or singing person, from a picture, a sound and a text.

    The components are those of the repository `tolgacangoz/Wan2.2-S2V-14B-Diffusers`. Encoders may be None where their
    embeddings are given to the call; the VAE where `image_latents` are given and a single clip of latents is wanted.
    """

    model_cpu_offload_seq = "text_encoder->audio_encoder->transformer->vae"
    _optional_components: ClassVar = ["tokenizer", "text_encoder", "audio_encoder", "audio_processor", "vae", "transformer", "scheduler"]
    _lora_loadable_modules: ClassVar = ["transformer"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: UMT5EncoderModel | None,
        vae: AutoencoderKLWan | None,
        scheduler: SchedulerMixin | None,
        transformer: ModelMixin | None,
        audio_encoder: Wav2Vec2ForCTC | Wav2Vec2Model | None,
        audio_processor: ProcessorMixin | FeatureExtractionMixin | None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            scheduler=scheduler,
            transformer=transformer,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
        )
        self.vae_scale_factor_spatial = int(vae.config.scale_factor_spatial) if vae is not None else 8
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    def register_to_config(self, **values: Any) -> None:
        """Name the transformer as a class of diffusers, as the repository on the Hub does, if it is registered there."""
        name = (values.get("transformer") or (None, None))[1]
        if name is not None and hasattr(diffusers, name):
            values["transformer"] = ("diffusers", name)
        super().register_to_config(**values)

    @classmethod
    def _maybe_expand_t2v_lora_for_i2v(cls, transformer: Any, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapters as they are: this network has no attention to images that diffusers would add zeros for."""
        return state_dict

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Texts = None,
        negative_prompt: Texts = None,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int = MAX_TOKENS,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, tokens, D] of prompts and, with guidance, of as many negative prompts.

        Given embeddings are returned as they are. Without a negative prompt Wan's own is taken; "" is the empty one.
        Raises InputError if there is neither a text nor its embeddings, or if the counts differ.
        """
        if prompt_embeds is None:
            if prompt is None:
                raise InputError("there is neither prompt nor prompt_embeds; give one of them")
            prompt_embeds = self._encode_texts(prompt, max_sequence_length)
        if not do_classifier_free_guidance:
            return prompt_embeds, None
        if negative_prompt_embeds is None:
            negative_prompt_embeds = self._encode_texts(
                NEGATIVE_PROMPT if negative_prompt is None else negative_prompt, max_sequence_length
            )
        return prompt_embeds, repeated(negative_prompt_embeds, len(prompt_embeds), "negative prompts")

    @torch.no_grad()
    def encode_audio(
        self,
        audio: Sounds,
        sampling_rate: int = SAMPLE_RATE,
        num_frames_per_chunk: int = FRAMES_PER_CLIP,
        fps: float = FPS,
        num_chunks: int | None = None,
    ) -> Tensor:
        """What the network hears: fp32 [B, layers, width, clips * num_frames_per_chunk] of one or several sounds.

        A sound is [samples] or [channels, samples]; several are a sequence, or have one dimension more. There are as
        many clips as the longest fills unless `num_chunks` says otherwise; zeros stand past the end of each, which is where
        it falls silent for good (exact zeros), and everywhere for one that is silent all through. Raises
        InputError as `sound.hidden_states` does.
        """
        if self.audio_encoder is None or self.audio_processor is None:
            raise InputError("a sound came to a pipeline without audio encoder or audio processor; load them, or give audio_embeds")
        sounds = list(audio) if isinstance(audio, Sequence) or audio.ndim == 3 else [audio]
        steps = [
            resample(hidden_states(self.audio_encoder, self.audio_processor, torch.as_tensor(sound), sampling_rate)) for sound in sounds
        ]  # [layers, T30, width] each
        if num_chunks is None:
            lengths = [num_steps(self.audio_encoder.config, torch.as_tensor(sound).shape[-1]) for sound in sounds]
            num_chunks = max(num_clips(length, num_frames_per_chunk, fps) for length in lengths)
        return torch.stack([pick_frames(step, num_chunks * num_frames_per_chunk, fps) for step in steps])

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        audio: Sounds | None = None,
        prompt: Texts = None,
        negative_prompt: Texts = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        image_latents: Tensor | None = None,
        pose_video: Videos | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames_per_chunk: int = FRAMES_PER_CLIP,
        num_chunks: int | None = None,
        num_inference_steps: int = STEPS,
        sigmas: Sequence[float] | NDArray[np.float64] | None = None,
        guidance_scale: float = GUIDANCE,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        init_first_frame: bool = False,
        motion_frames: int = MOTION_FRAMES,
        fps: float = FPS,
        sampling_rate: int = SAMPLE_RATE,
        max_sequence_length: int = MAX_TOKENS,
        return_dict: bool = True,
    ) -> WanPipelineOutput | tuple[Any]:
        """Film one or several scenes, clip after clip, without gradient and in whatever mode the transformer is.

        One picture, sound or pose video serves all prompts, or each has its own. `height` and `width` follow from the
        picture where they are not given; `num_chunks`, the number of clips, from the sound; `sigmas` (before the shift)
        count instead of `num_inference_steps`. `latents` is the noise of all clips, [B, C, T, h, w]. A video has three
        frames less than its clips, which are thrown away at its start, so its sound begins three frames in; with
        `init_first_frame` it goes on from the picture and none is. Gives frames in [0, 1] (or Pillow images), or
        latents of all clips. Raises InputError for what does not fit together.
        """
        _check(output_type, num_frames_per_chunk, motion_frames, num_chunks)
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, negative_prompt, guidance_scale > 1, prompt_embeds, negative_prompt_embeds, max_sequence_length
        )
        height, width = self._size(image, image_latents, height, width)
        if audio_embeds is None:
            if audio is None:
                raise InputError("there is neither audio nor audio_embeds; give one of them")
            audio_embeds = self.encode_audio(audio, sampling_rate, num_frames_per_chunk, fps, num_chunks)
        clips = num_chunks or -(-audio_embeds.shape[-1] // num_frames_per_chunk)
        sampling = Sampling(num_inference_steps, sigmas, guidance_scale)
        shooting = Shooting(height, width, clips, num_frames_per_chunk, motion_frames, init_first_frame, sampling)
        scene = self._scene(shooting, prompt_embeds, negative_prompt_embeds, audio_embeds, image, image_latents, pose_video)
        video = self._film(scene, shooting, generator, latents, output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=video) if return_dict else (video,)

    def _size(self, image: Pictures | None, image_latents: Tensor | None, height: int | None, width: int | None) -> tuple[int, int]:
        """The (height, width) in pixels that were asked for, or those that a video of the reference has."""
        if image is None and image_latents is None:
            raise InputError("there is neither image nor image_latents; the model needs a reference picture: give one of them")
        if height is None and width is None:
            if image is not None:
                return output_size(*picture_size(image))
            rows, columns = cast(Tensor, image_latents).shape[-2:]
            return rows * self.vae_scale_factor_spatial, columns * self.vae_scale_factor_spatial
        if height is None or width is None:
            raise InputError("only one of height and width was given; give both, or none to take them from the picture")
        multiple = self.vae_scale_factor_spatial * self.transformer.config.patch_size[-1]
        if height % multiple or width % multiple or min(height, width) < multiple:
            raise InputError(f"a video of {width}x{height} was asked for; width and height must be multiples of {multiple}")
        return height, width

    def _scene(
        self,
        shooting: Shooting,
        prompt: Tensor,
        negative: Tensor | None,
        audio: Tensor,
        image: Pictures | None,
        image_latents: Tensor | None,
        pose_video: Videos | None,
    ) -> Scene:
        """Everything that the clips have in common, encoded, once for each prompt, on the device that films."""
        device, count = self._execution_device, len(prompt)
        height, width, scale = shooting.height, shooting.width, self.vae_scale_factor_spatial
        pixels = None if image is None else picture_pixels(image, height, width).to(device)
        if pixels is None and shooting.from_reference:
            raise InputError("init_first_frame begins with the picture itself; give image, not only image_latents")
        if image_latents is None:
            image_latents = autoencoder.encode(self._loaded_vae, cast(Tensor, pixels)[:, :, None])
        rows, columns = image_latents.shape[-2:]
        if (rows * scale, columns * scale) != (height, width):
            raise InputError(
                f"image_latents of {columns * scale}x{rows * scale} pixels came for a video of {width}x{height}; encode them anew"
            )
        poses = None
        if pose_video is not None:
            poses = pose_clips(video_pixels(pose_video, height, width), shooting.num_clips, shooting.frames_per_clip)
        return Scene(
            prompt=prompt.to(device),
            negative=None if negative is None else negative.to(device),
            audio=repeated(fit_audio(audio, shooting.num_clips * shooting.frames_per_clip).to(device), count, "sounds"),
            reference=repeated(image_latents.to(device), count, "reference pictures"),
            pixels=None if pixels is None else repeated(pixels, count, "images"),
            poses=poses,
        )

    def _film(self, scene: Scene, shooting: Shooting, generator: Generators, noise: Tensor | None, output_type: str) -> Any:
        """One clip after the other, each going on from the frames before it; what `output_type` asks for."""
        last = shooting.num_clips - 1
        shape = (len(scene.prompt), 3, shooting.motion_frames, shooting.height, shooting.width)
        motion = first_motion(shape, scene.pixels if shooting.from_reference else None)
        noises = self._noises(scene, shooting, generator, noise)
        latents, frames = [], []
        for index in range(shooting.num_clips):
            continues = index > 0 or shooting.from_reference
            before = autoencoder.encode(self._loaded_vae, motion).to(scene.reference.device) if continues else scene.reference
            conditions = self._conditions(scene, shooting, index, before if continues else None)
            latents.append(self._denoise(next(noises), scene, shooting, conditions))
            if output_type == "latent" and index == last:
                break  # nothing goes on from here
            pixels = autoencoder.decode(self._loaded_vae, torch.cat([before, latents[-1]], dim=2))[:, :, -shooting.frames_per_clip :]
            pixels = pixels[:, :, 0 if continues else WARM_UP_FRAMES :].cpu()
            motion = next_motion(motion, pixels)
            frames.append(pixels)
        if output_type == "latent":
            return torch.cat(latents, dim=2)
        return self.video_processor.postprocess_video(torch.cat(frames, dim=2), output_type=output_type)

    def _noises(self, scene: Scene, shooting: Shooting, generator: Generators, noise: Tensor | None) -> Iterator[Tensor]:
        """The noise [B, C, T, h, w] of one clip after the other: drawn from one generator, or cut from what was given."""
        frames = shooting.frames_per_clip // FRAMES_PER_LATENT
        sides = (side // self.vae_scale_factor_spatial for side in (shooting.height, shooting.width))
        shape = (len(scene.prompt), self.transformer.config.in_channels, frames, *sides)
        whole = (*shape[:2], frames * shooting.num_clips, *shape[3:])
        if noise is not None and noise.shape != whole:
            raise InputError(f"latents of shape {tuple(noise.shape)} came; they must be {whole}, the noise of all clips")
        for index in range(shooting.num_clips):
            if noise is None:
                yield randn_tensor(shape, generator=generator, device=scene.reference.device, dtype=torch.float32)
            else:
                yield noise[:, :, index * frames : (index + 1) * frames].to(scene.reference.device, torch.float32)

    def _conditions(self, scene: Scene, shooting: Shooting, index: int, motion: Tensor | None) -> Conditions:
        """What a clip is denoised under: its part of the sound and the pose, and the latents that it goes on from."""
        frames, pose = shooting.frames_per_clip, None
        if scene.poses is not None:
            pose = autoencoder.encode(self._loaded_vae, scene.poses[index])[:, :, 1:]  # the first stands for one frame
            pose = repeated(pose.to(scene.audio.device), len(scene.prompt), "pose videos")
        return Conditions(
            audio_embeds=scene.audio[..., index * frames : (index + 1) * frames],
            image_latents=scene.reference,
            pose_latents=pose,
            motion_latents=motion,
            motion_frames=(shooting.motion_frames, latent_frames(shooting.motion_frames)),
        ).to(self.transformer.dtype)

    def _denoise(self, latents: Tensor, scene: Scene, shooting: Shooting, conditions: Conditions) -> Tensor:
        """Denoised latents of a clip, fp32 [B, C, T, h, w], of its noise."""
        timesteps = shooting.sampling.timesteps(self.scheduler, latents.device)
        for timestep in self.progress_bar(timesteps):
            velocity = self._velocity(latents, timestep, scene, shooting.sampling.guidance, conditions)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    def _velocity(self, latents: Tensor, timestep: Tensor, scene: Scene, guidance: float, conditions: Conditions) -> Tensor:
        """The velocity in fp32, guided away from the negative text and from silence; reference, motion and pose are in both."""
        dtype, times = self.transformer.dtype, timestep.expand(len(latents))

        def predict(name: str, text: Tensor, audio: Tensor) -> Tensor:
            arguments = {**conditions.arguments(), "encoder_hidden_states": text.to(dtype), "audio_embeds": audio}
            with self.transformer.cache_context(name):
                prediction: Tensor = self.transformer(latents.to(dtype), times, **arguments, return_dict=False)[0]
            return prediction.float()

        velocity = predict("cond", scene.prompt, conditions.audio_embeds)
        if scene.negative is None:
            return velocity
        unguided = predict("uncond", scene.negative, torch.zeros_like(conditions.audio_embeds))
        return unguided + guidance * (velocity - unguided)

    @property
    def _loaded_vae(self) -> Any:
        """The VAE; InputError if the pipeline was made without."""
        if self.vae is None:
            raise InputError("pixels are to be encoded or decoded by a pipeline without VAE; load it")
        return self.vae

    def _encode_texts(self, texts: str | Sequence[str], max_tokens: int) -> Tensor:
        if self.text_encoder is None or self.tokenizer is None:
            raise InputError("a text came to a pipeline without text encoder or tokenizer; load them, or give its embeddings")
        return encode_texts(self.tokenizer, self.text_encoder, [texts] if isinstance(texts, str) else texts, max_tokens)[0]


def _check(output_type: str, frames_per_clip: int, motion_frames: int, num_clips: int | None) -> None:
    """InputError for what no model has to be asked about."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type is {output_type!r}; allowed are {', '.join(OUTPUT_TYPES)}")
    if num_clips is not None and num_clips < 1:
        raise InputError(f"num_chunks is {num_clips}; a video has at least one clip")
    check_frames(frames_per_clip, motion_frames)
