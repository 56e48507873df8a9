"""What fits where, as docs/generate.py writes it to docs/fits.md when asked: forecasts of published checkpoints at their real width."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from docs.combinations import table
from tunesmith.config import load_config
from tunesmith.levers import all_levers
from tunesmith.outlook import Largest, PhaseFacts, foretell, largest_samples
from tunesmith.rehearsal import Phase
from tunesmith.savings import GIB, Looking, Saving, Savings, Search, limit_of
from tunesmith.session import assemble

PAGE = Path(__file__).with_name("fits.md")
INTRODUCTION = """\
<!-- written by python docs/generate.py fits: change docs/fits.py, not this page -->

# What fits where

What `tune plan config.toml --vram GB` proposes for published checkpoints at their real width, with one sample of the family's own size
in a batch and samples in validation. **These are forecasts: each phase was gone through with shapes alone, and nothing here was measured
on a GPU.** [Memory](memory.md) says what a forecast counts, what each setting costs, and what is left free
on the device: {free} GiB.

Peaks are in GiB, and settings are written as `--set` takes them. A run with them starts from a config without any of them.
"""
HEADING = "## `"
DEVICES = (12, 16, 24)
"""GiB of devices."""
WHOLE, ADAPTER = "the whole model", "a LoRA of rank 16"
TABLES = {WHOLE: "", ADAPTER: "[plugins.lora]\nrank = 16\n"}
SAMPLES = '[validation]\nprompts = { harbour = "a harbour at dawn" }\n'
FILMS = f"[plugins.video]\n{SAMPLES}"
NAMES = ("caching", "training", "validation", "saving")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: what is trained of it, and what its config needs besides."""

    family: str
    variant: str
    rest: str
    kind: str = "image"
    trained: tuple[str, ...] = (WHOLE, ADAPTER)


CHECKPOINTS = (
    Checkpoint("sana", "1.6b-1024", SAMPLES),
    Checkpoint("sana_video", "2b-480p", FILMS, "video", (ADAPTER,)),
)


def page(families: Collection[str] = (), before: str = "") -> str:
    """The whole page, which takes minutes; of the page before, if it is given, with the sections of these families made anew."""
    free = ", ".join(f"{(device * GIB - limit_of(device * GIB)) / GIB:.1f} of {device}" for device in DEVICES)
    kept = {text.partition("`")[0]: f"{HEADING}{text.rstrip()}\n" for text in before.split(HEADING)[1:]}
    made = [kept[one.family] if one.family in kept and families and one.family not in families else section(one) for one in CHECKPOINTS]
    return "\n".join([INTRODUCTION.format(free=free), *made])


def section(checkpoint: Checkpoint) -> str:
    """A checkpoint: a row for each device and each thing that is trained."""
    rows, size = [], ""
    for trained in checkpoint.trained:
        with TemporaryDirectory() as folder:
            file = written(checkpoint, trained, Path(folder))
            largest, phases = forecast(file)
            rows += [[trained, "any", "none", *peaks(phases)]]
            found = answers(file, largest, phases)
            rows += [row(trained, device, one, phases) for device, one in zip(DEVICES, found, strict=True)]
        size = f"{largest.size.width}x{largest.size.height}" + (f", {largest.size.frames} frames" if largest.size.frames > 1 else "")
    heads = ["trained", "GPU", "settings", *NAMES]
    return f"{HEADING}{checkpoint.family}`, `{checkpoint.variant}`: {size}\n\n{table(heads, rows)}"


def written(checkpoint: Checkpoint, trained: str, folder: Path) -> Path:
    """A config that trains this of a checkpoint."""
    file = folder / "config.toml"
    file.write_text(
        f'[run]\nsteps = 1000\n[model]\nfamily = "{checkpoint.family}"\nvariant = "{checkpoint.variant}"\n'
        f'[[datasets]]\nkind = "{checkpoint.kind}"\npath = "{folder}"\n{TABLES[trained]}{checkpoint.rest}',
        encoding="utf-8",
    )
    return file


def forecast(file: Path, settings: Sequence[str] = ()) -> tuple[Largest, Sequence[Phase]]:
    """What a run with these settings takes of the device; RuntimeError where that cannot be told."""
    config = load_config(file, settings)
    cast = assemble(config)
    largest = largest_samples(cast.family, {}, config)
    told = foretell(config, cast, largest)
    if told.reason is not None:
        raise RuntimeError(told.reason)
    return largest, told.phases


def answers(file: Path, largest: Largest, phases: Sequence[Phase]) -> list[Savings]:
    """What is proposed for each device."""
    config = load_config(file)
    search = Search(all_levers(config), Looking(config, largest), phases)
    return [search.on(device * GIB) for device in DEVICES]


def row(trained: str, device: int, savings: Savings, phases: Sequence[Phase]) -> list[str]:
    """What is done for a device, and what each phase takes then."""
    saving: Saving | None = savings.proposed
    if saving is None:
        return [trained, f"{device} GB", "none" if savings.fits else "nothing fits", *peaks(phases)]
    settings = " ".join(f"`{text}`" for text in saving.settings)
    return [trained, f"{device} GB", settings if savings.fits else f"nothing fits; nearest: {settings}", *peaks(saving.phases)]


def peaks(phases: Iterable[Phase | PhaseFacts]) -> Iterator[str]:
    """The peak of each phase in GiB."""
    found = {one.name: one.peak for one in phases}
    for name in NAMES:
        yield f"{found[name] / GIB:.1f}" if name in found else "-"
