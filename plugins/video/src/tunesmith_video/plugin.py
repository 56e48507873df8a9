"""The plugins: each brings a kind of dataset, and tells before anything is loaded what a family cannot do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith import Config, Family, KindPlugin, MediaReader, MediaWriter, NoSettings, Stage

from .kinds import AudioKind, VideoKind
from .reading import probe_audio, probe_control, read_audio, read_control
from .tables import AudioTable, VideoTable
from .writing import write_clip

Complaint = tuple[tuple[str | int, ...], str]
WITHOUT_CLIPS = frozenset({"image", "audio"})
"""Kinds of datasets whose samples cannot have sound beside them."""


class Video(KindPlugin[NoSettings]):
    """Datasets of clips, and the clips of validation, with PyAV."""

    stage = Stage.LOAD
    kind = VideoKind

    def media_writers(self) -> Mapping[str, MediaWriter]:
        """Clips, as films with a poster."""
        return {"clip": write_clip}

    def media_readers(self) -> Mapping[str, MediaReader]:
        """Sound, of its own file or of a film, and films that guide."""
        return {"audio": MediaReader(read_audio, probe_audio), "control": MediaReader(read_control, probe_control)}

    def check(self, config: Config, family: Family) -> Iterator[Complaint]:
        """Clips for families that generate none, and sound that is not the family's."""
        with_sound = {table.of for table in config.datasets if isinstance(table, AudioTable)}
        for number, table in enumerate(config.datasets):
            if not isinstance(table, VideoTable):
                continue
            yield from _sound_complaints(table, number, family)
            required = family.sound is not None and family.sound.required
            if required and table.auto_split is False and table.name not in with_sound:
                yield (
                    ("datasets", number, "auto_split"),
                    f"auto_split = false: {family.name} cannot be trained without sound, and no audio dataset has of = {table.name!r}; "
                    "take it out, or add one",
                )


class Audio(KindPlugin[NoSettings]):
    """Datasets of sound: beside clips, or recordings of their own."""

    stage = Stage.LOAD
    kind = AudioKind

    def check(self, config: Config, family: Family) -> Iterator[Complaint]:
        """Recordings for families that generate none, sound that is not the family's, and sound of what is no clip."""
        kinds = {table.name: table.kind for table in config.datasets}
        for number, table in enumerate(config.datasets):
            if not isinstance(table, AudioTable):
                continue
            yield from _sound_complaints(table, number, family)
            if table.of is not None and kinds.get(table.of) in WITHOUT_CLIPS:
                yield (
                    ("datasets", number, "of"),
                    f'of = {table.of!r}: that is a dataset of kind = "{kinds[table.of]}", and sound belongs to clips; '
                    "name a dataset of clips, or take this one out",
                )
            if table.of is None:
                yield (
                    ("datasets", number, "kind"),
                    f'kind = "audio" without `of`: {family.name} generates {family.modality.value}s and cannot be trained on recordings '
                    'alone; sound beside clips says of = "NAME OF THEIR DATASET"',
                )


def _sound_complaints(table: VideoTable | AudioTable, number: int, family: Family) -> Iterator[Complaint]:
    sound = family.sound
    if sound is None:
        return
    for key, asked, own in (("sample_rate", table.sample_rate, sound.sample_rate), ("channels", table.channels, sound.channels)):
        if asked is not None and asked != own:
            yield ("datasets", number, key), f"{key} = {asked}: {family.name} is trained with {key} = {own}; take it out"
