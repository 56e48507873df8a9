"""`tune doctor`: it names what is broken and why, says what to do, and is not harmed by it."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunesmith import doctor
from tunesmith.cli.app import main
from tunesmith.discovery import installed
from tunesmith.doctor import Check, ask, disk, examine, hub, root_cause

CLASH = "operator torchvision::nms does not exist"
GIB = 2**30


@pytest.fixture
def tune(monkeypatch, capsys):
    """Run `tune doctor` in this process; exit code, stdout."""

    def tune(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tune", "doctor", *options])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capsys.readouterr().out

    return tune


@pytest.fixture
def few_libraries(monkeypatch) -> None:
    """Leave the slow imports out: torch and the plugins alone are tried."""
    monkeypatch.setattr(doctor, "COMPANIONS", ())
    monkeypatch.setattr(doctor, "CHAIN", {})


def module(installation, name: str, source: str) -> None:
    """A library of one line, installed."""
    installation.distribution(name, "0.28.0")
    (installation.folder / f"{name}.py").write_text(source)


def test_a_torchvision_that_does_not_fit_torch_is_found_as_what_breaks_everything(tune, toy, alone, monkeypatch):
    for name in ("transformers", "peft", "diffusers"):
        pytest.importorskip(name)
    monkeypatch.setattr(doctor, "COMPANIONS", ("torchvision",))
    module(toy, "torchvision", f"raise RuntimeError({CLASH!r})\n")
    toy.plugin("victim", "from transformers import BloomPreTrainedModel")
    code, out = tune("--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1
    for name in ("torchvision", "transformers", "peft", "diffusers", "plugin victim"):
        assert checks[name]["state"] == "broken"
        assert f"RuntimeError: {CLASH}" in checks[name]["finding"]
        assert "torchvision.py:1" in checks[name]["finding"]
        assert checks[name]["remedy"].startswith("pip uninstall torchvision")
    assert checks["torch"]["state"] == checks["plugin toyfamily"]["state"] == "ok"


def test_a_library_that_raises_ends_python_or_hangs_hinders_no_other(installation):
    module(installation, "first", "print('noise on stdout')")
    module(installation, "second", "import os, sys; print('killed by a driver', file=sys.stderr); sys.stderr.flush(); os._exit(7)")
    module(installation, "third", "import time; time.sleep(60)")
    module(installation, "fourth", "raise SystemExit('no licence')")
    module(installation, "fifth", "")
    tasks = [f"library {name}" for name in ("first", "second", "third", "fourth", "fifth")]
    problems = {task.split()[1]: answer["problem"] for task, answer in ask(tasks, seconds=4).items()}
    assert list(problems) == ["first", "second", "third", "fourth", "fifth"]
    assert problems["first"] is problems["fifth"] is None
    assert problems["second"] == "the import ended Python itself (exit code 7): killed by a driver"
    assert problems["third"] == "the import did not end within 4 seconds"
    assert problems["fourth"].startswith("SystemExit: no licence")


def test_broken_plugins_are_named_with_their_reason_and_whole_ones_are_not(toy, alone, few_libraries):
    toy.plugin("broken", "import nothing_of_that_name")
    toy.plain("careless", body="def log(self, run, event): ...")
    toy.plugin("deadly", "import os\nos._exit(3)")
    toy.plain("twice")
    toy.plugin("twice", "", distribution="acme-copy")
    checks = {check.name: check for check in examine()}
    assert {name for name, check in checks.items() if check.state == "broken"} == {
        "plugin broken",
        "plugin careless",
        "plugin deadly",
        "plugin twice",
    }
    assert "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'" in checks["plugin broken"].finding
    assert "acme_broken_module.py:" in checks["plugin broken"].finding
    assert "write @hookimpl above it" in checks["plugin careless"].finding
    assert "exit code 3" in checks["plugin deadly"].finding
    assert "acme-copy" in checks["plugin twice"].finding
    assert "pip uninstall acme-broken" in checks["plugin broken"].remedy
    assert checks["plugin toyloss"] == Check("plugin toyloss", "ok", "acme-toyloss 1.0 imports and keeps the contract")
    assert checks["plugins"].state == "ok"


def test_an_installation_without_a_family_is_told(alone):
    alone.plain("lonely")
    *_, check = doctor._plugins(installed(), {"plugin lonely": {"problem": None, "family": False}}, set())
    assert check.state == "warning"
    assert "1 installed: lonely" in check.finding
    assert "none is a model family" in check.finding


def test_what_stands_on_a_broken_torch_is_told_to_wait_for_it(toy, alone, few_libraries, monkeypatch):
    (toy.folder / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    checks = {check.name: check for check in examine()}
    assert checks["torch"].state == "broken"
    assert "libcudart.so.13" in checks["torch"].finding
    assert checks["plugin toyfamily"].remedy == "mend torch first"


def test_versions_that_clash_are_broken_for_us_a_warning_for_our_libraries_and_ignored_elsewhere(installation):
    def versions() -> Check:
        return doctor._versions(installed(), doctor._needed(installed()))

    assert versions().state == "ok"
    stranger = installation.distribution("stranger")
    with (stranger / "METADATA").open("a") as file:
        file.write("Requires-Dist: numpy<1\n")
    assert versions().state == "ok"
    needed = installation.distribution("pluggy", "1.7.0")  # in front of the real one
    with (needed / "METADATA").open("a") as file:
        file.write("Requires-Dist: numpy<1\nRequires-Dist: nothing-at-all; extra == 'more'\n")
    check = versions()
    assert check.state == "warning"
    assert "pluggy 1.7.0 has requirement numpy<1" in check.finding
    installation.plain("late")
    with (installation.folder / "acme_late-1.0.dist-info/METADATA").open("a") as file:
        file.write("Requires-Dist: pydantic<2\n")
    check = versions()
    assert check.state == "broken"
    assert "acme-late 1.0 has requirement pydantic<2" in check.finding
    assert "stranger" not in check.finding


def test_a_device_that_does_not_compute_is_broken_and_a_driver_that_is_not_used_a_warning(monkeypatch):
    answer = {"problem": None, "version": "2.13.0", "devices": ["the CPU (2 threads)"], "broken_devices": []}
    monkeypatch.setattr("shutil.which", lambda command: None)
    assert doctor._torch(answer).state == "ok"
    monkeypatch.setattr("shutil.which", lambda command: f"/usr/bin/{command}")
    assert doctor._torch(answer).state == "warning"
    with_gpu = answer | {"devices": ["the CPU (2 threads)", "cuda:0 (A GPU, 80 GiB)"]}
    assert doctor._torch(with_gpu) == Check("torch", "ok", "2.13.0 on the CPU (2 threads), cuda:0 (A GPU, 80 GiB)")
    assert doctor._torch(with_gpu | {"broken_devices": ["cuda:0: RuntimeError: no kernel image"]}).state == "broken"


def test_a_library_that_a_plugin_needs_is_not_to_be_uninstalled():
    answers = {"library torchao": {"problem": "ImportError: x"}, "library diffusers": {"problem": "ImportError: x"}}
    unneeded = list(doctor._imports(["torchao"], ["diffusers"], answers, set()))
    assert [check.remedy.startswith("pip uninstall torchao") for check in unneeded] == [True, True]
    needed = list(doctor._imports(["torchao"], ["diffusers"], answers, {"torchao"}))
    assert [check.remedy for check in needed] == ["install the build of it for this torch", "mend torchao first"]
    alone = list(doctor._imports(["torchao"], ["diffusers"], answers | {"library diffusers": {"problem": None}}, set()))
    assert [check.state for check in alone] == ["warning", "ok"]


def test_downloads_are_looked_for_where_the_hubs_client_keeps_them(monkeypatch, tmp_path: Path):
    script = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        if name:
            monkeypatch.setenv(name, str(tmp_path / name))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert str(doctor._hub_cache()) == done.stdout.strip()


@pytest.mark.parametrize(("free", "state"), [(100 * GIB, "ok"), (19 * GIB, "warning"), (GIB // 2, "broken")])
def test_the_room_on_a_disk_is_judged(tmp_path: Path, monkeypatch, free: int, state: str):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    check = disk("runs/", tmp_path / "not" / "yet", "set [run] output")
    assert check.state == state
    assert str(tmp_path) in check.finding
    assert bool(check.remedy) == (state != "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_broken(tmp_path: Path):
    (tmp_path / "file").write_text("")
    check = disk("cache/", tmp_path / "file", "set [run] cache_dir")
    assert check.state == "broken"
    assert "cannot be written to: Not a directory" in check.finding
    assert "set [run] cache_dir" in check.remedy


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """The address of a server that answers with 404."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_answers_is_away_or_is_not_asked(monkeypatch, refusing_server: str):
    monkeypatch.setattr(doctor, "HUB_SECONDS", 1.0)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", refusing_server)
    assert hub() == Check("hub", "ok", f"{refusing_server} answers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = hub()
    assert (away.state, "cannot be reached" in away.finding) == ("warning", True)
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    assert hub().state == "broken"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub().state == "ok"
    assert "offline" in hub().finding


def test_the_exit_code_is_1_if_something_is_broken_and_0_with_warnings(tune, monkeypatch):
    checks = [Check("torch", "ok", "fine"), Check("hub", "warning", "away", "go online")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert tune() == (0, "ok        torch: fine\nwarning   hub: away\n          -> go online\n")
    checks.append(Check("disk", "broken", "full", "make room"))
    assert tune()[0] == 1
    code, out = tune("--json")
    assert code == 1
    assert json.loads(out)[-1] == {"name": "disk", "state": "broken", "finding": "full", "remedy": "make room"}


def test_the_root_cause_is_the_first_error_and_its_line(tmp_path: Path):
    def fail() -> None:
        try:
            raise OSError("the real one")
        except OSError as error:
            raise RuntimeError("look up to see its traceback") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert root_cause(caught.value).startswith("OSError: the real one (")
    assert "test_doctor.py:" in root_cause(caught.value)


def test_the_doctors_own_process_imports_nothing_that_may_be_broken():
    script = "import sys, tunesmith.doctor; sys.exit(', '.join({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
