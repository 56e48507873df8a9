"""Wan S2V on real films with real sound: what is trained, kept, saved, sampled and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tunesmith_wan_s2v import WanS2VFamily, WanS2VModel, WanS2VTransformer3DModel, WanSpeechToVideoPipeline

from .conftest import LORA, Result, short_run, start_run
from .filming import FPS, moving, write_film
from .test_resume import assert_same_run, stopped_after
from .test_trace import assert_as_recorded
from .watching import Watched, watched

__all__ = ["watched"]

WIDTH, HEIGHT = 96, 64
EVERYTHING = ("model.motion=0.5", "model.audio_dropout=0.3")


def write_mp4(file: Path, frames: NDArray[np.uint8], hertz: float) -> None:
    """Write frames [F, H, W, 3] with a tone that swells and fades, as films come: compressed, and their sound at another rate."""
    with av.open(str(file), "w") as container:
        pictures = container.add_stream("mpeg4", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        sound = container.add_stream("aac", rate=44_100, layout="mono")
        for frame in frames:
            container.mux(pictures.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        times = np.arange(round(len(frames) / FPS * 44_100)) / 44_100
        tone = (0.4 * np.sin(2 * np.pi * hertz * times) * (1 - np.cos(2 * np.pi * 3 * times))).astype(np.float32)
        heard = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        heard.sample_rate, heard.pts = 44_100, 0
        container.mux(sound.encode(heard))
        container.mux(sound.encode())


def drifting(frames: int, seed: int) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] of the size that is trained."""
    return moving(WIDTH, HEIGHT, frames, seed)


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a Wan S2V checkpoint."""
    return WanS2VFamily.tiny(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 84 frames, which is nine windows of nine, and two short ones."""
    folder = tmp_path_factory.mktemp("films")
    for stem, frames in {"long": 84, "a": 10, "b": 10}.items():
        write_film(folder / f"{stem}.mkv", drifting(frames, seed=ord(stem[0])), 200 + 3 * frames)
        (folder / f"{stem}.txt").write_text(f"somebody says {stem}\n")
    return folder


def config_text(checkpoint: Path, films: Path, extra: str = "") -> str:
    """A short run on the films."""
    dataset = f"""kind = "video"
name = "films"
path = {str(films)!r}
resolution = {HEIGHT}
resolution_type = "pixel"
num_frames = 9
window = "every\""""
    return short_run(f'family = "wan_s2v"\npath = {str(checkpoint)!r}', "lr = 1e-3", dataset, extra, steps=4, batch_size=1)


