"""A resumed run is the run that was never interrupted, bit for bit."""

import importlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.processes import start
from tunesmith import InputError, NoSettings, Plugin, Run, RunFailed, Stage, Wrapper, hookimpl
from tunesmith.hooks import HookCaller
from tunesmith.progress import Progress
from tunesmith.rundir import lock
from tunesmith.trainer import Trainer

from . import conftest
from .conftest import LORA, Result, config_text

EVERY_TWO = "[checkpoints]\nevery = 2\n"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def assert_same_run(straight: Result, resumed: Result, step: int) -> None:
    assert resumed.losses == straight.losses
    expected, found = straight.weights(step), resumed.weights(step)
    assert sorted(found) == sorted(expected)
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert differing == []
    assert resumed.pictures(step) == straight.pictures(step)


@contextmanager
def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run in this block is interrupted when a step is done, with all that is due then."""
    milestones = Trainer.milestones

    def interrupted(self: Trainer) -> None:
        milestones(self)
        if self.run.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "milestones", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("run.gradient_accumulation=3",),
        ("run.cache=false",),
        ("run.precision='bf16'",),
        ("run.deterministic=true",),
        pytest.param(("run.deterministic=true", "run.device='cuda'"), marks=needs_cuda),
        pytest.param(("run.deterministic=true", "run.device='cuda'", "run.precision='bf16'"), marks=needs_cuda),
    ],
    ids=str,
)
def test_stop_and_resume_equals_never_stopping(train, monkeypatch, extra, overrides):
    straight = train("straight", extra + EVERY_TWO, *overrides)
    with stopped_after(4, monkeypatch):
        train("resumed", extra + EVERY_TWO, *overrides)
    assert_same_run(straight, train("resumed", extra + EVERY_TWO, *overrides), 6)


def test_a_killed_process_goes_on_bit_for_bit(train, tmp_path, twin, pictures):
    settings = ("run.steps=40", "validation.at_start=false")
    straight = train("straight", LORA + EVERY_TWO, *settings)
    config = tmp_path / "killed.toml"
    config.write_text(config_text(twin, pictures, LORA + EVERY_TWO))
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    at_work = start(tmp_path, "run", str(config), "--quiet", sets=settings)
    assert at_work.signal(signal.SIGKILL, lambda: any(checkpoints.glob("step-*"))).returncode == -signal.SIGKILL
    assert_same_run(straight, train("killed", LORA + EVERY_TWO, *settings), 40)


def test_a_signal_finishes_the_step_saves_and_goes_on(train, tmp_path, twin, pictures):
    settings = ("run.steps=100", "validation.at_start=false", "validation.at_end=false")
    straight = train("straight", LORA, *settings)
    config = tmp_path / "signalled.toml"
    config.write_text(config_text(twin, pictures, LORA))
    events = tmp_path / "runs" / "signalled" / "events.jsonl"
    at_work = start(tmp_path, "run", str(config), sets=settings)
    done = at_work.signal(signal.SIGTERM, lambda: events.exists() and '"event": "step"' in events.read_text())
    assert done.returncode == 0
    assert "the same command goes on from there" in done.stdout
    resumed = train("signalled", LORA, *settings)
    assert resumed.losses == straight.losses


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(train):
    first = train("damaged", LORA + EVERY_TWO, "run.steps=4")
    newest = first.path / "checkpoints" / "step-000004" / "training" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    torn = newest.read_bytes()
    again = train("damaged", LORA + EVERY_TWO, "run.steps=4")
    assert any(event["event"] == "start" and str(event["resumed_from"]).endswith("step-000002") for event in again.events)
    assert torn in [path.read_bytes() for path in (first.path / "checkpoints").rglob("state.pt")]
    assert again.losses == first.losses


def test_resuming_with_another_seed_is_refused_by_name(train):
    train("changed", LORA, "run.steps=2")
    with pytest.raises(InputError, match=r"run\.seed was 0 and is 7"):
        train("changed", LORA, "run.steps=4", "run.seed=7")


@pytest.mark.parametrize(
    "extra", ["[plugins.group_offload]\n", LORA + "[plugins.group_offload]\n", "[plugins.cpu_offload]\n"], ids=["full", "lora", "cpu"]
)
def test_where_weights_lie_may_change_on_the_way_and_changes_no_number(train, extra):
    common = ("run.gradient_checkpointing=true", "run.steps=4", "validation.at_start=false")
    without = extra.rpartition("[plugins")[0]
    straight = train("straight", without + EVERY_TWO, *common)
    for name, before, after in (("with", extra, without), ("without", without, extra)):
        first = train(name, before + EVERY_TWO, *common)
        shutil.rmtree(first.path / "checkpoints" / "step-000004")
        assert_same_run(straight, train(name, after + EVERY_TWO, *common), 4)
        assert str([event for event in first.events if event["event"] == "start"][-1]["resumed_from"]).endswith("step-000002")


def test_how_the_autoencoder_takes_samples_may_change_on_the_way(train):
    common = ("run.steps=4", "validation.at_start=false")
    straight = train("straight", LORA + EVERY_TWO, *common)
    first = train("sliced", LORA + EVERY_TWO, *common)
    shutil.rmtree(first.path / "checkpoints" / "step-000004")
    second = train("sliced", LORA + EVERY_TWO, *common, "model.vae_slicing=true")
    assert_same_run(straight, second, 4)
    assert str([event for event in second.events if event["event"] == "start"][-1]["resumed_from"]).endswith("step-000002")


def test_taking_out_what_had_a_part_in_the_numbers_is_refused(train):
    common = ("run.gradient_checkpointing=true", "run.steps=2")
    train("averaged", LORA + "[plugins.ema]\n", *common)
    with pytest.raises(InputError, match=r"plugins\.ema was .* and is None"):
        train("averaged", LORA, *common)


def test_resuming_with_more_steps_goes_on(train):
    train("longer", LORA, "run.steps=2", "optimizer.schedule='constant'")
    longer = train("longer", LORA, "run.steps=4", "optimizer.schedule='constant'")
    assert sorted(longer.losses) == [1, 2, 3, 4]
    assert longer.losses == train("at-once", LORA, "run.steps=4", "optimizer.schedule='constant'").losses


def test_a_named_checkpoint_is_taken_up(train):
    first = train("named", LORA + EVERY_TWO, "run.steps=4")
    train("named", LORA + EVERY_TWO, "run.steps=4", resume=str(first.path / "checkpoints" / "step-000002"))
    starts = [event for event in first.events if event["event"] == "start"]
    assert starts[-1]["resumed_from"].endswith("step-000002")
    with pytest.raises(InputError, match="there is no such folder"):
        train("named", LORA, resume="nowhere")


def test_a_default_that_is_spelt_out_is_no_change(train):
    train("spelt", LORA, "run.steps=2")
    assert sorted(train("spelt", LORA, "run.steps=3", "run.seed=0").losses) == [1, 2, 3]


def test_a_new_learning_rate_counts_from_the_resumed_step_on(train):
    settings = ("optimizer.schedule='constant'", "optimizer.warmup=0", "validation.at_start=false", "validation.at_end=false")
    train("slower", LORA, "run.steps=2", *settings)
    slower = train("slower", LORA, "run.steps=4", "optimizer.lr=1e-5", "optimizer.weight_decay=0.5", *settings)
    assert [event["learning_rate"] for event in slower.events if event["event"] == "step"] == [1e-3, 1e-3, 1e-5, 1e-5]
    state = torch.load(slower.path / "checkpoints" / "step-000004" / "training" / "state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


def test_going_on_from_an_older_checkpoint_sets_the_newer_ones_aside(train):
    first = train("branch", LORA + EVERY_TWO, "run.steps=4")
    old = (first.path / "checkpoints" / "step-000004" / "training" / "weights.safetensors").read_bytes()
    train("branch", LORA + EVERY_TWO, "run.steps=4", "loss.type='huber'", resume=str(first.path / "checkpoints" / "step-000002"))
    names = sorted(folder.name for folder in (first.path / "checkpoints").iterdir())
    assert names == ["old-1-step-000004", "step-000002", "step-000004"]
    assert (first.path / "checkpoints" / "old-1-step-000004" / "training" / "weights.safetensors").read_bytes() == old
    assert (first.path / "checkpoints" / "step-000004" / "training" / "weights.safetensors").read_bytes() != old


class Swaps(Plugin[NoSettings]):
    """Halve the weights while they are saved, as an average would swap its own in."""

    stage = Stage.AVERAGE

    @hookimpl(wrapper=True)
    def save_checkpoint(self, run: Run) -> Wrapper[None]:
        """Save halved weights in the pipeline's layout."""
        parameters = [parameter for parameter in run.model.denoiser.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_mul_(parameters, 0.5)
        yield
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
def test_weights_that_a_plugin_swaps_for_saving_are_not_what_a_run_goes_on_from(train, monkeypatch, extra):
    def with_swaps(config):
        return replace(config, plugins={**config.plugins, "swaps": NoSettings()}, classes={**config.classes, "swaps": Swaps})

    monkeypatch.setattr(conftest, "prepared", with_swaps)
    settings = ("validation.at_start=false", "validation.at_end=false", "optimizer.schedule='constant'")
    straight = train("straight", extra, "run.steps=4", *settings)
    train("swapped", extra, "run.steps=2", *settings)
    assert train("swapped", extra, "run.steps=4", *settings).losses == straight.losses


def test_added_pictures_are_said_on_resume(train, tmp_path, pictures, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    train("grown", LORA, "run.steps=2", f"datasets.0.path='{copy}'")
    shutil.copy(copy / "0.png", copy / "9.png")
    shutil.copy(copy / "0.txt", copy / "9.txt")
    told = []
    monkeypatch.setattr(Progress, "message", lambda self, text: told.append(text))
    train("grown", LORA, "run.steps=3", f"datasets.0.path='{copy}'")
    assert any("the data changed since step-000002" in text for text in told)


def test_a_disk_that_refuses_keeps_the_checkpoint_before_and_says_how_to_go_on(train, monkeypatch):
    def refuses(state, path):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")

    train("full", LORA + EVERY_TWO, "run.steps=2")
    monkeypatch.setattr(torch, "save", refuses)
    with pytest.raises(
        RunFailed, match=r"(?s)cannot write .*step-000004.*earlier checkpoints were not touched.*start the same command again"
    ):
        train("full", LORA + EVERY_TWO, "run.steps=4")
    monkeypatch.undo()


def test_a_run_directory_belongs_to_one_process_at_a_time(train, tmp_path):
    first = train("taken", LORA, "run.steps=1")
    with lock(first.path / ".lock"), pytest.raises(InputError, match="another process is running in"):
        train("taken", LORA, "run.steps=2")
    assert sorted(train("taken", LORA, "run.steps=2").losses) == [1, 2]


def test_media_that_a_killed_validation_left_are_no_obstacle(train):
    first = train("left", LORA, "run.steps=2")
    leftover = first.path / "validation" / ".step-000003.new"
    leftover.mkdir()
    (leftover / "red-64x64-seed0.png").write_bytes(b"torn")
    assert list(train("left", LORA, "run.steps=3").pictures(3)) == ["red-64x64-seed0.png"]
    assert not leftover.exists()


def test_a_signal_while_encoding_stops_at_once_and_keeps_what_was_encoded(train, monkeypatch, capsys):
    encode = HookCaller.encode_batch
    asked = []

    def interrupted(self, run, batch):
        asked.append(batch)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, run, batch)

    monkeypatch.setattr(HookCaller, "encode_batch", interrupted)
    stopped = train("early", LORA, "run.steps=2")
    assert len(asked) == 3
    assert stopped.events[-1]["event"] == "end"
    assert not stopped.events[-1]["complete"]
    assert "stopped (SIGTERM) at step 0; the same command goes on from there" in capsys.readouterr().out
    assert sorted(train("early", LORA, "run.steps=2").losses) == [1, 2]


@pytest.mark.parametrize(("module", "name"), [("session", "validate"), ("checkpoints", "_write_manifest")], ids=["validating", "saving"])
def test_signals_after_the_last_step_wait_until_it_is_saved(train, monkeypatch, module, name):
    """Without checkpoints on the way, ending there at once would lose the whole run."""
    settings = ("run.steps=2", "checkpoints.every=false", "validation.at_start=false")
    owner = importlib.import_module(f"tunesmith.{module}")
    interrupted = getattr(owner, name)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return interrupted(*arguments)

    monkeypatch.setattr(owner, name, signalled)
    stopped = train("late", LORA, *settings)
    assert (stopped.path / "checkpoints" / "step-000002" / "manifest.json").is_file()
    assert stopped.events[-1]["event"] == "end"
    assert stopped.events[-1]["complete"]


def test_a_folder_that_is_no_checkpoint_is_told_for_what_it_is(train):
    first = train("wrong", LORA, "run.steps=2")
    with pytest.raises(InputError, match="it is a run directory; name one of the folders in its checkpoints"):
        train("wrong", LORA, resume=str(first.path))
    manifest = first.path / "checkpoints" / "step-000002" / "manifest.json"
    unnamed = manifest.read_text().replace('"bytes"', '"Bytes"', 1)
    for content in ("[]", '{"files": {}}', '{"files": []}', unnamed, ""):
        manifest.write_text(content)
        with pytest.raises(InputError, match="it has no readable manifest"):
            train("wrong", LORA, resume=str(manifest.parent))


def test_a_second_interrupt_stops_at_once_and_leaves_nothing_torn(train, monkeypatch):
    straight = train("straight", LORA + EVERY_TWO)
    from tunesmith.trainer import Trainer

    one_step = Trainer.one_step

    def interrupted(self, batches):
        if self.run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        one_step(self, batches)

    monkeypatch.setattr(Trainer, "one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("twice", LORA + EVERY_TWO)
    monkeypatch.setattr(Trainer, "one_step", one_step)
    assert_same_run(straight, train("twice", LORA + EVERY_TWO), 6)


def test_only_the_newest_checkpoints_are_kept_and_only_after_a_success(train, monkeypatch):
    kept = train("kept", LORA + "[checkpoints]\nevery = 1\nkeep = 2\n")
    assert sorted(folder.name for folder in (kept.path / "checkpoints").iterdir()) == ["step-000005", "step-000006"]

    def refuses(state, path):
        raise RuntimeError("file write failed")

    monkeypatch.setattr(torch, "save", refuses)
    with pytest.raises(RunFailed, match="cannot write"):
        train("kept", LORA + "[checkpoints]\nevery = 1\nkeep = 2\n", "run.steps=8")
    whole = [folder.name for folder in (kept.path / "checkpoints").glob("step-*")]
    assert sorted(whole) == ["step-000005", "step-000006"]
