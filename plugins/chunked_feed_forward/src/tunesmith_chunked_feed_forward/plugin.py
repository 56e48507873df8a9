"""The chunked feed-forward plugin: in how many portions the tokens go through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field

from tunesmith import Config, Family, InputError, Lever, Model, Part, PipelinePlugin, Plugin, Run, Settings, Stage, Wrapper, hookimpl

from .portions import compute_in_portions, feed_forwards

_BY_NUMBER = "portions are told by how many there are, whatever the size of a sample: write chunks = 2, or more of them"


class ChunkedFeedForwardSettings(Settings):
    """`[plugins.chunked_feed_forward]`: in how many portions the tokens go through each feed-forward."""

    refused_keys: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("chunk_size", "feed_forward_chunk_size", "num_chunks"), _BY_NUMBER)
    )

    chunks: int = Field(2, ge=2)
    """Portions of the tokens, one after the other: the hidden states within a feed-forward are there for one of them at a time."""


class ChunkedFeedForward(Plugin[ChunkedFeedForwardSettings]):
    """Compute every feed-forward of the trunk a portion of the tokens at a time, and for backward once more."""

    stage = Stage.ROUTE  # around what converts and adapts the layers within
    levers = (Lever({"plugins.chunked_feed_forward.chunks": 2}, "feed-forwards are computed once more", 0.15),)

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A feed-forward that cannot be computed so, where the model's outline tells; otherwise it is refused when it is loaded."""
        kind = config.classes[config.family]
        if self.name not in family.refuses and issubclass(kind, PipelinePlugin):
            try:
                feed_forwards(kind.model_type(family, family.on_meta(), {}).trunk())  # type: ignore[arg-type]
            except InputError as error:
                yield ("plugins", self.name), str(error)

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Have the feed-forwards of the denoiser's trunk take portions; InputError with the block of one that cannot."""
        model = yield
        if part is Part.DENOISER:
            for module in feed_forwards(model.trunk()):
                compute_in_portions(module, self.settings.chunks)
        return model
