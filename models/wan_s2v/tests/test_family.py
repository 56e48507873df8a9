"""What the family answers without weights, for local folders and for the published checkpoint while offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from tunesmith import Config, InputError, Run, TokenGrid
from tunesmith_wan_s2v import WanS2V, WanS2VFamily, WanS2VSettings, WanSpeechToVideoPipeline

from .conftest import plugin
from .goldens import GOLDEN


def bare(twin: Path, folder: Path) -> Path:
    """The checkpoint's configurations alone."""
    return shutil.copytree(twin, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published(**settings: Any) -> WanS2VFamily:
    family = WanS2V("wan_s2v", WanS2VSettings(variant="s2v-14b-2.2", **settings)).family()
    assert isinstance(family, WanS2VFamily)
    return family


def test_the_published_checkpoint_answers_offline() -> None:
    family = published()
    assert family.known_by_heart
    assert family.place("transformer").origin.where == "tolgacangoz/Wan2.2-S2V-14B-Diffusers"
    assert (family.alignment, family.noise_shift, family.timestep_scale) == (16, 3.0, 1000.0)
    defaults = family.defaults
    assert (defaults.size, defaults.frames, defaults.fps) == ((832, 480), 81, 16)
    assert (defaults.guidance, defaults.sampling_steps, defaults.aligned_block) == (4.5, 40, 8)


def test_the_published_network_has_the_tensors_of_the_checkpoint() -> None:
    manifest = json.loads((GOLDEN / "wan_s2v_14b_manifest.json").read_text())
    assert {name: list(value.shape) for name, value in published().on_meta().state_dict().items()} == manifest


def test_81_frames_at_480p_are_20_latents_and_31200_tokens() -> None:
    family = published()
    assert family.latent_shape(81, 480, 832) == (16, 20, 60, 104)
    assert family.token_grid(81, 480, 832) == TokenGrid(20, 30, 52)
    assert family.token_grid(81, 480, 832).tokens == 31200
    assert family.latent_shape(1, 480, 832) == family.latent_shape(5, 480, 832) == (16, 1, 60, 104)


@pytest.mark.parametrize(("frames", "rounded"), [(1, 1), (4, 1), (5, 5), (8, 5), (75, 73), (80, 77), (81, 81)])
def test_frames_are_rounded_down_to_4n_plus_1(frames: int, rounded: int) -> None:
    assert published().round_frames(frames) == rounded


def test_latents_stand_for_four_frames_each_behind_the_first() -> None:
    family = published()
    assert family.frame_spans(9) == (range(1, 5), range(5, 9))
    assert family.frame_spans(1) == (range(1),)


def test_history_is_asked_for_where_motion_is_given() -> None:
    assert (published().history, published(motion=0.3).history) == (0, 72)  # with the first frame of the clip 73


def test_four_bits_are_refused_with_the_reason_unless_allowed() -> None:
    refused = published().refuses_quantisation
    assert set(refused) == {"nf4", "fp4", "int4"}
    assert all("collapses" in reason and "allow_unsafe_quantisation = true" in reason for reason in refused.values())
    assert published(allow_unsafe_quantisation=True).refuses_quantisation == {}


def test_tokens_are_counted_as_the_text_encoder_reads_them(twin: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(twin / "tokenizer")
    captions = ["a  red\ncircle", "&amp;lt;b&amp;gt;", ""]
    counted = plugin(twin).family().count_tokens(captions)
    assert counted == [len(tokenizer(text).input_ids) for text in ("a red circle", "<b>", "")]


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("transformer", {"_class_name": "WanTransformer3DModel"}, "trains a WanS2VTransformer3DModel"),
        ("vae", {"_class_name": "AutoencoderKL"}, "needs an AutoencoderKLWan"),
        ("transformer", {"in_channels": 8}, "makes 4 channels.*takes 8"),
        ("transformer", {"pose_dim": 8}, "poses of 8 channels.*latents of 4"),
        ("vae", {"scale_factor_spatial": 16}, "packs 16 pixels.*Wan 2.1, with 8 and 4"),
    ],
)
def test_what_the_family_cannot_train_is_refused(twin: Path, tmp_path: Path, file: str, change: dict[str, object], complaint: str) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / file / "config.json", **change)
    with pytest.raises(InputError, match=complaint):
        plugin(folder).family()


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("audio_encoder", {"model_type": "hubert"}, "audio encoder of type 'hubert'.*needs wav2vec2"),
        ("audio_encoder", {"hidden_size": 768}, "makes 768 channels.*takes 16"),
        ("audio_encoder", {"num_hidden_layers": 12}, "makes 13 hidden states.*weighs 4"),
        ("text_encoder", {"model_type": "t5"}, "text encoder of type 't5'.*needs umt5"),
        ("text_encoder", {"d_model": 768}, "makes 768 channels.*takes 16"),
    ],
)
def test_an_encoder_from_elsewhere_that_does_not_fit_is_refused(
    twin: Path, tmp_path: Path, part: str, change: dict[str, object], complaint: str
) -> None:
    folder = bare(twin, tmp_path / "elsewhere")
    edit(folder / part / "config.json", **change)
    with pytest.raises(InputError, match=complaint):
        plugin(twin, **{part: str(folder)}).family()


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("audio_encoder", {"hidden_size": 768}, "makes 768 channels.*takes 16"),
        ("audio_encoder", {"num_hidden_layers": 12}, "makes 13 hidden states.*weighs 4"),
        ("text_encoder", {"model_type": "t5"}, "text encoder of type 't5'.*needs umt5"),
    ],
)
def test_an_encoder_of_the_checkpoints_own_folder_that_does_not_fit_is_refused(
    twin: Path, tmp_path: Path, part: str, change: dict[str, object], complaint: str
) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / part / "config.json", **change)
    with pytest.raises(InputError, match=complaint):
        plugin(folder).family()
    shutil.rmtree(folder / part)
    assert part not in plugin(folder).family().configs  # what is not there is missed when it is loaded


