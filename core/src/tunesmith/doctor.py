"""`tune doctor`: what of an installation works, tried for real; what may crash is tried in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .config.tables import RunTable
from .discovery import DISTRIBUTION, InstalledPlugin, catalogue, installed, load_class
from .errors import InputError

State = Literal["ok", "warning", "broken"]
Answer = dict[str, Any]
"""What was found by a task in the other process: `problem`, a sentence or None, and facts."""

LIBRARIES = ("diffusers", "transformers", "accelerate", "peft", "huggingface_hub", "safetensors", "numpy", "pillow", "pydantic", "pluggy")
"""Libraries whose versions are told."""
COMPANIONS = ("torchvision", "torchaudio", "torchao", "xformers", "bitsandbytes")
"""Built for one build of torch, and imported by the libraries of the chain wherever they are installed."""
CHAIN = {"transformers": "BloomPreTrainedModel", "peft": "PeftModel", "diffusers": "DiffusionPipeline"}
"""Libraries that load their parts when asked, each with a part whose import pulls in what is usually broken."""
GIB = 2**30
LITTLE, TOO_LITTLE = 20 * GIB, GIB
"""Free bytes below which a folder is a worry, and below which it is of no use."""
HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
_ALWAYS = re.compile(r"[\w.-]+(?!.*\bextra\b)")
"""The name in a requirement that does not hang on an extra."""
TASK_SECONDS = 120.0
"""How long one import may take before it counts as hanging."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: how it is, in a sentence, and what to do about it where something is wrong."""

    name: str
    state: State
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n{' ' * 10}-> {self.remedy}" if self.remedy else ""
        return f"{self.state:8}  {self.name}: {self.finding}{remedy}"


def examine() -> Iterator[Check]:
    """Every check of this installation, in an order in which the first broken one explains those below it."""
    plugins = installed()
    companions = [name for name in COMPANIONS if _version(name)]
    chain = [name for name in CHAIN if _version(name)]
    tasks = ["torch", *(f"library {name}" for name in (*companions, *chain)), *(f"plugin {name}" for name in plugins)]
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")
    answers = ask(tasks)
    yield _torch(answers["torch"])
    yield _libraries()
    needed = _needed(plugins)
    yield _versions(plugins, needed)
    yield from _imports(companions, chain, answers, needed)
    yield from _plugins(plugins, answers, needed)
    for setting in ("output", "cache_dir"):
        folder = Path(RunTable.model_fields[setting].default)
        yield disk(f"{folder}/", folder, f"set [run] {setting}")
    yield disk("downloads", _hub_cache(), "set HF_HOME")
    yield hub()


# ---- this process: nothing here can crash


def _torch(answer: Answer) -> Check:
    if answer["problem"]:
        remedy = "reinstall it, with the build for this machine: https://pytorch.org/get-started/locally"
        return Check("torch", "broken", f"cannot be used: {answer['problem']}", remedy)
    found = f"{answer['version']} on {', '.join(answer['devices'])}"
    if answer["broken_devices"]:
        remedy = 'update the driver, install the build of torch for it, or train elsewhere with [run] device = "cpu"'
        return Check("torch", "broken", f"{found}; does not compute on {'; '.join(answer['broken_devices'])}", remedy)
    if len(answer["devices"]) == 1 and shutil.which("nvidia-smi"):
        remedy = "install the CUDA build of torch, or update the driver: https://pytorch.org/get-started/locally"
        return Check("torch", "warning", f"{found}, although an NVIDIA driver is installed", remedy)
    return Check("torch", "ok", found)


def _libraries() -> Check:
    found = {name: _version(name) for name in (DISTRIBUTION, *LIBRARIES)}
    return Check("libraries", "ok", ", ".join(f"{name} {version}" for name, version in found.items() if version))


def _versions(plugins: Mapping[str, Sequence[InstalledPlugin]], needed: Set[str]) -> Check:
    """Whether the installed versions are ones that we and our libraries declare to work with, as `pip check` tells."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False, timeout=TASK_SECONDS, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return Check("versions", "warning", "pip check does not end", "run it by hand: python -m pip check")
    if "No module named pip" in done.stderr:
        return Check("versions", "warning", "not compared, for pip is not in this environment", "run: uv pip check")
    clashes = {
        line: _canonical(line.split()[0]) for line in done.stdout.splitlines() if " requires " in line or " has requirement " in line
    }
    concerning = {line: owner for line, owner in clashes.items() if owner in needed}
    if not concerning:
        return Check("versions", "ok", "every library has a version that the others ask for")
    state: State = "broken" if _ours(plugins) & set(concerning.values()) else "warning"
    return Check("versions", state, "; ".join(line.rstrip(".") for line in concerning), "install the versions that are asked for")


def _ours(plugins: Mapping[str, Sequence[InstalledPlugin]]) -> set[str]:
    """The core's distribution and those of the plugins."""
    return {DISTRIBUTION, *(_canonical(plugin.distribution) for candidates in plugins.values() for plugin in candidates)}