@pytest.fixture
def start(tmp_path: Path, speaker: Path, films: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a config on the films."""
    monkeypatch.chdir(tmp_path)

    def begin(name: str, extra: str = "", *overrides: str) -> Result:
        return start_run(tmp_path / f"{name}.toml", config_text(speaker, films, extra), overrides)

    return begin


def again(one: Watched, model: WanS2VModel) -> Tensor:
    """What a model predicts of a step's noisy latents, without motion and with all sound."""
    with torch.no_grad():
        return model.predict(one.step.noisy, one.step.sigma, one.step.batch)


def with_transformer(one: Watched, transformer: WanS2VTransformer3DModel) -> WanS2VModel:
    family = one.run.family
    assert isinstance(family, WanS2VFamily)
    return WanS2VModel(family, transformer.eval(), {})


def trained(one: Watched) -> WanS2VModel:
    assert isinstance(one.run.model, WanS2VModel)
    one.run.model.denoiser.eval()
    return one.run.model


def test_a_lora_of_three_steps_loads_into_the_pipeline_and_predicts_as_the_trainer(start, speaker, watched):
    result = start("lora", LORA, "run.steps=3", "optimizer.lr=0.05", *EVERYTHING)
    pipeline = WanSpeechToVideoPipeline.from_pretrained(speaker)
    untrained = again(watched[-1], with_transformer(watched[-1], pipeline.transformer))
    pipeline.load_lora_weights(result.path / "final")
    ours = again(watched[-1], trained(watched[-1]))
    assert (ours - untrained).abs().max() > 0.01
    torch.testing.assert_close(again(watched[-1], with_transformer(watched[-1], pipeline.transformer)), ours, rtol=0, atol=1e-5)
    adapted = {name for name, module in trained(watched[-1]).denoiser.named_modules() if hasattr(module, "lora_A")}
    assert {"blocks.0.attn1.to_q", "blocks.3.attn2.to_out.0", "audio_injector.injector.1.to_v"} <= adapted


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_full_fine_tune_is_saved_under_the_hubs_names_and_reloads(start, speaker, watched, weights):
    result = start("full", "", "run.steps=3", f"run.weights='{weights}'", *EVERYTHING)
    reloaded = WanS2VTransformer3DModel.from_pretrained(result.path / "final" / "transformer")
    expected = trained(watched[-1]).denoiser.state_dict()
    found = reloaded.state_dict()
    assert found.keys() == WanS2VTransformer3DModel.from_pretrained(speaker, subfolder="transformer").state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    if weights == "fp32":
        torch.testing.assert_close(
            again(watched[-1], with_transformer(watched[-1], reloaded)), again(watched[-1], trained(watched[-1])), rtol=0, atol=1e-6
        )


def test_stills_in_silence_train_beside_clips_with_sound(start, pictures, watched):
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\n"
    result = start("both", stills, "run.steps=12", *EVERYTHING)
    shapes = {(one.dataset, *one.field("latents").shape[2:]) for one in watched}
    assert {shape[:2] for shape in shapes} == {("films", 2), ("stills", 1)}
    assert len({shape[2:] for shape in shapes}) >= 2  # several buckets
    for one in watched:
        audio = one.field("audio_embeds")
        assert audio.shape[-1] == 4 * one.field("latents").shape[2]
        assert bool(audio.any()) is (one.dataset == "films")
        assert one.field("reference_latents").shape[2] == 1
    assert all(np.isfinite(loss) for loss in result.losses.values())


def test_motion_and_silence_fall_where_they_are_drawn(start, watched):
    start("drawn", "", "run.steps=40", "model.motion=1", "model.audio_dropout=0.5")
    choices = [one.step.scratch["wan_s2v"]["choice"] for one in watched]
    assert all(choice.motion for choice in choices)
    lengths = {
        round(one.step.batch.sources[0].window.start * FPS): len(one.step.batch.ragged("motion_latents").values[0]) for one in watched
    }
    assert lengths == {start: 19 if start >= 72 else 0 for start in range(0, 81, 9) if start in lengths}
    assert lengths[72] == 19
    assert 8 < sum(choice.silent == (0,) for choice in choices) < 32


def test_references_and_poses_beside_the_films_are_what_the_model_is_given(start, films, tmp_path, watched):
    faces, poses = tmp_path / "faces", tmp_path / "poses"
    for folder in (faces, poses):
        folder.mkdir()
    for stem, frames in {"long": 84, "a": 10, "b": 10}.items():
        Image.fromarray(drifting(1, seed=9)[0]).save(faces / f"{stem}.png")
        if stem != "b":
            write_film(poses / f"{stem}.mkv", drifting(frames, seed=3), 300)
    tables = f"[[datasets]]\nkind = 'reference'\nof = 'films'\npath = {str(faces)!r}\n"
    tables += f"[[datasets]]\nkind = 'control'\nof = 'films'\npath = {str(poses)!r}\n"
    start("given", tables, "run.steps=10")
    assert {one.step.batch.sources[0].file.stem for one in watched} <= {"long", "a"}  # b has no poses
    references = torch.cat([one.field("reference_latents") for one in watched])
    torch.testing.assert_close(references, references[:1].expand_as(references), rtol=0, atol=1e-6)
    assert all([len(row) for row in one.step.batch.ragged("control_latents").values] == [2] for one in watched)


def test_validation_films_datasets_and_files_with_their_sound(start, pictures, tmp_path):
    seen, heard = tmp_path / "seen", tmp_path / "heard.mp4"
    seen.mkdir()
    write_mp4(seen / "a.mp4", drifting(9, seed=1), 250)
    (seen / "a.txt").write_text("somebody speaks\n")
    write_mp4(heard, drifting(10, seed=2), 350)
    Image.fromarray(drifting(1, seed=9)[0]).save(tmp_path / "face.png")
    table = f"""
[plugins.video]
[validation]
at_start = false
dataset_samples = 1
num_frames = 9
steps = 1
resolutions = ["{WIDTH}x{HEIGHT}"]
[[validation.samples]]
name = "face"
prompt = "somebody sings"
reference = "face.png"
audio = {str(heard)!r}
"""
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\n"
    result = start("filmed", stills + table, "run.steps=1", f"datasets.0.path={str(seen)!r}")
    folder = result.path / "validation" / "step-000001"
    assert sorted(file.name for file in folder.iterdir()) == [
        f"{name}-{WIDTH}x{HEIGHT}-seed0.{ending}" for name in ("face", "films-a", "stills-0") for ending in ("mp4", "png")
    ]
    for file in folder.glob("*.mp4"):
        with av.open(str(file)) as container:
            shown = list(container.decode(video=0))
            assert len(shown) == 8 * (2 if "face" in file.name else 1) - 3
            assert container.streams.video[0].average_rate == Fraction(FPS)
            assert (shown[0].width, shown[0].height) == (WIDTH, HEIGHT)
        if "stills" in file.name:
            continue  # in silence
        with av.open(str(file)) as container:
            sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
        assert sound.std() > 0.05


@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
def test_stop_and_resume_equals_never_stopping(start, monkeypatch, extra):
    settings = (*EVERYTHING, "run.steps=6", "checkpoints.every=2")
    straight = start("straight", extra, *settings)
    with stopped_after(4, monkeypatch):
        start("resumed", extra, *settings)
    assert_same_run(straight, start("resumed", extra, *settings), 6)


@pytest.mark.parametrize(("name", "extra"), [("wan_s2v full", ""), ("wan_s2v lora", LORA)])
def test_no_bit_of_the_recorded_losses_moves(start, name, extra):
    settings = ("run.steps=20", "run.gradient_accumulation=2", "datasets.0.caption_dropout=0.3")
    assert_as_recorded(name, start(name.replace(" ", "-"), extra, *EVERYTHING, *settings))


def test_a_step_of_the_twin_takes_less_than_a_second(start):
    result = start("timed", "", "run.steps=8", *EVERYTHING)
    rates = [event["steps_per_second"] for event in result.events if event["event"] == "step"]
    assert np.median(rates) > 1