@pytest.mark.parametrize("alone", [False, True], ids=["in a pipeline", "by itself"])
def test_the_audio_encoder_may_come_from_elsewhere_with_its_extractor(twin: Path, tmp_path: Path, make_run: Any, alone: bool) -> None:
    folder = tmp_path / "speech"
    if alone:
        shutil.copytree(twin / "audio_encoder", folder)
        shutil.copy(twin / "audio_processor" / "preprocessor_config.json", folder)
    else:
        shutil.copytree(twin, folder)
    own, other = plugin(twin), plugin(twin, audio_encoder=str(folder))
    assert other.component("audio_encoder").folder == (folder if alone else folder / "audio_encoder")
    fingerprints = [{field.key: field.fingerprint for field in one.fields(make_run())} for one in (own, other)]
    assert fingerprints[0] == fingerprints[1]  # the same files


@pytest.mark.parametrize("arguments", [{}, {"path": "a/b", "variant": "s2v-14b-2.2"}])
def test_settings_name_the_checkpoint_once(arguments: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either `path` or `variant`"):
        WanS2VSettings.model_validate(arguments)


@pytest.mark.parametrize("arguments", [{"motion": 1.5}, {"motion": -0.1}, {"audio_dropout": 1.0}])
def test_shares_lie_between_none_and_all(arguments: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WanS2VSettings.model_validate({"variant": "s2v-14b-2.2", **arguments})


def complaints(twin: Path, **table: Any) -> dict[tuple[str | int, ...], str]:
    family = plugin(twin)
    values = {"resolutions": (), "num_frames": None, "scheduler": None, **table}
    config = cast(Config, SimpleNamespace(datasets=(), validation=SimpleNamespace(**values)))
    return dict(family.check(config, family.family()))


def test_what_validation_cannot_sample_is_told_beforehand(twin: Path) -> None:
    found = complaints(twin, resolutions=("96x64", "100x64"), num_frames=1, scheduler="nonsense")
    assert set(found) == {("validation", "resolutions", 1), ("validation", "num_frames"), ("validation", "scheduler")}
    assert "use 96x64" in found["validation", "resolutions", 1]
    assert "use 5 or more" in found["validation", "num_frames"]


def test_sizes_in_which_no_second_clip_could_be_made_are_told_beforehand(twin: Path) -> None:
    found = complaints(twin, resolutions=("64x64", "96x48", "32x96", "32x32"))
    assert {place[-1]: message.rsplit(" ", 1)[-1] for place, message in found.items()} == {1: "96x64", 2: "64x96", 3: "64x64"}
    assert "packs into tokens of up to 64 pixels along an edge" in found["validation", "resolutions", 1]


def test_a_first_frame_that_is_given_is_refused_with_what_is_true_of_this_family(twin: Path) -> None:
    family = plugin(twin).family()
    assert not family.image_to_video
    assert "is given in any case" in family.image_to_video_reason


@pytest.mark.parametrize("name", [None, "unipc", "euler", "beta", "FlowMatchEulerDiscreteScheduler"])
def test_schedulers_of_the_family_are_known_by_name(twin: Path, name: str | None) -> None:
    assert complaints(twin, scheduler=name, num_frames=5) == {}


def test_fields_are_told_apart_by_what_they_are_made_with(twin: Path, tmp_path: Path, make_run: Any) -> None:
    def fingerprints(run: Run, **settings: Any) -> dict[str, str]:
        return {field.key: field.fingerprint for field in plugin(twin, **settings).fields(run)}

    plain = fingerprints(make_run())
    assert set(plain) == {"latents", "reference_latents", "audio_embeds", "prompt_embeds"}
    assert set(fingerprints(make_run(controlled=True), motion=0.5)) == {*plain, "motion_latents", "control_latents"}
    other = fingerprints(make_run(), vae_dtype="bf16")
    assert {key for key in plain if plain[key] != other[key]} == {"latents", "reference_latents"}
    speech = shutil.copytree(twin, tmp_path / "speech")
    edit(speech / "audio_processor" / "preprocessor_config.json", do_normalize=False)
    other = fingerprints(make_run(), audio_encoder=str(speech))
    assert {key for key in plain if plain[key] != other[key]} == {"audio_embeds"}


def test_the_twin_has_every_part_and_is_small(pipe: WanSpeechToVideoPipeline) -> None:
    networks = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    assert set(networks) == {"transformer", "vae", "text_encoder", "audio_encoder"}
    assert sum(weight.numel() for part in networks.values() for weight in part.parameters()) < 2_000_000
    config = pipe.transformer.config
    assert config.enable_adain
    assert config.enable_framepack
    assert config.num_weighted_avg_layers == pipe.audio_encoder.config.num_hidden_layers + 1
    assert all(weight.any() for weight in pipe.transformer.parameters())


def test_what_is_kept_of_a_sample_is_latents_reference_sound_and_motion_where_it_is_all_there() -> None:
    single, sound = 16 * 60 * 104, 25 * 1024 * 4  # one latent at 480p, and the layers of speech of one
    assert published().cached_values(81, 480, 832) == 21 * single + 20 * sound
    assert published().cached_values(1, 480, 832) == 2 * single + sound
    going_on = published(motion=0.3)
    assert going_on.cached_values(81, 480, 832, before=72) == (21 + 19) * single + 20 * sound
    assert going_on.cached_values(81, 480, 832, before=71) == published().cached_values(81, 480, 832, before=72)
    assert going_on.cached_values(1, 480, 832, before=72) == published().cached_values(1, 480, 832)
    assert going_on.cached_values(81, 48, 832, before=72) == published().cached_values(81, 48, 832)
