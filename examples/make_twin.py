"""Write the tiny twin of a model family: a checkpoint of its real classes with random weights, small enough to try anything on.

    python examples/make_twin.py FAMILY FOLDER

FAMILY is what `[model] family` says; `tune plugins` lists what is installed. A folder that is there already is kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tunesmith import FamilyPlugin, InputError
from tunesmith.discovery import load_class


def make_twin(family: str, folder: Path) -> None:
    """Write the twin, which gets its name when it is whole; InputError if there is no such family."""
    if folder.exists():
        print(f"{folder} is there already and was kept")
        return
    plugin = load_class(family)
    if not issubclass(plugin, FamilyPlugin):
        raise InputError(f"the plugin {family!r} is no model family; `tune plugins` lists what is installed")
    made = folder.with_name(f".new-{folder.name}")
    made.mkdir(parents=True, exist_ok=True)
    plugin.family_type.tiny(made)
    os.replace(made, folder)
    print(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python make_twin.py FAMILY FOLDER, a name such as wan_s2v and a folder for the checkpoint")
    try:
        make_twin(sys.argv[1], Path(sys.argv[2]))
    except InputError as error:
        raise SystemExit(str(error)) from None
