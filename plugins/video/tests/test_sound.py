"""The sound of a window is exactly the window's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith import Sound, Unreadable
from tunesmith_video import AudioKind, AudioTable, VideoKind, VideoTable
from tunesmith_video.sound import resampled

from .films import H264, Facts, film, lag_of, ramp, recording, source, sweep, swept


def kind(rate: int = 16_000, channels: int = 1, **settings) -> VideoKind:
    return VideoKind(VideoTable(path="clips", **settings), Facts(Sound(rate, channels, required=True)))


def heard(file: Path, start: float, frames: int = 16, rate: int = 48_000, beside: Path | None = None, **settings) -> np.ndarray:
    sound = kind(rate, **settings).load(source(file, start, frames, beside=beside), "audio")
    assert sound.dtype == torch.float32
    return sound.numpy()


@pytest.mark.parametrize("rate", [48_000, 16_000, 44_100, 22_050])
@pytest.mark.parametrize(("start", "frames"), [(0.0, 16), (3.3125, 16), (7.0625, 33), (1.0, 1)])
def test_a_window_has_its_own_moments(tmp_path: Path, rate: int, start: float, frames: int) -> None:
    file = film(tmp_path / "a.mov", 160, sound=ramp(10), sound_codec="pcm_f32le")
    sound = heard(file, start, frames, rate)
    assert sound.shape == (1, round(frames / 16 * rate))
    moments = (round(start * rate) + np.arange(sound.shape[1])) / rate
    inner = slice(rate // 100, None) if start == 0 else slice(None)  # before the file there is nothing to resample with
    assert np.abs(sound[0] * 100 - moments)[inner].max() < 1e-4  # as far as the filter's gain allows


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_window_sounds_as_it_does_in_the_whole_file(tmp_path: Path, rate: int) -> None:
    whole = swept(10)
    file = film(tmp_path / "a.mkv", 160, sound=whole, sound_codec="pcm_f32le")
    expected = resampled(whole[None], 48_000, rate)[0]
    for start in (0.0, 1.0, 3.3125, 8.9375):
        found = heard(file, start, rate=rate)[0]
        begin = round(start * rate)
        assert np.abs(found - expected[begin : begin + len(found)]).max() < 1e-5


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "aac"), ("mkv", "aac"), ("ts", "aac"), ("mkv", "libopus"), ("mkv", "libmp3lame"), ("mov", "pcm_s16le"), ("avi", "pcm_s16le")],
)
def test_sound_is_in_time_in_every_container(tmp_path: Path, ending: str, codec: str) -> None:
    file = film(tmp_path / f"a.{ending}", 160, sound=swept(10), sound_codec=codec, codec="mpeg4" if ending == "avi" else H264)
    assert [lag_of(heard(file, start)[0], start) for start in (0.5, 1.0, 3.3125, 8.9375)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("ending", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("m4a", "aac"), ("ogg", "libopus")]
)
def test_sound_beside_a_clip_begins_with_it(tmp_path: Path, ending: str, codec: str) -> None:
    file = film(tmp_path / "a.mp4", 160, sound=np.zeros(480_000, np.float32))
    beside = recording(tmp_path / f"a.{ending}", swept(10), codec=codec)
    for start in (0.5, 6.0625):
        assert lag_of(heard(file, start, beside=beside)[0], start) == 0


def test_sound_beside_a_clip_is_a_file_that_the_clips_sound_is_made_of(tmp_path: Path) -> None:
    one = source(tmp_path / "a.mp4", beside=tmp_path / "a.wav")
    assert kind().files(one, "audio") == (tmp_path / "a.wav",)
    assert kind().files(one, "pixels") == ()
    assert kind().files(source(tmp_path / "a.mp4"), "audio") == ()


def test_the_recipe_of_sound_names_rate_channels_and_silence() -> None:
    recipes = {
        kind(rate, channels, allow_silence=silence).recipe("audio")
        for rate in (16_000, 48_000)
        for channels in (1, 2)
        for silence in (False, True)
    }
    assert len(recipes) == 8
    assert len({kind(rate).recipe("pixels") for rate in (16_000, 48_000)}) == 1


def test_channels_are_mixed_and_spread(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mov", 32, sound=np.full(96_000, 0.5, np.float32), sound_codec="pcm_f32le")
    both = kind(48_000, 2).load(source(file, 0.5, 8), "audio")
    assert both.shape == (2, 24_000)
    assert torch.allclose(both[0], both[1])
    one = kind(48_000, 1).load(source(file, 0.5, 8), "audio")
    assert float(one.mean()) == pytest.approx(0.5, abs=1e-3)


def test_a_last_frame_may_be_without_sound_and_two_may_not(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mov", 32, sound=ramp(1.96), sound_codec="pcm_f32le")
    sound = heard(file, 1.0)[0]
    assert sound[:46_000].min() > 0.0099
    assert not sound[-1900:].any()
    short = film(tmp_path / "b.mov", 32, sound=ramp(1.8), sound_codec="pcm_f32le")
    with pytest.raises(Unreadable, match=r"sound ends after 1\.800 seconds, and the part to be used after 2\.000"):
        heard(short, 1.0)
    silent = heard(short, 1.0, allow_silence=True)[0]
    assert silent[:38_000].min() > 0.0099
    assert not silent[-9_000:].any()


def test_sound_that_begins_late_is_in_time(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", 64, sound=swept(3), sound_codec="pcm_f32le", sound_start=1.0)
    found = heard(file, 0.5, 16)[0]
    assert not found[:23_900].any()
    assert np.abs(found[24_100:] - sweep(np.arange(100, 24_000) / 48_000)[: len(found) - 24_100]).max() < 1e-3


def test_no_sound_is_told_or_silent(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 32)
    with pytest.raises(Unreadable, match="it has no sound"):
        heard(file, 0.0)
    assert not heard(file, 0.0, allow_silence=True).any()


def test_silence_beside_a_clip_is_told(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 32)
    beside = recording(tmp_path / "a.wav", np.zeros(96_000, np.float32))
    with pytest.raises(Unreadable, match="every sample of its sound is zero"):
        heard(file, 0.0, beside=beside)
    assert not heard(file, 0.0, beside=beside, allow_silence=True).any()
    late = recording(tmp_path / "b.wav", np.concatenate([np.zeros(96_000, np.float32), ramp(1) + 0.1]))
    assert not heard(file, 0.0, beside=late).any()  # a pause in a file that is not silent


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "aac"), ("mov", "pcm_s16le"), ("avi", "pcm_u8")])
def test_silence_of_a_clip_is_judged_as_silence_beside_it(tmp_path: Path, ending: str, codec: str) -> None:
    drawn = "mpeg4" if ending == "avi" else H264
    file = film(tmp_path / f"a.{ending}", 32, codec=drawn, sound=np.zeros(96_000, np.float32), sound_codec=codec)
    beside = recording(tmp_path / "a.wav", np.zeros(96_000, np.float32))
    reasons = set()
    for other in (None, beside):
        with pytest.raises(Unreadable) as found:
            heard(file, 0.0, beside=other)
        assert found.value.path == (other or file)
        reasons.add(found.value.reason)
    assert reasons == {"every sample of its sound is zero; allow_silence = true uses it as silent"}
    assert not heard(file, 0.0, allow_silence=True).any()
    late = np.concatenate([np.zeros(96_000, np.float32), ramp(1) + 0.1])
    pause = film(tmp_path / f"b.{ending}", 48, codec=drawn, sound=late, sound_codec=codec)
    assert not heard(pause, 0.0).any()


def test_a_companion_decodes_itself_as_the_clip_would(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 64)
    beside = recording(tmp_path / "a.wav", swept(4))
    family = Facts(Sound(16_000, 1, required=True))
    audio, video = AudioKind(AudioTable(path="sound", of="clips"), family), kind()
    one = source(file, 1.0)
    assert torch.equal(audio.companion(one, beside, video), video.load(source(file, 1.0, beside=beside), "audio"))


def test_a_wav_with_a_lying_header_is_used_up_to_what_is_there(tmp_path: Path) -> None:
    honest = recording(tmp_path / "a.wav", ramp(4)).read_bytes()
    place = honest.index(b"data") + 4
    lying = tmp_path / "b.wav"
    lying.write_bytes(honest[:place] + (2**31 - 100).to_bytes(4, "little") + honest[place + 4 :])
    assert AudioKind.probe(lying).seconds == pytest.approx(4, abs=0.01)


def test_an_mp3_that_was_cut_off_is_used_up_to_there(tmp_path: Path) -> None:
    whole = recording(tmp_path / "a.mp3", swept(8), codec="libmp3lame").read_bytes()
    cut = tmp_path / "b.mp3"
    cut.write_bytes(whole[: len(whole) // 2])
    probe = AudioKind.probe(cut)
    assert 3 < probe.seconds < 5
    table = AudioTable(path="sound", interval=3)
    own = AudioKind(table, Facts(Sound(16_000, 1, required=True)))
    [piece] = own.pieces(probe, "b.mp3")
    crop, window = own.part(piece, None)
    one = source(cut)
    sound = own.load(type(one)("sound", cut, one.caption, crop, window), "audio")
    assert sound.shape == (1, 48_000)
    assert float(sound.abs().mean()) > 0.2
