"""What the measurements share: parts in processes of their own, and tables between the markers of a Markdown file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MIB = 2**10
"""KiB."""
VERDICTS = {True: "yes", False: "**no**", None: ""}
"""Whether what is wanted holds, in a table."""


def part_of(module: str, name: str, *arguments: object, threads: int | None = None) -> dict[str, Any]:
    """The result of a part of a module in a process of its own; torch computes with so many threads, or its own number."""
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(HERE / f"{module}.py"), name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(head: Sequence[str], rows: Sequence[Sequence[str]], load: Sequence[float]) -> str:
    """A Markdown table under a sentence that tells when and where it was measured."""
    import torch

    where = f"{os.cpu_count()} cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    loads = f"load average over a minute before each measurement: {min(load):.1f} to {max(load):.1f}"
    told = f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {where}; {versions}; {loads}."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([told, "", *(f"| {' | '.join(line)} |" for line in lines)])


def put(made: str, marker: str, file: Path) -> None:
    """Replace what stands between the markers of a name in a file."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    text = file.read_text()
    file.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n\n{made}\n\n{end}", text, flags=re.DOTALL))
