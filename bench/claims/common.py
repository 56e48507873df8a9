"""What the demonstrations of claims share: runs in this process, plots of lines, and the fragments that docs/claims holds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config import load_config
from tunesmith.progress import Progress
from tunesmith.session import run

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "docs" / "claims"
WIDTH = 140
QUICKSTART = ROOT / "examples" / "quickstart"
"""A small trained Sana, its pictures, and the code that draws them."""


def train(folder: Path, name: str, config: str, *overrides: str, resume: str = "never") -> Path:
    """Run a TOML config, as `tune run --quiet` does, below `folder/runs`; return the run directory. Relative paths count from `folder`.

    `overrides` are `table.key=value`, as `--set` takes them; runs of one folder share its cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(config, encoding="utf-8")
    places = f"run.output={str(folder / 'runs')!r}", f"run.cache_dir={str(folder / 'cache')!r}"
    with Progress("quiet") as progress:
        return run(load_config(file, (*places, *overrides)), resume, progress)


@dataclass(frozen=True)
class Series:
    """One line of a plot; `spread`, where given, is drawn as a band of that half width."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    dashed: bool = False


def plot(path: Path, title: str, xlabel: str, ylabel: str, series: Sequence[Series], *, logarithmic: bool = False) -> None:
    """Draw lines into a picture; `logarithmic` says so of the vertical axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for one in series:
        (line,) = axes.plot(one.x, one.y, "--" if one.dashed else "-", marker=".", label=one.label)
        if one.spread is not None:
            low, high = ([y + sign * width for y, width in zip(one.y, one.spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(one.x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def write_fragment(name: str, title: str, sections: Mapping[str, str], seconds: float) -> Path:
    """Write `docs/claims/NAME.md`: the title, the plot `NAME.png` where there is one, and each section under its heading.

    A section whose heading is empty comes first, without one. `seconds` is the processor time of the whole demonstration.
    """
    file = CLAIMS / f"{name}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"## {title}"]
    if (picture := CLAIMS / f"{name}.png").exists():
        parts.append(f"![{title}]({picture.name})")
    parts += [f"### {heading}\n\n{text}" if heading else text for heading, text in sections.items()]
    parts.append(f"Made by `python bench/claims/{name}.py` in about {seconds / 60:.1f} minutes of one processor core.")
    file.write_text("\n\n".join(wrapped(part.strip()) for part in parts) + "\n", encoding="utf-8")
    return file


def wrapped(text: str) -> str:
    """The text with lines of at most 140 characters, but for tables and pictures, whose lines are one thing each."""
    paragraphs = text.split("\n\n")
    kept = [one.startswith(("|", "!")) or all(len(line) <= WIDTH for line in one.splitlines()) for one in paragraphs]
    return "\n\n".join(
        one if is_kept else textwrap.fill(one, WIDTH, break_on_hyphens=False) for one, is_kept in zip(paragraphs, kept, strict=True)
    )
