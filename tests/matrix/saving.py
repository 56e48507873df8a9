"""How each thing that saves memory shows that it is on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.combined import parts_of

from .observing import Call, Observed, named

Shows = Callable[[Observed], None]


def full_shows(seen: Observed) -> None:
    """Every weight of the denoiser is trained, and there is no other."""
    assert seen.run.model.trains_base
    assert seen.trained() == set(named(seen.run))


def lycoris_shows(seen: Observed) -> None:
    """The adapter learns, and nothing else of the denoiser does."""
    trained = {name for name in seen.trained() if not name.startswith("extra.")}
    assert trained
    assert all(".lokr_" in name for name in trained)


def ema_shows(seen: Observed) -> None:
    """An average is saved beside the weights, and is not what they are."""
    final = seen.run.directory.final
    pairs = [(file, final / file.relative_to(final / "ema")) for file in (final / "ema").rglob("*.safetensors")]
    assert pairs
    assert all(average.read_bytes() != weights.read_bytes() for average, weights in pairs)


def quantize_shows(seen: Observed) -> None:
    """Matrices of the denoiser are bytes."""
    kept = [tensor for tensor in seen.run.model.denoiser.state_dict().values() if isinstance(tensor, Tensor)]
    assert any(tensor.dtype is torch.int8 for tensor in kept)


def quantized_encoders_shows(seen: Observed) -> None:
    """Those of the text encoder are, where it is loaded, and the autoencoder's are not."""
    if seen.encoders:
        assert torch.int8 in seen.encoders["text_encoder"].dtypes
        assert torch.int8 not in seen.encoders["vae"].dtypes


def offload_shows(seen: Observed) -> None:
    """Groups of the denoiser came, never all at once, and are gone."""
    groups = seen.pretended.groups
    assert groups is not None
    assert groups.loads > len(groups.schedule.groups)
    assert groups.schedule.most_here < len(groups.schedule.groups)
    assert not any(group.is_here for group in groups.schedule.groups)


def offloaded_encoders_shows(seen: Observed) -> None:
    """So did groups of encoders, where these are loaded."""
    offload_shows(seen)
    assert any(seen.pretended.encoders) or not seen.encoders


def cpu_offload_shows(seen: Observed) -> None:
    """The autoencoder made room for the denoiser, and the optimizer's state for both."""
    assert {"+vae", "-vae", "+denoiser", "-denoiser", "-state", "+state"} <= set(seen.pretended.networks)


def chunked_feed_forward_shows(seen: Observed) -> None:
    """Each feed-forward has been given another forward."""
    modules = [module for entry in seen.run.model.trunk() for module in entry.feed_forward]
    assert modules
    assert all("forward" in vars(module) for module in modules)


def attention_backend_shows(seen: Observed) -> None:
    """Blocks computed by the kernel that was asked for."""
    assert seen.kernels == {"_native_math"}


def checkpointing_2_shows(seen: Observed) -> None:
    """Every second block is called twice for one gradient, and the others once."""
    for step, _ in seen.steps:
        for number in range(len(seen.run.model.blocks)):
            assert seen.calls.count(Call(step.position, number, for_gradient=True)) == (1 if number % 2 else 2)


def activations_shows(seen: Observed) -> None:
    """Activations were kept elsewhere."""
    assert seen.pretended.copies


def compile_shows(seen: Observed) -> None:
    """There are graphs."""
    assert seen.pretended.graphs


def vae_tiling_shows(seen: Observed) -> None:
    """The autoencoder takes tiles, where it is loaded."""
    assert not seen.encoders or seen.encoders["vae"].has_tiles


def vae_slicing_shows(seen: Observed) -> None:
    """It takes samples one by one."""
    assert not seen.encoders or seen.encoders["vae"].has_slices


def optimizer_shows(kind: str) -> Shows:
    """What keeps states is of this class, or one of those is that it is made of."""

    def shows(seen: Observed) -> None:
        assert kind in {type(part).__name__ for part in parts_of(seen.run.engine.optimizer)}

    return shows


def kahan_shows(seen: Observed) -> None:
    """What is lost of updates is kept beside the weights that are in bf16, as those of the denoiser are for the most part."""
    weights = [parameter for group in seen.run.engine.optimizer.param_groups for parameter in group["params"]]
    kept = {parameter: state for states in seen.run.engine.optimizer_states for parameter, state in states.items()}
    in_bf16 = [parameter for parameter in weights if parameter.dtype is torch.bfloat16]
    assert in_bf16 or not seen.run.model.trains_base
    assert kept
    assert all(isinstance(kept[parameter]["kahan_comp"], Tensor) for parameter in in_bf16 if parameter in kept)


def fused_backward_pass_shows(seen: Observed) -> None:
    """Updates are made within backward."""
    assert seen.run.engine.updates_in_backward


SHOWS: dict[str, Shows] = {
    "full": full_shows,
    "lycoris": lycoris_shows,
    "ema": ema_shows,
    "quantize": quantize_shows,
    "quantized_encoders": quantized_encoders_shows,
    "block_offload": offload_shows,
    "leaf_offload": offload_shows,
    "offloaded_encoders": offloaded_encoders_shows,
    "cpu_offload": cpu_offload_shows,
    "chunked_feed_forward": chunked_feed_forward_shows,
    "attention_backend": attention_backend_shows,
    "checkpointing_2": checkpointing_2_shows,
    "activations": activations_shows,
    "compile": compile_shows,
    "vae_tiling": vae_tiling_shows,
    "vae_slicing": vae_slicing_shows,
    "adamw8bit": optimizer_shows("AdamW8bit"),
    "muon": optimizer_shows("Muon"),
    "schedule_free": optimizer_shows("AdamWScheduleFree"),
    "kahan": kahan_shows,
    "fused_backward_pass": fused_backward_pass_shows,
}
