"""The network of Wan 2.2 S2V, in the layout and naming of its diffusers checkpoint; diffusers itself has no such class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from tunesmith import InputError

from .audio import STEPS_PER_FRAME, AudioInjector, VideoTokens
from .block import WanS2VTransformerBlock
from .checkpoint import accept_other_names, check_tensors, hub_names, renaming_files, shapes_of
from .conditions import ConditionEmbedder, FramePacker, Patch
from .rotary import RotaryFactors, TokenBox, motion_box, reference_box, video_box

_VIDEO, _REFERENCE, _MOTION = range(3)


class Tokens(NamedTuple):
    """The tokens [B, S, D] that enter the first block: video, reference, motion; where they stand, and how many are not video."""

    hidden_states: Tensor
    boxes: tuple[TokenBox, ...]
    num_conditions: int


class WanS2VTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin, AttentionMixin):  # type: ignore[misc]
    """Predict the velocity of a clip's noisy latents from a text, a sound, a reference picture, a pose and earlier motion.

    The configuration is that of the published checkpoint. `blocks` are called one after the other, and after block
    `audio_inject_layers[k]` comes `audio_injector.injector[k]`; both take tokens [B, S, D] as `hidden_states`, video
    first, and give back the same, so what comes out of a block is its output before its sound is injected. Either may be
    called with a subset of the video's tokens: of its arguments only a block's `rotary_emb` (gather its rows) and an
    injection's `video_tokens` (`VideoTokens.take`) depend on which tokens there are.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("WanS2VTransformerBlock", "AudioInjection")
    _repeated_blocks = ("WanS2VTransformerBlock",)
    _skip_layerwise_casting_patterns = ("patch_embedding", "condition_embedder", "norm")
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "causal_audio_encoder"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(
        self,
        patch_size: Patch = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        audio_dim: int = 1024,
        audio_inject_layers: Sequence[int] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        enable_adain: bool = True,
        adain_mode: str = "attn_norm",
        pose_dim: int = 16,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        num_weighted_avg_layers: int = 25,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        enable_framepack: bool = True,
        framepack_drop_mode: str = "padd",
        add_last_motion: bool = True,
        zero_timestep: bool = True,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        dim = num_attention_heads * attention_head_dim
        frames, height, width = patch_size
        patch = (frames, height, width)
        self.rope = RotaryFactors(attention_head_dim)
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)
        self.frame_packer = FramePacker(in_channels, dim, patch, framepack_drop_mode) if enable_framepack else None
        self.trainable_condition_mask = nn.Embedding(3, dim)
        self.condition_embedder = ConditionEmbedder(
            dim, freq_dim, text_dim, audio_dim, pose_dim, patch, num_weighted_avg_layers, enable_adain
        )
        self.blocks = nn.ModuleList(
            [WanS2VTransformerBlock(dim, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps) for _ in range(num_layers)]
        )
        self.audio_injector = AudioInjector(dim, num_attention_heads, len(audio_inject_layers), eps, enable_adain)
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False
        self.register_load_state_dict_pre_hook(accept_other_names)

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator, unused-ignore]
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        motion_latents: Tensor | None,
        audio_embeds: Tensor,
        image_latents: Tensor,
        pose_latents: Tensor | None = None,
        motion_frames: Sequence[int] = (17, 5),
        drop_motion_frames: bool = False,
        add_last_motion: int = 2,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity `noise - x0` [B, C, T, H, W] of noisy latents of that shape.

        `timestep` [B] is 1000 * sigma, whole or not; text [B, L, D] of any length, all of which is attended to; the latents
        before the clip [B, C, Tm, H, W], which `drop_motion_frames` leaves out; sound [B, layers, C, 4 * T]; the reference
        [B, C, 1, H', W']; the pose [B, P, T, H, W], zeros where there is none. `motion_frames` are the frames and latent
        frames before the clip, as many for the sound. `add_last_motion` is 2 for all motion, 1 without the newest latent
        frame, 0 without the newest three. Raises ValueError for shapes that do not fit together.
        """
        motion = None if drop_motion_frames else motion_latents
        self._check(hidden_states, timestep, encoder_hidden_states, motion, audio_embeds, image_latents, pose_latents)
        _check_motion(motion, motion_frames, drop_motion_frames, add_last_motion)
        if pose_latents is None:
            pose_latents = hidden_states.new_zeros(hidden_states.shape[0], self.config.pose_dim, *hidden_states.shape[2:])

        temb, modulation, text, pose, audio, summary = self.condition_embedder(
            timestep, encoder_hidden_states, pose_latents, audio_embeds, tuple(motion_frames), self.config.zero_timestep
        )
        tokens = self._tokens(hidden_states, pose, image_latents, motion, add_last_motion)
        grid = tuple(side // patch for side, patch in zip(hidden_states.shape[2:], self.config.patch_size, strict=True))
        video_tokens = VideoTokens(grid[0], grid[1] * grid[2], tokens.num_conditions)
        video = self._run_trunk(tokens, text, modulation, audio, summary, video_tokens)
        sample = self._head(video, temb, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, resolved_model_file: Any, pretrained_model_name_or_path: Any, loaded_keys: Any, **options: Any
    ) -> Any:
        """What `from_pretrained` calls once names and files are known; here both namings meet, and errors come before any reading.

        diffusers only warns of tensors that are missing, and renames nothing in checkpoints of several files.
        """
        names = dict.fromkeys(loaded_keys)
        hub_names(names)
        if state_dict is None:
            resolved_model_file = renaming_files(resolved_model_file)
        else:
            hub_names(state_dict)
        quantizer = options.get("hf_quantizer")
        if quantizer is None or not quantizer.pre_quantized:
            shapes = shapes_of(resolved_model_file if state_dict is None else [state_dict])
            check_tensors(model.state_dict(), shapes, str(pretrained_model_name_or_path))
        return super()._load_pretrained_model(model, state_dict, resolved_model_file, pretrained_model_name_or_path, list(names), **options)

    def _tokens(self, noisy: Tensor, pose: Tensor, reference: Tensor, motion: Tensor | None, add_last_motion: int) -> Tokens:
        """Patches of everything that self-attention sees, each marked with its kind."""
        patches = self.patch_embedding(noisy)
        reference = self.patch_embedding(reference)
        groups = [(patches + pose).flatten(2).transpose(1, 2), reference.flatten(2).transpose(1, 2)]
        _, _, frames, height, width = patches.shape
        boxes = [video_box(frames, height, width), reference_box(*reference.shape[3:])]
        if motion is not None and self.frame_packer is not None:
            shown = add_last_motion * self.config.add_last_motion
            groups.append(self.frame_packer(motion, shown))
            boxes += self.frame_packer.boxes(height, width, shown)
        elif motion is not None and motion.shape[2] > 0:
            groups.append(self.patch_embedding(motion).flatten(2).transpose(1, 2))
            boxes.append(motion_box(motion.shape[2], height, width))
        kinds = self.trainable_condition_mask(torch.arange(3, device=noisy.device))
        marked = [group + kinds[kind].to(group.dtype) for kind, group in zip((_VIDEO, _REFERENCE, _MOTION), groups, strict=False)]
        return Tokens(torch.cat(marked, dim=1), tuple(boxes), sum(group.shape[1] for group in groups[1:]))

    def _run_trunk(
        self, tokens: Tokens, text: Tensor, modulation: Tensor, audio: Tensor, summary: Tensor | None, video_tokens: VideoTokens
    ) -> Tensor:
        """Blocks and injections in order; the video's tokens [B, N, D] that come out."""
        hidden_states = tokens.hidden_states
        rotary = self.rope(tokens.boxes, hidden_states.device)
        injections = {block: number for number, block in enumerate(self.config.audio_inject_layers)}
        for index, block in enumerate(self.blocks):
            hidden_states = self._call(block, hidden_states, text, modulation, rotary, tokens.num_conditions)
            if index in injections:
                number = injections[index]
                frame_modulation = self.audio_injector.modulation(number, summary)
                hidden_states = self._call(self.audio_injector.injector[number], hidden_states, audio, frame_modulation, video_tokens)
        return hidden_states[:, : hidden_states.shape[1] - tokens.num_conditions]

    def _call(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Call a module of the trunk, and forget its intermediate values where gradients are checkpointed."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            recomputed: Tensor = self._gradient_checkpointing_func(module, *arguments)
            return recomputed
        out: Tensor = module(*arguments)
        return out

    def _head(self, video: Tensor, temb: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Tokens [B, N, D] to latents [B, C, T, H, W]; a token's features are its patch with the channel last."""
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        normed = (self.norm_out(video.float()) * (1 + scale) + shift).type_as(video)
        patches = self.proj_out(normed).unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)  # [B, t, h, w, pt, ph, pw, C]
        latents: Tensor = patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return latents

    def _check(
        self, noisy: Tensor, timestep: Tensor, text: Tensor, motion: Tensor | None, audio: Tensor, reference: Tensor, pose: Tensor | None
    ) -> None:
        """ValueError unless the inputs of a forward fit together."""
        batch, _, frames, height, width = noisy.shape
        named = {"timestep": timestep, "encoder_hidden_states": text, "audio_embeds": audio, "image_latents": reference}
        for name, value in {**named, "motion_latents": motion, "pose_latents": pose}.items():
            if value is not None and (value.ndim == 0 or value.shape[0] != batch):
                raise ValueError(f"{name} of shape {tuple(value.shape)} does not go with a batch of {batch} samples")
        if audio.shape[-1] != STEPS_PER_FRAME * frames:
            raise ValueError(
                f"audio_embeds have {audio.shape[-1]} steps for {frames} latent frames: Wan S2V hears exactly {STEPS_PER_FRAME} steps "
                f"per latent frame, so give {STEPS_PER_FRAME * frames}"
            )
        if audio.shape[1] != self.config.num_weighted_avg_layers:
            raise ValueError(f"audio_embeds have {audio.shape[1]} layers; the network weighs {self.config.num_weighted_avg_layers}")
        if reference.shape[2] != 1:
            raise ValueError(f"image_latents have {reference.shape[2]} frames; the reference is a single latent frame")
        for name, value in (("hidden_states", noisy), ("image_latents", reference)):
            if any(side % patch for side, patch in zip(value.shape[2:], self.config.patch_size, strict=True)):
                raise ValueError(
                    f"{name} of {tuple(value.shape[2:])} latents cannot be cut into patches of {tuple(self.config.patch_size)}"
                )
        if max(grid := (frames, height, width)) > self.config.rope_max_seq_len:
            raise ValueError(
                f"hidden_states of {grid} latents: no side may be longer than rope_max_seq_len = {self.config.rope_max_seq_len}"
            )
        if pose is not None and pose.shape[2:] != noisy.shape[2:]:
            raise ValueError(f"pose_latents of {tuple(pose.shape[2:])} latents do not match the clip's {tuple(noisy.shape[2:])}")
        if motion is not None:
            if motion.shape[3:] != noisy.shape[3:]:
                raise ValueError(f"motion_latents of {tuple(motion.shape[3:])} latents do not match the clip's {(height, width)}")
            if self.frame_packer is not None and any(
                side < kernel for side, kernel in zip((height, width), self.frame_packer.proj_4x.kernel_size[1:], strict=True)
            ):
                raise ValueError(
                    f"motion cannot be packed at {(height, width)} latents: it needs 8x8; drop_motion_frames=True does without"
                )


def _check_motion(motion: Tensor | None, motion_frames: Sequence[int], dropped: bool, add_last_motion: int) -> None:
    """ValueError unless what is asked of the motion before the clip can be had."""
    if motion is None and not dropped:
        raise ValueError("motion_latents is None: give the latents before the clip, or drop_motion_frames=True for its beginning")
    frames, latents = motion_frames
    if frames != 4 * latents - 3:
        raise ValueError(f"motion_frames = {list(motion_frames)}: {latents} latent frames stand for {4 * latents - 3} frames, not {frames}")
    if add_last_motion not in (0, 1, 2):
        raise ValueError(f"add_last_motion = {add_last_motion}; it must be 2 (all motion), 1 or 0 (less of the newest)")


def _check_config(config: Any) -> None:
    """InputError for settings that no published checkpoint has, and that would be ignored."""
    allowed: dict[str, tuple[Any, ...]] = {
        "adain_mode": ("attn_norm",),
        "qk_norm": ("rms_norm_across_heads",),
        "added_kv_proj_dim": (None,),
        "framepack_drop_mode": ("padd", "drop"),
    }
    for name, values in allowed.items():
        if config[name] not in values:
            raise InputError(
                f"{name} = {config[name]!r} of WanS2VTransformer3DModel is not supported; it must be {' or '.join(map(repr, values))}"
            )
    if any(not 0 <= layer < config["num_layers"] for layer in config["audio_inject_layers"]):
        raise InputError(
            f"audio_inject_layers = {config['audio_inject_layers']} names blocks beyond the {config['num_layers']} that there are"
        )