def _needed(plugins: Mapping[str, Sequence[InstalledPlugin]]) -> set[str]:
    """The distributions of core and plugins and, as far as they are installed, all that these require."""
    found: set[str] = set()
    waiting = [*_ours(plugins)]
    while waiting:
        name = waiting.pop()
        if name in found or _version(name) is None:
            continue
        found.add(name)
        waiting += [_canonical(match[0]) for line in metadata.requires(name) or () if (match := _ALWAYS.match(line))]
    return found


def _imports(companions: Sequence[str], chain: Sequence[str], answers: Mapping[str, Answer], needed: Set[str]) -> Iterator[Check]:
    """Who cannot be imported: a library that does not fit this torch takes those with it that import it wherever it is."""
    harmed = any(answers[f"library {name}"]["problem"] for name in chain)
    for name in (*companions, *chain):
        task = f"library {name}"
        problem = answers[task]["problem"]
        first = _upstream(task, answers, needed)
        if problem is None:
            yield Check(name, "ok", f"{_version(name)} can be imported")
        elif name in chain:
            yield Check(name, "broken", f"cannot be imported: {problem}", first or f"pip install --force-reinstall {name}")
        else:
            uninstall = "" if name in needed else f"pip uninstall {name} (nothing here needs it), or "
            finding = f"{_version(name)} cannot be imported beside this torch: {problem}"
            yield Check(name, "broken" if harmed else "warning", finding, first or f"{uninstall}install the build of it for this torch")


def _upstream(task: str, answers: Mapping[str, Answer], needed: Set[str]) -> str:
    """What to do first about a task that failed, if that is the fault of what it stands on."""
    before = [name for name in answers if answers[name]["problem"]]
    before = [name.removeprefix("library ") for name in before[: before.index(task)]] if task in before else []
    culprits = [name for name in before if name in COMPANIONS]
    same = [name for name in culprits if answers[f"library {name}"]["problem"] == answers[task]["problem"]]
    if not before or ("torch" not in before and task.removeprefix("library ") in COMPANIONS):
        return ""
    if "torch" not in before and culprits:
        guilty = same or culprits
        return f"mend {guilty[0]} first" if guilty[0] in needed else f"pip uninstall {' '.join(guilty)}"
    return "" if before[0].startswith("plugin ") else f"mend {before[0]} first"


def _plugins(plugins: Mapping[str, Sequence[InstalledPlugin]], answers: Mapping[str, Answer], needed: Set[str]) -> Iterator[Check]:
    """Every plugin: whether it imports and keeps the contract; then what else the catalogue has."""
    for name, candidates in plugins.items():
        task = f"plugin {name}"
        problem = answers[task]["problem"]
        origin = " and ".join(plugin.origin for plugin in candidates)
        if problem is None:
            yield Check(task, "ok", f"{origin} imports and keeps the contract")
        else:
            own = f"update it, or pip uninstall {candidates[0].distribution}; runs that do not ask for it are not concerned"
            imported = "family" in answers[task]
            finding = problem if imported else f"cannot be imported: {problem}"
            yield Check(task, "broken", finding, own if imported else _upstream(task, answers, needed) or own)
    absent = sorted(extra for name, extra in catalogue().items() if name not in plugins and extra != "all")
    found = f"{len(plugins)} installed: {', '.join(plugins) or 'none'}; the catalogue also has: {', '.join(absent) or 'no more'}"
    if any(answers[f"plugin {name}"]["problem"] or answers[f"plugin {name}"]["family"] for name in plugins):
        yield Check("plugins", "ok", found)
    else:
        yield Check("plugins", "warning", f"{found}; none is a model family", f"install one, such as pip install '{DISTRIBUTION}[all]'")


def disk(name: str, folder: Path, elsewhere: str) -> Check:
    """Whether a folder can be written to, and the room that it has; what is not there yet is where it would be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, "broken", f"{there} cannot be written to: {error.strerror}", f"mend the folder, or {elsewhere} to another one")
    found = f"{free / GIB:.1f} GiB free at {there}"
    state: State = "ok" if free >= LITTLE else "warning" if free >= TOO_LITTLE else "broken"
    return Check(name, state, found, "" if state == "ok" else f"make room, or {elsewhere} to a folder with more")


def _hub_cache() -> Path:
    """Where the Hub's client keeps downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")).expanduser()


