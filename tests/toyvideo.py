"""A tiny video family for tests, which nobody installs: pooled pixels as latents, three blocks, captions as bytes.

`install(folder)` makes the plugin `toyvideo` known to a Python that has the folder on its path; the fixture
`toy_checkpoint` does that for one test and gives a checkpoint:

    from tests.toyvideo import toy_checkpoint

    def test_it(toy_checkpoint): ...  # [model] family = "toyvideo", path = toy_checkpoint

`clip(file, frames)` writes clips that datasets of the kind `toyclips` read, so that tests of the core need no video files.

A latent frame stands for the first frame of a clip, each further one for four frames; edges shrink by 8, and the
denoiser makes one token of 2x2 latents. There is no noise schedule, and sampling is Euler's. What is given beside a
caption is not used: it is kept as the field `given_NAME`, its mean by channel, and told in the recipe of samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn import functional

from tunesmith import (
    Batch,
    Clip,
    Crop,
    Family,
    FamilyDefaults,
    FamilyPlugin,
    Field,
    FieldValue,
    InputError,
    KindPlugin,
    Media,
    Modality,
    Model,
    ModelSource,
    NoSettings,
    Part,
    Piece,
    PixelKind,
    PixelTable,
    Probe,
    Ragged,
    Run,
    SampleRequest,
    Settings,
    Sound,
    Source,
    Stage,
    TokenGrid,
    TrunkModule,
    Window,
    hookimpl,
    resize_and_crop,
    take_rows,
    to_pixels,
)

POOL, FRAMES, PATCH = 8, 4, 2
"""Pixels along an edge of a latent, frames of all latent frames but the first, latents along an edge of a token."""
CHANNELS, WIDTH, TEXT_WIDTH, MOST_TOKENS = 3, 32, 16, 64


def install(folder: Path) -> Path:
    """Write the distribution's metadata into a folder that is on the path, or will be; the code stays here."""
    info = folder / "acme_toyvideo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-toyvideo\nVersion: 1.0\nSummary: A toy.\n")
    (info / "entry_points.txt").write_text(f"[tunesmith]\ntoyvideo = {__name__}:ToyVideo\ntoyclips = {__name__}:ToyClips\n")
    return folder


@pytest.fixture
def toy_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the family, which is installed for the length of the test."""
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    return ToyVideoFamily.tiny(tmp_path / "toy-checkpoint")


class Attention(nn.Module):
    """Attention of all tokens to all."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to the same."""
        query, key, value = (project(hidden_states).unflatten(-1, (2, -1)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out[0](functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and feed-forward, both told of noise level, place and caption by `modulation`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ff = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, hidden_states: Tensor, modulation: Tensor) -> Tensor:
        """[B, T, D] and [B, T, D] to [B, T, D]."""
        hidden_states = hidden_states + self.attn(self.norm(hidden_states) + modulation)
        out: Tensor = hidden_states + self.ff(self.norm(hidden_states) + modulation)
        return out


class ToyTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """The denoiser; `timestep` and `sound` are told per latent frame."""

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, num_layers: int = 3, sound: bool = False) -> None:
        super().__init__()
        self.proj_in = nn.Linear(CHANNELS * PATCH * PATCH, WIDTH)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.place = nn.Linear(3 * 4, WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.proj_sound = nn.Linear(1, WIDTH) if sound else None
        self.blocks = nn.ModuleList([Block() for _ in range(num_layers)])
        self.proj_out = nn.Linear(WIDTH, CHANNELS * PATCH * PATCH)
        self.gradient_checkpointing = False

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, sound: Tensor | None = None) -> Tensor:
        """Latents [B, C, F, H, W], timesteps [B, F], captions [B, L, D] with mask [B, L], sound [B, F, 1]; velocity [B, C, F, H, W]."""
        frames, height, width = latents.shape[2], latents.shape[3] // PATCH, latents.shape[4] // PATCH
        patches = latents.unflatten(3, (height, PATCH)).unflatten(5, (width, PATCH))  # [B, C, F, h, 2, w, 2]
        hidden_states = self.proj_in(patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(1, 3).flatten(2))  # [B, T, D]
        per_frame = self.time(waves(timestep, WIDTH))  # [B, F, D]
        if self.proj_sound is not None and sound is not None:
            per_frame = per_frame + self.proj_sound(sound)
        caption = (self.text(text) * mask[..., None]).sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        modulation = per_frame.repeat_interleave(height * width, dim=1) + caption + self.place(places(frames, height, width, latents))
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, modulation)
            else:
                hidden_states = block(hidden_states, modulation)
        out = self.proj_out(hidden_states).unflatten(1, (frames, height, width)).unflatten(-1, (CHANNELS, PATCH, PATCH))
        velocity: Tensor = out.permute(0, 4, 1, 2, 5, 3, 6).flatten(3, 4).flatten(4, 5)
        return velocity


