"""Sound as the network takes it: the hidden states of wav2vec2, a step of them for each frame of the video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import get_module_execution_device
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tunesmith import InputError

SAMPLE_RATE = 16_000
"""Samples a second of the waveforms that wav2vec2 takes."""
FEATURE_RATE = 50
"""Hidden states a second that it makes of them."""
STEP_RATE = 30
"""Steps a second to which those are resampled before frames pick theirs."""


@torch.no_grad()
def hidden_states(encoder: Any, processor: Any, waveform: Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """All hidden states of a sound, the last of them behind the encoder's final norm; fp32 [layers, T50, width].

    `encoder` is a `Wav2Vec2ForCTC` or `Wav2Vec2Model`, `processor` its feature extractor (or one with a tokenizer),
    which brings the waveform to mean 0 and variance 1. The waveform is [samples] or [channels, samples], 16,000 samples
    a second; channels are averaged. Zeros at its end are no sound and are cut off before anything else, so that they
    count neither in the mean nor as a state. What is too short for a single hidden state gives none: T50 = 0. Raises
    InputError for another rate or shape.
    """
    samples = _until_silence(_mono(waveform, sample_rate))
    config = encoder.config
    device = get_module_execution_device(encoder)
    if not _num_states(config, len(samples)):
        return torch.zeros((num_layers(config), 0, config.hidden_size), device=device)
    values = samples[None]
    if not isinstance(samples, FakeTensor):  # of a rehearsal, where nothing is to be brought to any mean
        values = processor(samples.numpy(), sampling_rate=sample_rate, return_tensors="pt").input_values
    with torch.autocast(device.type, enabled=False):
        states = _all_states(encoder, values.to(device, encoder.dtype))
    return torch.cat([state.float() for state in states])


def resample(states: Tensor) -> Tensor:
    """Hidden states [layers, T50, width], 50 a second, as 30 a second: linear, first and last kept; [layers, T30, width]."""
    layers, count, width = states.shape
    length = _resampled(count)
    if not length:
        return states.new_zeros((layers, 0, width))
    return F.interpolate(states.transpose(1, 2), size=length, mode="linear", align_corners=True).transpose(1, 2)


def num_steps(config: Any, samples: int) -> int:
    """How many steps (30 a second) a sound of so many samples lasts, with whatever silence it ends in."""
    return _resampled(_num_states(config, samples))


def num_clips(num_steps: int, frames_per_clip: int, fps: float) -> int:
    """How many clips a sound of so many steps (30 a second) fills; where it ends with a clip, one more comes behind it."""
    return int(num_steps / (frames_per_clip * STEP_RATE / fps)) + 1


def frame_steps(num_steps: int, num_frames: int, fps: float) -> NDArray[np.int64]:
    """The step that each of so many frames takes, [num_frames]; -1 where the sound has ended.

    Frame i takes step i * 30 / fps, ties rounded to even. The times are spread over the whole length in float64, as
    Wan does it: at rates other than 16 it decides some ties.
    """
    times = np.linspace(0, num_frames / fps, num_frames, endpoint=False)
    steps = np.round(times * STEP_RATE).astype(np.int64)
    return np.where(steps < num_steps, steps, -1)


def pick_frames(steps: Tensor, num_frames: int, fps: float) -> Tensor:
    """Steps [layers, T30, width] as one for each frame of a video, [layers, width, num_frames]; zeros past the end."""
    layers, count, width = steps.shape
    chosen = torch.from_numpy(frame_steps(count, num_frames, fps)).to(steps.device)
    with_silence = torch.cat([steps, steps.new_zeros((layers, 1, width))], dim=1)
    return with_silence[:, chosen].transpose(1, 2)  # -1 is the row of zeros at the end


def window_features(encoder: Any, processor: Any, waveform: Tensor, num_frames: int, fps: float, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """What the network hears during a window of a clip: fp32 [layers, width, num_frames], zeros where the sound has ended.

    The waveform is that of the window alone; otherwise as for `hidden_states`, so one of zeros gives `silence`.
    """
    return pick_frames(resample(hidden_states(encoder, processor, waveform, sample_rate)), num_frames, fps)


def silence(config: Any, num_frames: int) -> Tensor:
    """No sound for so many frames, [layers, width, num_frames]: zeros, as past the end of a sound and without guidance."""
    return torch.zeros((num_layers(config), config.hidden_size, num_frames))


def num_layers(config: Any) -> int:
    """How many hidden states a wav2vec2 of this configuration gives: its layers, and what enters the first."""
    return int(config.num_hidden_layers) + 1


def _mono(waveform: Tensor, sample_rate: int) -> Tensor:
    """The waveform as fp32 [samples] on the CPU; InputError if it is no such thing."""
    if sample_rate != SAMPLE_RATE:
        raise InputError(f"a sound of {sample_rate} samples a second came; wav2vec2 takes {SAMPLE_RATE}: resample it first")
    if waveform.ndim not in (1, 2):
        raise InputError(f"a sound of shape {tuple(waveform.shape)} came; it must be [samples] or [channels, samples]")
    samples = waveform.detach().to("cpu", torch.float32)
    return samples if samples.ndim == 1 else samples.mean(dim=0)


def _until_silence(samples: Tensor) -> Tensor:
    """The samples up to the last that is not zero; in a rehearsal all."""
    if isinstance(samples, FakeTensor):
        return samples
    heard = samples.nonzero()
    return samples[: int(heard[-1]) + 1 if len(heard) else 0]


def _resampled(states: int) -> int:
    return int(states / FEATURE_RATE * STEP_RATE)


def _num_states(config: Any, samples: int) -> int:
    """How many hidden states so many samples give: what is left by the convolutions that listen to the waveform."""
    length = samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1 if length >= kernel else 0
    return length


def _all_states(encoder: Any, values: Tensor) -> list[Tensor]:
    """The hidden states [1, T50, width] of every layer, as transformers 4 gave them and as the checkpoint was trained.

    transformers 5 gives the last one without the encoder's final norm. It is taken from the output of the network below
    the head, which is called through the head so that offloading hooks of the whole encoder run.
    """
    outputs: list[Any] = []
    handle = encoder.base_model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        encoder(values, output_hidden_states=True, return_dict=True)
    finally:
        handle.remove()
    (output,) = outputs
    return [*output.hidden_states[:-1], output.last_hidden_state]
