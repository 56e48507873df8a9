"""What goes with what, as docs/generate.py writes it to docs/combinations.md: from what families and plugins say of each other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from tests.matrix.switches import LEARNING, REFUSED, REFUSED_BESIDE, REFUSED_IN, SWITCHES, settings
from tunesmith import Family, KindPlugin, Modality, Plugin, SourcePlugin
from tunesmith.config import ConfigErrors, load_config
from tunesmith.config.load import SINGLE_TABLES
from tunesmith.family import FamilyPlugin
from tunesmith.session import NEEDS_ALL_TOKENS, assemble

PAGE = Path(__file__).with_name("combinations.md")
INTRODUCTION = """\
<!-- written by docs/generate.py from what families and plugins say of each other: change that, not this page -->

# What goes with what

Plugins know no family and families no plugin, so everything goes with everything unless somebody says otherwise, with a reason. All that
is said is here. `tune plan config.toml` says the same of a config before anything is loaded, with the line of the file; what is refused
stops it, what is told does not. That the rest works is a test: each family with every pair of what changes what is learnt and what saves
memory, and with all of the first at once.
"""
FAMILIES = """\
## Plugins and families

`yes` is without a word, `told` works and one should know something first, `no` is refused.
"""
REASONS = "## What families refuse, and what they tell\n"
DATA = """\
## Families and data

Datasets of other kinds, and keys, that a family cannot use are refused with their line. `reference`, `control` and `audio` are what is
given beside a caption, as datasets in training and as files in `[[validation.samples]]`.
"""
PLUGINS = """\
## Plugins and plugins

{}
"""
SETTINGS = """\
## Settings and settings

What is refused beside that where both are on, as `tune plan` says it of `{}`.
"""
WIDTH = 140
NONE: Mapping[tuple[str, str], str] = MappingProxyType({})
ROLES = ("reference", "control", "audio")
DATA_HEADS = ["family", "kinds of datasets", "sound", "first frame given (`is_i2v`)", *(f"`{role}`" for role in ROLES)]


def page(classes: Mapping[str, type[Plugin[Any]]]) -> str:
    """The whole page, for plugins by name."""
    features = {name: plugin for name, plugin in classes.items() if not issubclass(plugin, (FamilyPlugin, KindPlugin, SourcePlugin))}
    kinds = {name: plugin for name, plugin in classes.items() if issubclass(plugin, KindPlugin)}
    with TemporaryDirectory() as folder:
        families = dict(facts({name: plugin for name, plugin in classes.items() if issubclass(plugin, FamilyPlugin)}, Path(folder)))
        by_check = dict(refused_by_check(families, Path(folder)))
        together = list(pairs(next(iter(families)), Path(folder)))
    parts = [
        INTRODUCTION,
        FAMILIES,
        table(["plugin", *(f"`{name}`" for name in families)], ([f"`{name}`", *verdicts(name, families, by_check)] for name in features)),
        REASONS,
        table(["family", "what", "", "why"], reasons(families, by_check)),
        DATA,
        table(DATA_HEADS, data(families, kinds)),
        PLUGINS.format(rules(features)),
    ]
    said = list(among(features))
    parts += [table(["plugin", "with", "", "why"], said)] if said else []
    return "\n".join([*parts, SETTINGS.format(next(iter(families))), table(["setting", "with", "", "why"], together)])


def facts(families: Mapping[str, type[FamilyPlugin[Any]]], folder: Path) -> Iterator[tuple[str, Family]]:
    """Each family as it answers for its twin, which is written below a folder."""
    for name, plugin in families.items():
        checkpoint = plugin.family_type.tiny(folder / name)
        yield name, plugin(name, plugin.settings_type.model_validate({"path": str(checkpoint)})).family()


def refused_by_check(families: Mapping[str, Family], folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """What families do not refuse by themselves, but a plugin finds that it cannot work with: (family, plugin), and what it says."""
    for name, family in families.items():
        for switch in SWITCHES.values():
            if (name, switch.name) in REFUSED_IN and switch.name not in family.refuses:
                [told] = refusals(name, settings(name, [switch]), folder)
                yield (name, switch.name), told


def pairs(family: str, folder: Path) -> Iterator[list[str]]:
    """What is refused in every family, as it is told of in one; not where a plugin excludes another by its name."""
    switches = {**SWITCHES, **LEARNING}
    in_pairs = [[switch for name, switch in switches.items() if name in names] for names in REFUSED]
    asked = [*REFUSED_BESIDE, *((one.written, other.written, settings(family, (one, other))) for one, other in in_pairs)]
    told: set[str] = set()
    for one, other, overrides in asked:
        [sentence] = refusals(family, overrides, folder)
        if sentence not in told and "cannot be on together" not in sentence:
            told.add(sentence)
            yield [one, other, "refused", sentence]


def refusals(family: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """What is said of a config with these settings, where a family's twin lies below a folder."""
    file = folder / "asked.toml"
    checkpoint = (folder / family).as_posix()
    file.write_text(f'[run]\nsteps = 1\n[model]\nfamily = "{family}"\npath = "{checkpoint}"\n[[datasets]]\npath = "."\n')
    try:
        assemble(load_config(file, overrides))
    except ConfigErrors as refused:
        return [problem.message for problem in refused.problems]
    return []