def hub() -> Check:
    """Whether checkpoints can be downloaded, or only what is there can be used."""
    asked = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), None)
    if asked and os.environ[asked].upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hub", "ok", f"offline, as {asked} asks: only local folders and what was downloaded before can be used")
    address = os.environ.get("HF_ENDPOINT") or HUB
    failures: list[Exception] = []
    asking = threading.Thread(target=_knock, args=(address, failures), daemon=True)  # finding out an address heeds no timeout
    asking.start()
    asking.join(2 * HUB_SECONDS)
    if any(isinstance(failure, ValueError) for failure in failures):
        return Check("hub", "broken", f"HF_ENDPOINT = {address!r} is no address", "write it with its scheme, such as https://HOST")
    if failures or asking.is_alive():
        reason = f": {failures[0]}" if failures else ""
        remedy = "go online, set HF_ENDPOINT to a mirror, or use local folders and set HF_HUB_OFFLINE=1"
        return Check("hub", "warning", f"{address} cannot be reached{reason}", remedy)
    return Check("hub", "ok", f"{address} answers")


def _knock(address: str, failures: list[Exception]) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # whoever refuses is there
    except (OSError, ValueError) as error:
        failures.append(error)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# ---- the other process: it may crash, hang or end itself, and is started again behind the task that did it


def ask(tasks: Sequence[str], seconds: float = TASK_SECONDS) -> dict[str, Answer]:
    """The answer to each task, worked through in order by other processes that see the same modules as this one."""
    answers: dict[str, Answer] = {}
    while len(answers) < len(tasks):
        left = tasks[len(answers) :]
        given, end = _ask_once(left, seconds)
        answers |= dict(zip(left, given, strict=False))
        if len(given) < len(left):
            answers[left[len(given)]] = {"problem": end}
    return answers


def _ask_once(tasks: Sequence[str], seconds: float) -> tuple[list[Answer], str]:
    """The answers that one process gave, and how it ended if these are too few."""
    command = [sys.executable, "-P", "-c", f"from {__name__} import answer; answer()", *tasks]
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment())
        assert process.stdout is not None
        answers: list[Answer] = []
        hanging = threading.Event()

        def give_up() -> None:
            hanging.set()
            process.kill()

        while True:
            timer = threading.Timer(seconds, give_up)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                break
            answers.append(json.loads(line))
        code = process.wait()
        process.stdout.close()
        complaints.seek(0)
        last = next((line.strip() for line in reversed(complaints.read().splitlines()) if line.strip()), "no message")
    if hanging.is_set():
        return answers, f"the import did not end within {seconds:g} seconds"
    return answers, f"the import ended Python itself (exit code {code}): {last}"


def _environment() -> dict[str, str]:
    """What makes another Python see the modules that this one sees, and none that happen to lie in the working folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "PYTHONSAFEPATH": "1"}


def answer() -> None:
    """Work through the tasks in `sys.argv`, one line of JSON each on what was stdout; whatever is printed goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for task in sys.argv[1:]:
        kind, _, name = task.partition(" ")
        try:
            found = _TASKS[kind](name)
        except BaseException as error:  # a stranger's module may raise anything; the parent tells it
            found = {"problem": root_cause(error)}
        print(json.dumps(found), file=channel, flush=True)


def _try_torch(_: str) -> Answer:
    import torch

    cpu = f"the CPU ({torch.get_num_threads()} threads)"
    devices, broken = [cpu], []
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    for index in range(torch.accelerator.device_count() if accelerator else 0):
        device = torch.device(accelerator.type, index) if accelerator else torch.device("cpu")
        cuda = device.type == "cuda"
        memory = f", {torch.cuda.get_device_properties(index).total_memory / GIB:.0f} GiB" if cuda else ""
        devices.append(f"{device} ({torch.cuda.get_device_name(index) if cuda else platform.machine()}{memory})")
        try:
            assert float(torch.ones(8, device=device).sum()) == 8
        except Exception as error:  # whatever a driver makes torch raise
            broken.append(f"{device}: {root_cause(error)}")
    return {"problem": None, "version": str(torch.__version__), "devices": devices, "broken_devices": broken}


def _try_library(name: str) -> Answer:
    module = importlib.import_module(name)
    if name in CHAIN:
        getattr(module, CHAIN[name])
    return {"problem": None}


def _try_plugin(name: str) -> Answer:
    from .contract import complaints
    from .family import FamilyPlugin

    try:
        plugin = load_class(name)
    except InputError as error:
        if error.__cause__:
            raise
        return {"problem": str(error), "family": False}
    problem = "; ".join(complaints(plugin)) or None
    return {"problem": problem, "family": issubclass(plugin, FamilyPlugin)}


_TASKS: Mapping[str, Callable[[str], Answer]] = {"torch": _try_torch, "library": _try_library, "plugin": _try_plugin}


def root_cause(error: BaseException) -> str:
    """The error that all others followed from and the line that raised it, in one line."""
    while (earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = earlier
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