def waves(value: Tensor, width: int) -> Tensor:
    """Sines and cosines of numbers [...] at several rates, [..., width]."""
    rates = torch.logspace(-3, 0, width // 2, device=value.device)
    return torch.cat([torch.sin(value[..., None] * rates), torch.cos(value[..., None] * rates)], dim=-1)


def places(frames: int, height: int, width: int, like: Tensor) -> Tensor:
    """Where each token is, [1, T, 12]."""
    sides = [torch.arange(side, device=like.device) for side in (frames, height, width)]
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 2).float()  # [T, 3]
    return waves(grid, 4).flatten(1)[None]


def pooled(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of pixels [B, C, F, H, W] within each latent, both [B, C, f, h, w]; ValueError if F is not 4k+1."""
    batch, channels, count, height, width = pixels.shape
    if count % FRAMES != 1:
        raise ValueError(f"toyvideo encodes 4k+1 frames, not {count}")
    edges = (height // POOL, POOL, width // POOL, POOL)
    parts = pixels[:, :, :1], pixels[:, :, 1:]
    cells = [part.reshape(batch, channels, -1, size, *edges) for part, size in zip(parts, (1, FRAMES), strict=True) if part.shape[2]]
    means = torch.cat([one.mean(dim=(3, 5, 7)) for one in cells], dim=2)
    return means, torch.cat([one.std(dim=(3, 5, 7), unbiased=False) for one in cells], dim=2)


def embedded(text: str) -> Tensor:
    """A caption as [1 + bytes, D], at most 64 rows."""
    table = torch.randn((257, TEXT_WIDTH), generator=torch.Generator().manual_seed(0))
    return table[[256, *text.encode()][:MOST_TOKENS]]


def loudness(audio: Tensor, frames: int) -> Tensor:
    """How loud [B, channels, samples] is at each latent frame, [B, f, 1]."""
    return functional.adaptive_avg_pool1d(audio.abs().mean(dim=1, keepdim=True), frames).transpose(1, 2)


class ToyVideoFamily(Family):
    """Facts about a toy checkpoint."""

    name = "toyvideo"
    modality = Modality.VIDEO
    alignment = POOL * PATCH
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    variants: Mapping[str, str] = MappingProxyType({})
    defaults = FamilyDefaults(size=(32, 32), frames=5, fps=8.0, guidance=1.0, sampling_steps=2, aligned_block=1)
    refuses: Mapping[str, str] = MappingProxyType({})
    noise_shift = None
    num_blocks, token_width = 3, WIDTH
    image_to_video = True
    latent_distribution = True
    caption_tokens = MOST_TOKENS

    def __init__(
        self,
        folder: Path,
        sound: Sound | None = None,
        takes: Mapping[str, bool] = MappingProxyType({}),
        history: int = 0,
        makes: str = "image",
    ) -> None:
        try:
            self.config = json.loads((folder / "transformer" / "config.json").read_text())
        except OSError as error:
            raise InputError(f"{folder} is no toyvideo checkpoint: {error.strerror}") from None
        self.folder = folder
        self.sound = sound
        self.takes = takes
        self.history = history
        self.makes = makes

    def count_tokens(self, captions: Sequence[str]) -> list[int] | None:
        return [1 + len(caption.encode()) for caption in captions]

    def round_frames(self, frames: int) -> int:
        return max(frames - 1, 0) // FRAMES * FRAMES + 1

    def frame_spans(self, frames: int) -> tuple[range, ...]:
        return (range(1), *(range(end - FRAMES, end) for end in range(1 + FRAMES, frames + 1, FRAMES)))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return (CHANNELS, latent_frames(frames), height // POOL, width // POOL)

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        return TokenGrid(latent_frames(frames), height // self.alignment, width // self.alignment)

    def on_meta(self) -> nn.Module:
        with torch.device("meta"):
            made: nn.Module = ToyTransformer.from_config(self.config)
        return made

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0, sound: bool = False) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            ToyTransformer(sound=sound).save_pretrained(folder / "transformer")
        return folder


def latent_frames(frames: int) -> int:
    return (frames - 1) // FRAMES + 1


class ToyVideoModel(Model):
    """A toy model; only its denoiser has weights."""

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        return velocity(self.call, noisy, sigma, conditions.fields)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.repeat_interleave(POOL, dim=3).repeat_interleave(POOL, dim=4)
        return torch.cat([pixels[:, :, :1], pixels[:, :, 1:].repeat_interleave(FRAMES, dim=2)], dim=2).clamp(-1, 1)

    def pipeline(self, denoiser: nn.Module) -> Any:
        return denoiser

    def sample(self, pipeline: Any, request: SampleRequest) -> Media:
        """The frames of a clip side by side, or as a clip with the sound that was given."""
        shape = self.family.latent_shape(request.frames, request.height, request.width)
        device = next(pipeline.parameters()).device
        latents = torch.randn((1, *shape), generator=torch.Generator().manual_seed(request.seed)).to(device)
        sigmas = torch.linspace(1, 0, request.steps + 1).tolist()
        fields = dict(request.conditions)
        if pipeline.config.sound:
            fields["sound"] = latents.new_zeros((1, shape[1], 1))
        for sigma, following in pairwise(sigmas):
            latents = latents + (following - sigma) * velocity(pipeline, latents, latents.new_tensor([sigma]), fields).float()
        pixels = ((self.decode(latents)[0] + 1) * 127.5).round().to("cpu", torch.uint8)  # [C, F, H, W]
        recipe: dict[str, Any] = {"prompt": request.prompt, "frames": request.frames, "seed": request.seed}
        if request.given:
            told = {what: [list(value.shape), value.flatten(1).mean(dim=1).tolist()] for what, value in request.given.items()}
            recipe["given"] = told
        if self.family.makes == "clip":
            rate = 0 if self.family.sound is None else self.family.sound.sample_rate
            clip = Clip(pixels.permute(1, 2, 3, 0), request.fps, request.given.get("audio") if rate else None, rate)
            return Media("clip", request.name, clip, recipe)
        strip = pixels.permute(2, 1, 3, 0).flatten(1, 2)  # [H, F * W, C]
        return Media("image", request.name, Image.fromarray(strip.numpy()), recipe)

    def trunk(self) -> Sequence[TrunkModule]:
        return [
            TrunkModule(
                name=f"blocks.{index}",
                module=block,
                is_block=True,
                per_token={"modulation": take_rows},
                attention=(block.attn,),
                feed_forward=(block.ff,),
            )
            for index, block in enumerate(self.denoiser.blocks)
        ]

    def token_grid(self, latents: Tensor) -> TokenGrid:
        frames, height, width = latents.shape[2:]
        return TokenGrid(frames, height // PATCH, width // PATCH)


def velocity(call: Any, noisy: Tensor, sigma: Tensor, fields: Mapping[str, FieldValue]) -> Tensor:
    """What the denoiser predicts; sigma is [B] or differs by frame, [B, 1, F, 1, 1]."""
    per_frame = sigma.reshape(len(noisy), -1).expand(-1, noisy.shape[2])
    captions, sound = fields["prompt_embeds"], fields.get("sound")
    assert isinstance(captions, Ragged)
    out: Tensor = call(noisy, 1000 * per_frame, *captions.padded(), sound)
    return out


class ToyVideoSettings(Settings):
    """`[model]` with `family = "toyvideo"`."""

    path: ModelSource
    """Folder of the checkpoint."""
    sound: bool = False
    """Train with the sound of clips; the checkpoint must be made for it."""
    takes: dict[Literal["reference", "audio", "control"], bool] = Setting(default_factory=dict)
    """What samples are given beside a caption, and whether they must be."""
    history: int = Setting(0, ge=0)
    """So many frames before a window are given."""
    clips: bool = False
    """Samples are clips."""


class ToyVideo(FamilyPlugin[ToyVideoSettings]):
    """Train a toy on clips and pictures."""

    family_type = ToyVideoFamily

    def family(self) -> ToyVideoFamily:
        settings = self.settings
        sound = Sound(8000, 1, required=True) if settings.sound else None
        makes = "clip" if settings.clips else "image"
        return ToyVideoFamily(
            Path(settings.path), sound, {str(what): must for what, must in settings.takes.items()}, settings.history, makes
        )

    def fields(self, run: Run) -> Sequence[Field]:
        fields = [Field("latents", "toy-1", per_sample=True), Field("prompt_embeds", "toy-1", per_sample=False, ragged=True)]
        if run.config.run.latents == "sample":
            fields.append(Field("latents_std", "toy-1", per_sample=True))
        if self.settings.sound:
            fields.append(Field("sound", "toy-1", per_sample=True, needs=("audio",)))
        for need in self.given:
            fields.append(Field(f"given_{need}", "toy-1", per_sample=True, needs=(need,), may_lack=(need,)))
        return fields

    @property
    def given(self) -> list[str]:
        """The inputs beside pixels and sound."""
        taken = [what for what in self.settings.takes if what != "audio"]
        return [*taken, *(["history"] if self.settings.history else [])]

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        if part is not Part.DENOISER:
            return ToyVideoModel(run.family, None, {})
        return ToyVideoModel(run.family, ToyTransformer.from_pretrained(Path(self.settings.path) / "transformer"), {})

    @hookimpl
    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        if batch.pixels is not None:
            means, deviations = pooled(batch.pixels if batch.pixels.ndim == 5 else batch.pixels.unsqueeze(2))
            made = {"latents": means, "latents_std": deviations}
            batch.fields |= {key: value for key, value in made.items() if batch.wants(key)}
        if batch.wants("prompt_embeds"):
            batch.fields["prompt_embeds"] = Ragged([embedded(caption.text).to(run.device) for caption in batch.captions])
        if batch.wants("sound"):
            window = batch.sources[0].window
            batch.fields["sound"] = loudness(batch.inputs["audio"], latent_frames(window.frames if window else 1))
        for need in self.given:
            if batch.wants(f"given_{need}"):
                value = batch.inputs.get(need)
                batch.fields[f"given_{need}"] = torch.zeros(len(batch), 3) if value is None else value.flatten(2).mean(dim=2)
        return batch


class ToyClipsTable(PixelTable):
    """`[[datasets]]` with `kind = "toyclips"`."""

    kind: Literal["toyclips"]
    """Arrays of frames."""
    num_frames: int = Setting(5, ge=1)
    """So many frames from the first on; shorter clips give what they have."""
    is_i2v: bool = False
    """The first frame is given."""

    @property
    def gives_first_frame(self) -> bool:
        return self.is_i2v


class ToyClipsKind(PixelKind[ToyClipsTable]):
    """Clips as .npy files, uint8 [F, H, W, 3], at 8 frames a second."""

    table_type = ToyClipsTable
    suffixes = frozenset({".npy"})
    probing = "toyclips-1"
    modalities = frozenset({Modality.VIDEO})

    @classmethod
    def probe(cls, file: Path) -> Probe:
        frames, height, width, _ = np.load(file, mmap_mode="r").shape
        return Probe(width, height, frames, 8.0, frames / 8)

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        return (Piece(self.target(probe, name), self.family.round_frames(min(probe.frames, self.table.num_frames)), 8.0),)

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        return self.crop(piece.target, generator), Window(piece.start, piece.frames, piece.fps)

    def recipe(self, need: str) -> str:
        return "toyclips-1" if need == "pixels" else super().recipe(need)

    def load(self, source: Source, need: str) -> Tensor:
        assert source.window is not None
        return to_pixels(resize_and_crop(np.load(source.file)[: source.window.frames], source.crop))


class ToyClips(KindPlugin[NoSettings]):
    """Read clips that tests write as arrays."""

    stage = Stage.LOAD
    kind = ToyClipsKind


def clip(file: Path, frames: NDArray[np.uint8], caption: str) -> None:
    """Write a clip [F, H, W, 3] with its caption beside it."""
    np.save(file, frames)
    file.with_suffix(".txt").write_text(caption)
