"""What a plugin is: a class with typed settings, a stage, and methods marked `@hookimpl`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator

from .strictness import Typed, misread

if TYPE_CHECKING:
    from .batch import Field, FieldShape
    from .config import Config
    from .family import Family
    from .media import MediaReader, MediaWriter
    from .run import Run


class Stage(IntEnum):
    """Where a plugin stands, counted from the model outwards."""

    LOAD = 0
    CONVERT = 1
    ADAPT = 2
    ROUTE = 3
    OBJECTIVE = 4
    SAMPLE = 5
    AVERAGE = 6
    PLACE = 7
    EVALUATE = 8
    REPORT = 9


class Part(Enum):
    """Which part of a family's model `load_model` is asked for.

    ENCODERS fill the cache and are released; DENOISER is what is trained; DECODER turns latents into media, comes for
    each validation and leaves.
    """

    ENCODERS = "encoders"
    DENOISER = "denoiser"
    DECODER = "decoder"


@dataclass(frozen=True)
class Lever:
    """Settings with which a run takes less of the device's memory; `tune plan --vram` tries them, and proposes the cheapest that fit.

    `price` below 1 is about the share of a step's time that they cost. From 1 on they lose something of the weights, and from
    `LAST_RESORT` on another thing is learnt, which is proposed only where nothing else is enough.
    """

    changes: Mapping[str, bool | int | str]
    """Values by dotted key, such as `{"run.activations": "cpu"}`."""
    costs: str
    """What they cost, in words."""
    price: float


LAST_RESORT = 100.0
"""The price of what changes what is learnt."""


class Settings(BaseModel):
    """A table of the config: unknown keys are errors, values are as they are written and never change, every field is described."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    refused_keys: ClassVar[Mapping[str, str]] = {}
    """Unknown keys that somebody may write who comes from elsewhere, each with the reason why there is no such setting."""
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Settings of a family or a plugin that a resumed run may have otherwise; the run tells that they have changed."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        bare = [name for name, field in cls.model_fields.items() if not field.description]
        if bare:
            raise TypeError(f"{cls.__name__}: these settings have no description: {', '.join(bare)}")

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_written(cls, written: Any, read: ValidatorFunctionWrapHandler) -> Any:
        value = read(written)
        wrong = list(misread(written, value))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return str(value) if type(value) is Typed else value  # where a setting takes anything


class NoSettings(Settings):
    """For a plugin with nothing to set: its table only switches it on."""


S = TypeVar("S", bound=Settings)


class Plugin(Generic[S]):
    """One feature of a run: `class Edges(Plugin[EdgesSettings])`.

    A plugin is made once per run, from the settings of its table. It is never a dataclass or a pydantic model: pluggy
    compares plugins with `==`.
    """

    stage: ClassVar[Stage]
    outside: ClassVar[tuple[str, ...]] = ()
    """Names of plugins of any stage that this one must enclose."""
    inside: ClassVar[tuple[str, ...]] = ()
    """Names of plugins of any stage that must enclose this one."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Names of plugins without which this one cannot work."""
    conflicts: ClassVar[Mapping[str, str]] = {}
    """Names of plugins that cannot be on at the same time, each with the reason."""
    levers: ClassVar[tuple[Lever, ...]] = ()
    """Settings of this plugin that save memory; they are asked for whether it is active or not, of families only the run's own."""
    settings_type: ClassVar[type[Settings]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, Plugin) and isinstance(arguments[0], type):
                cls.settings_type = arguments[0]

    def __init__(self, name: str, settings: S) -> None:
        self.name = name
        self.settings = settings

    def check(self, config: Config, family: Family) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """What in the whole config this plugin cannot work with, told before anything is loaded: (key, sentence).

        `family` answers for the checkpoint, `family.on_meta()` with every layer's name and shape. A key is the path of a
        setting, such as `("validation", "scheduler")` or `("datasets", 0, "resolution")`.
        """
        return ()

    def remarks(self, config: Config, family: Family) -> Iterable[str]:
        """What to know before the run starts, such as what this plugin costs; `tune plan` tells it, and the run when it starts."""
        return ()

    def narrows(self, family: Family) -> Iterable[range]:
        """Stretches of blocks, from 0, that this plugin leaves tokens out of while training; behind the last of each all are back.

        Refused where another plugin leaves tokens out of the same block.
        """
        return ()

    def reads_blocks(self, family: Family) -> Iterable[int]:
        """The blocks, from 0, whose output this plugin needs in `step.hidden` while training, with every token.

        Refused where another plugin narrows one of them, and where the family lacks one.
        """
        return ()

    def packs(self, config: Config, family: Family) -> Collection[str]:
        """The denoiser's layers, by path, whose frozen weights this plugin keeps in a form that nothing can be added to."""
        return ()

    def needs_weights(self, config: Config, family: Family) -> Mapping[str, str]:
        """The denoiser's layers, by path, whose weights this plugin must find as they are, each with what for, in a word or two.

        Refused where another plugin packs one of them.
        """
        return {}

    def fields(self, run: Run) -> Sequence[Field]:
        """The batch fields that this plugin's `encode_batch` writes."""
        return ()

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> Mapping[str, FieldShape]:
        """What the fields that this plugin writes look like for samples of this size in pixels; for the forecast of memory."""
        return {}

    def rehearse_saving(self, run: Run) -> None:
        """Take of the device what this plugin's part in `save_checkpoint` takes, and write nothing; for the forecast of memory."""

    def alters(self, field: Field) -> str:
        """What this plugin changes in how a field that another plugin writes is made; it counts in the keys of the cache."""
        return ""

    def media_writers(self) -> Mapping[str, MediaWriter]:
        """Writers for kinds of media that this plugin brings, by kind."""
        return {}

    def media_readers(self) -> Mapping[str, MediaReader]:
        """Readers of files that are given to a sample, by what they give: `audio` or `control`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if never interrupted; tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""
        if state:
            raise ValueError(f"plugin {self.name!r} has no state, but the checkpoint holds {', '.join(sorted(state))}")