def verdicts(plugin: str, families: Mapping[str, Family], by_check: Mapping[tuple[str, str], str] = NONE) -> Iterator[str]:
    """What each family says of a plugin, or the plugin of it, in a word."""
    for name, family in families.items():
        is_refused = plugin in family.refuses or (name, plugin) in by_check
        yield "no" if is_refused else "told" if plugin in family.cautions else "yes"


def reasons(families: Mapping[str, Family], by_check: Mapping[tuple[str, str], str] = NONE) -> Iterator[list[str]]:
    """Everything that is refused or told in families, each with its reason."""
    for name, family in families.items():
        for what, reason in family.refuses.items():
            yield [f"`{name}`", f"`[{what}]`" if what in SINGLE_TABLES else f"`{what}`", "refused", reason]
        for (of, plugin), reason in by_check.items():
            if of == name:
                yield [f"`{name}`", f"`{plugin}`", "refused", reason]
        for what, reason in family.cautions.items():
            yield [f"`{name}`", f"`{what}`", "told", reason]
        for what, reason in family.refuses_quantisation.items():
            yield [f"`{name}`", f"frozen weights in {what}", "refused", reason]


def data(families: Mapping[str, Family], kinds: Mapping[str, type[KindPlugin[Any]]]) -> Iterator[list[str]]:
    """Which kinds of datasets samples may be of, what is heard with them, and what they may be given."""
    for name, family in families.items():
        samples = ["image", *(kind for kind, plugin in kinds.items() if family.modality in plugin.kind.modalities)]
        sound = "-" if family.sound is None else f"{family.sound.sample_rate} Hz"
        first = "-" if family.modality is Modality.IMAGE else "yes" if family.image_to_video else f"no: {family.image_to_video_reason}"
        yield [f"`{name}`", ", ".join(f"`{kind}`" for kind in samples), sound, first, *(taken(family, role) for role in ROLES)]


def taken(family: Family, role: str) -> str:
    """Whether a sample is given something beside its caption."""
    if role not in family.takes:
        return "no"
    return "needed to sample" if family.takes[role] else "yes"


def rules(plugins: Mapping[str, type[Plugin[Any]]]) -> str:
    """What holds between plugins that act on blocks, and which these are."""
    narrowing = [name for name, plugin in plugins.items() if plugin.narrows is not Plugin.narrows]
    reading = [name for name, plugin in plugins.items() if plugin.reads_blocks is not Plugin.reads_blocks]
    if not narrowing or not reading:
        return "No two of these act on the same block in ways that do not go together."
    told = (
        f"A plugin that {NEEDS_ALL_TOKENS} cannot read a block whose output another one leaves tokens out of while training. "
        f"Blocks are read so by {listed(reading)}, and tokens left out by {listed(narrowing)}; a config in which both mean the same block "
        "is refused, and says which. So is one in which two plugins leave tokens out of the same block. Behind the last block that a "
        "plugin leaves tokens out of, all of them are back."
    )
    return textwrap.fill(told, WIDTH, break_on_hyphens=False) + "\n"


def among(plugins: Mapping[str, type[Plugin[Any]]]) -> Iterator[list[str]]:
    """What plugins need and exclude of each other."""
    for name, plugin in plugins.items():
        for other in plugin.requires:
            yield [f"`{name}`", f"`{other}`", "needed", "it works on what the other one makes"]
        for other, reason in plugin.conflicts.items():
            yield [f"`{name}`", f"`{other}`", "refused", reason]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return " and ".join(f"`{name}`" for name in names)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)
