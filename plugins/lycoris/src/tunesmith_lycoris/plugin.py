"""The LyCORIS plugin: adapters on the frozen denoiser, in files that LyCORIS and, where it can, diffusers read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from tunesmith import Config, Family, InputError, Model, Part, Plugin, Run, Stage, Wrapper, hookimpl

from .adapters import TITLES, Adapters, is_wide, lokr_factors, made_weight, needs_weight
from .config import LayerOptions, NetworkConfig, from_settings, read_config
from .files import check_layers, read, start_from, unreadable_by_diffusers, write
from .settings import LOW_RANK, LycorisSettings
from .targets import NoMatch, expression, select_layers


class Lycoris(Plugin[LycorisSettings]):
    """Train adapters of LyCORIS and leave the denoiser itself as it is (2309.14859)."""

    stage = Stage.ADAPT
    conflicts: ClassVar[Mapping[str, str]] = {
        "lora": 'both adapt the denoiser, and what each saves would be right with the other alone; `algo = "locon"` is LoRA'
    }

    def __init__(self, name: str, settings: LycorisSettings) -> None:
        super().__init__(name, settings)
        self._adapters: Adapters | None = None

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Files that cannot be read, names that the model lacks, arguments that exclude each other, a start that does not fit."""
        table = ("plugins", self.name)
        named = "targets" if self.settings.config is None else "config"
        try:
            network_config = self._network_config(family)
            layers = self._layers(family.on_meta(), network_config)
        except NoMatch as error:
            yield (*table, "overrides" if error.target in self.settings.overrides else named), str(error)
            return
        except InputError as error:
            yield (*table, named), str(error)
            return
        for problem in network_config.contradictions(layers):
            yield table if self.settings.config is None else (*table, "config"), problem
        if self.settings.init_from is not None:
            try:
                check_layers(*read(self.settings.init_from), layers)
            except InputError as error:
                yield (*table, "init_from"), str(error)

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What is adapted by what, where arguments count for nothing, and what diffusers cannot read."""
        network_config, network = self._network_config(family), family.on_meta()
        layers = self._layers(network, network_config)
        counts = Counter(TITLES[options.algo] for options in layers.values())
        yield f"adapts {', '.join(f'{count} layers by {algo}' for algo, count in sorted(counts.items()))}"
        if self.settings.config is not None:
            yield from network_config.ignored()
        adapted = {path: (network.get_submodule(path), options) for path, options in layers.items()}
        yield from _idle(adapted.values())
        second = [one for one in (made_weight(*pair, network_config) for pair in adapted.values()) if one]
        if second:
            yield (
                f"{len(second)} layers make a second weight for every prediction, as LoHa, DoRA and `bypass_mode = false` do: in fp32 "
                f"{sum(second) * 4 / 1e9:.2f} GB are kept until backward, or those of one block with `[run] gradient_checkpointing`"
            )
        if config.run.compile:
            yield (
                f"[run] compile takes each of the {family.num_blocks} blocks by itself, for every layer has a function of its own here: "
                "the first steps of every size of samples take as many times as long"
            )
        reason = unreadable_by_diffusers(adapted)
        if reason is not None:
            yield f"diffusers' load_lora_adapter cannot read what is trained: {reason}; it is saved in LyCORIS' own layout alone"

    def needs_weights(self, config: Config, family: Family) -> dict[str, str]:
        """The layers of which the whole difference is trained, or the lengths apart from the directions."""
        layers = self._layers(family.on_meta(), self._network_config(family))
        return {path: purpose for path, options in layers.items() if (purpose := needs_weight(options)) is not None}

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Attach the adapters to the denoiser; InputError if settings or the file to start from do not fit it."""
        model = yield
        if part is Part.DENOISER:
            self._attach(run, model)
        return model

    @hookimpl
    def save_checkpoint(self, run: Run, path: Path) -> None:
        """Write `pytorch_lora_weights.safetensors` with lycoris_config.json, and `diffusers/` for `load_lora_adapter`."""
        if run.is_main:
            write(path, self.adapters)

    @property
    def adapters(self) -> Adapters:
        """The adapters; RuntimeError before the model is loaded."""
        if self._adapters is None:
            raise RuntimeError("there are no adapters before the model is loaded")
        return self._adapters

    def _attach(self, run: Run, model: Model) -> None:
        config = self._network_config(run.family)
        layers = self._layers(model.denoiser, config)
        with torch.random.fork_rng(devices=[]):  # LyCORIS draws on the CPU, from the global generator
            torch.default_generator.manual_seed(run.torch_generator("lycoris.init").initial_seed())
            self._adapters = Adapters(model.denoiser, layers, config)
        if self.settings.init_from is not None:
            start_from(*read(self.settings.init_from), self._adapters)
        model.adapters[self.name] = self._adapters.switched_off

    def _network_config(self, family: Family) -> NetworkConfig:
        if self.settings.config is not None:
            return read_config(self.settings.config)
        return from_settings(self.settings, family.adapter_targets)

    def _layers(self, network: nn.Module, config: NetworkConfig) -> dict[str, LayerOptions]:
        written = {expression(target): target for target in (*(self.settings.targets or ()), *self.settings.overrides)}
        return select_layers(network, config, written)


def _idle(adapted: Collection[tuple[nn.Module, LayerOptions]]) -> Iterator[str]:
    """Arguments that count for nothing in layers of these sizes."""
    decomposed = [
        (lokr_factors(layer, options), options) for layer, options in adapted if options.algo == "lokr" and not options.full_matrix
    ]
    whole = sum(options.rank >= max(second) / 2 for (_, second), options in decomposed)
    if whole:
        yield (
            f"rank and alpha count for nothing in {whole} layers: the sides of their second LoKr factor are at most twice the rank, "
            "so it is kept whole; a smaller `rank` or `factor` changes that"
        )
    both = [options.rank >= max(first) / 2 for (first, _), options in decomposed if options.decompose_both]
    if both and all(both):
        yield "decompose_both counts for nothing: the sides of every first LoKr factor are at most twice the rank"
    kernels = [is_wide(layer) for layer, options in adapted if options.use_tucker and options.algo in LOW_RANK]
    if kernels and not any(kernels):
        yield "use_tucker counts for nothing: no adapted layer is a convolution with a kernel above 1"
