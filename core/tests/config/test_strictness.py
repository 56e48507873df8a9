"""Settings are taken as they are written, and what names nothing is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunesmith.config import Config, ConfigErrors, load_config
from tunesmith.config.overrides import _value
from tunesmith.config.tables import OptimizerTable
from tunesmith.engine import choose_device

HEAD = '[model]\nfamily = "toyfamily"\n[[datasets]]\npath = "p"\n'
SIZES = """
from typing import Annotated
from pydantic import BaseModel, BeforeValidator

class Edge(BaseModel):
    pixels: int = 1

def in_units(value):
    return float(value.removesuffix("k")) * 1000 if isinstance(value, str) and value.endswith("k") else value

class Sizes(Settings):
    size: Annotated[float, BeforeValidator(in_units)] = 1.0
    '''How large.'''
    parts: tuple[int, ...] = ()
    '''In which parts.'''
    edge: Edge = Edge()
    '''Of what.'''

class Probe(Plugin[Sizes]):
    '''A plugin whose settings know units.'''
    stage = Stage.OBJECTIVE
"""


@pytest.fixture
def read(toy, tmp_path: Path):
    def read(rest: str, *overrides: str) -> Config:
        path = tmp_path / "c.toml"
        path.write_text(HEAD + rest)
        return load_config(path, overrides)

    return read


def refused(read, rest: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        read(rest, *overrides)
    return [str(problem).partition("c.toml:")[2] or str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ('[run]\nsteps = "1"', "6: [run] steps = '1': should be a whole number"),
        ("[run]\nsteps = true", "6: [run] steps = true: should be a whole number"),
        ('[run]\nsteps = 1\ndeterministic = "yes"', "7: [run] deterministic = 'yes': should be true or false"),
        ("[run]\nsteps = 1\ndeterministic = 1", "7: [run] deterministic = 1: should be true or false"),
        (
            '[run]\nsteps = 1\ngradient_checkpointing = "true"',
            "7: [run] gradient_checkpointing = 'true': should be true or false or a whole number",
        ),
        ("[run]\nsteps = 1\ngradient_checkpointing = 1", "7: [run] gradient_checkpointing = 1: should be true or false"),
        ("[run]\nsteps = 1\ncache = 0", "7: [run] cache = 0: should be true or false"),
        ('[run]\nsteps = 1\n[noise]\nshift = "3.0"', "8: [noise] shift = '3.0': should be a number"),
        ('[run]\nsteps = 1\n[optimizer]\nlr_of.toyloss = "1"', "8: [optimizer] lr_of.toyloss = '1': should be a number"),
        ('[run]\nsteps = 1\n[validation]\nseeds = [0, "1"]', "8: [validation] seeds[1] = '1': should be a whole number"),
        ('[run]\nsteps = 1\n[plugins.toyloss]\npattern = ""\nnested.depth = "2"', "9: [plugins.toyloss] nested.depth = '2': should be a"),
        ('[run]\nsteps = 1\noutput = ""', "7: [run] output = '': names nothing; write a path, or take this out"),
        ('[run]\nsteps = 1\n[validation]\nprompts_file = " "', "8: [validation] prompts_file = ' ': names nothing; write a path"),
        ('[run]\nsteps = 1\n[validation]\nscheduler = ""', "8: [validation] scheduler = '': should have 1 or more characters"),
        ('[run]\nsteps = 1\n[[datasets]]\npath = "q"\nfile_column = ""', "9: [[datasets]] file_column = '': should have 1 or more"),
        ("[run]\nsteps = 1\n[optimizer]\nbetas = [0.9]", "8: [optimizer] betas = [0.9]: should be an array of 2 numbers"),
    ],
)
def test_what_is_of_another_kind_or_names_nothing_is_one_mistake_with_its_line(read, rest, message):
    [line] = refused(read, rest)
    assert line.startswith(message)


def test_a_model_that_names_nothing_is_refused(read, tmp_path):
    path = tmp_path / "d.toml"
    path.write_text('[run]\nsteps = 1\n[model]\nfamily = "toyfamily"\nsource = ""\n[[datasets]]\npath = "p"\n')
    with pytest.raises(ConfigErrors, match=r"d\.toml:5: \[model\] source = '': names nothing; write a folder or a Hub id"):
        load_config(path)


def test_it_is_told_beside_the_other_mistakes_of_the_table(read):
    lines = refused(read, '[run]\nsteps = "1"\nseed = -1\ndeterministic = "on"\nprecision = "bf61"')
    assert [line.partition(":")[0] for line in lines] == ["6", "7", "8", "9"]


def test_whole_numbers_are_numbers_and_numbers_without_fractions_are_whole(read):
    config = read("[run]\nsteps = 1e3\n[noise]\nscale = 2\nshift = 3\n")
    assert (config.run.steps, config.noise.scale, config.noise.shift) == (1000, 2.0, 3.0)


def test_a_command_line_has_no_quotes_so_its_text_may_stand_for_numbers_and_flags(read):
    config = read("[run]\nsteps = 1\n", "run.deterministic=True", "run.steps=010", "loss.huber_c=.5", "run.name=True")
    assert (config.run.deterministic, config.run.steps, config.loss.huber_c, config.run.name) == (True, 10, 0.5, "True")
    [line] = refused(read, "[run]\nsteps = 1\n", 'run.deterministic="yes"')
    assert line == "--set run.deterministic=\"yes\": [run] deterministic = 'yes': should be true or false"


def test_a_plugins_own_reading_of_text_is_its_business(read, toy):
    toy.plugin("toysizes", SIZES)
    config = read('[run]\nsteps = 1\n[plugins.toysizes]\nsize = "2k"\nparts = [1, 2.0]\n')
    assert config.plugins["toysizes"].model_dump() == {"size": 2000.0, "parts": (1, 2), "edge": {"pixels": 1}}
    assert refused(read, '[run]\nsteps = 1\n[plugins.toysizes]\nsize = "2"\nparts = [1, true]\nedge = { pixels = true }\n') == [
        "8: [plugins.toysizes] size = '2': should be a number",
        "9: [plugins.toysizes] parts[1] = true: should be a whole number",
        "10: [plugins.toysizes] edge.pixels = true: should be a whole number",
    ]


def test_the_base_is_trained_unless_an_active_plugin_is_an_adapter(read, toy):
    toy.plain("toyadapter", stage="ADAPT")
    assert read("[run]\nsteps = 1\n").trains_base
    assert read("[run]\nsteps = 1\n[plugins.toyadapter]\nenabled = false\n").trains_base
    assert not read("[run]\nsteps = 1\n[plugins.toyadapter]\n").trains_base


def test_the_device_is_told_though_it_is_not_there(read, monkeypatch):
    assert read('[run]\nsteps = 1\ndevice = "cuda:7"\n').device == torch.device("cuda:7")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert read("[run]\nsteps = 1\n").device == choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert read("[run]\nsteps = 1\n").device == choose_device("auto") == torch.device("mps")


@pytest.mark.parametrize(
    ("written", "value"), [("original", "original"), (".5", 0.5), ("False", False), ("'0.5'", "0.5"), ("true", True), ("1", 1)]
)
def test_arguments_from_the_command_line_are_plain_values_that_a_checkpoint_can_hold(written, value):
    table = OptimizerTable.model_validate({"type": "adamw", "odd": _value(written)})
    assert table.arguments == {"odd": value}
    assert type(table.arguments["odd"]) is type(value)
