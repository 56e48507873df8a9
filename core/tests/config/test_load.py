"""A config is read whole: what is right comes typed, and all that is wrong is told at once, each with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config import Config, ConfigErrors, load_config

from ..conftest import Installation

GOOD = """\
[run]
steps = 10

[model]
family = "toyfamily"

[[datasets]]
path = "pictures"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / "myrun" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def told(path: Path, *overrides: str) -> list[str]:
    """Every problem as text, with the folder cut off."""
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, overrides)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).splitlines()]


def the_one(path: Path, *overrides: str) -> str:
    [line] = told(path, *overrides)
    return line


def test_a_small_config_gets_every_default(toy, write):
    config = load_config(write(GOOD))
    assert isinstance(config, Config)
    assert (config.run.steps, config.run.batch_size, config.run.precision) == (10, 1, "bf16")
    assert (config.optimizer.type, config.noise.distribution, config.loss.type) == ("adamw", "logit_normal", "l2")
    assert config.family == "toyfamily"
    assert config.model.variant == "small"  # type: ignore[attr-defined]
    assert config.plugins == {}
    assert config.order == ("toyfamily",)
    assert config.prompts == {}
    assert config.text == GOOD
    assert config.data == {"run": {"steps": 10}, "model": {"family": "toyfamily"}, "datasets": [{"path": "pictures"}]}


def test_paths_are_relative_to_the_config_and_datasets_take_their_folders_name(toy, write):
    path = write(GOOD.replace('"pictures"', '"../my pictures"'))
    [dataset] = load_config(path).datasets
    assert dataset.path == str(path.parent / "../my pictures")
    assert dataset.name == "my-pictures"


@pytest.mark.parametrize(("file", "extra", "name"), [("config.toml", "", "myrun"), ("a b.toml", "", "a-b"), ("x.toml", 'name = "y"', "y")])
def test_the_name_of_the_run(toy, write, file, extra, name):
    assert load_config(write(GOOD.replace("steps = 10", f"steps = 10\n{extra}"), file)).run_name == name


def test_plugins_are_imported_only_when_their_table_is_there_and_on(toy, write):
    load_config(write(GOOD))
    assert toy.imported() == {"acme_toyfamily_module"}
    off = "[plugins.toyloss]\nenabled = false\nweight = 'heavy'\nwieght = 1\n"
    assert load_config(write(GOOD + off)).plugins == {}
    assert toy.imported() == {"acme_toyfamily_module"}
    on = "[plugins.toyloss]\nenabled = true\npattern = '.*'\n"
    config = load_config(write(GOOD + on))
    assert config.plugins["toyloss"].pattern == ".*"  # type: ignore[attr-defined]
    assert list(config.classes) == ["toyfamily", "toyloss"]
    assert config.order == ("toyfamily", "toyloss")


def test_ten_mistakes_are_ten_lines_each_with_its_own(toy, write):
    toy.plain("toyneedy", body="requires = ('preview',)")
    text = """\
[run]
steps = 0
precision = "bf61"

[model]
family = "toyfamilly"

[optimizer]
lr = -1
betaz = [0.9, 0.99]

[[datasets]]
path = "a"
repeats = 1.5

[plugins.toyloss]
pattern = "x"
wieght = 2
block = "four"

[plugins.toyneedy]

[toyloss]
"""
    assert told(write(text)) == [
        "config.toml:2: [run] steps = 0: should be at least 1",
        "config.toml:3: [run] precision = 'bf61': should be 'no', 'bf16' or 'fp16'; did you mean 'bf16'?",
        "config.toml:6: [model] no plugin named 'toyfamilly' is installed; did you mean 'toyfamily'?",
        "config.toml:9: [optimizer] lr = -1: should be greater than 0",
        "config.toml:10: [optimizer] unknown setting of adamw 'betaz'; did you mean 'betas'?",
        "config.toml:14: [[datasets]] repeats = 1.5: should be a whole number",
        "config.toml:18: [plugins.toyloss] unknown setting 'wieght'; did you mean 'weight'?",
        "config.toml:19: [plugins.toyloss] block = 'four': should be a whole number",
        "config.toml:21: [plugins.toyneedy] plugin 'toyneedy' requires [plugins.preview]",
        "config.toml:23: [toyloss] unknown table [toyloss]; plugin tables are written [plugins.toyloss]",
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "16: [plugins.toyloss] missing setting 'pattern': Which names, as a pattern."),
        ("pattern = 3", "17: [plugins.toyloss] pattern = 3: should be text in quotes"),
        ("pattern = ''\nweight = 2.5", "18: [plugins.toyloss] weight = 2.5: should be at most 2"),
        ("pattern = ''\nweight = nan", "18: [plugins.toyloss] weight = nan: should be a finite number"),
        ("pattern = ''\nweight = true", "18: [plugins.toyloss] weight = true: should be a number"),
        ("pattern = ''\nkind = 'naer'", "18: [plugins.toyloss] kind = 'naer': should be 'near' or 'far'; did you mean 'near'?"),
        ("pattern = ''\nkind = ['near']", "18: [plugins.toyloss] kind = ['near']: should be 'near' or 'far'"),
        ("pattern = ''\nnested.depht = 1", "18: [plugins.toyloss] unknown setting 'depht'; did you mean 'depth'? in nested"),
        ("pattern = ''\nnested.depth = 0", "18: [plugins.toyloss] nested.depth = 0: should be at least 1"),
        ("pattern = ''\nnested = 1", "18: [plugins.toyloss] nested = 1: should be a table"),
        ("pattern = ''\nnested.depth = true", "18: [plugins.toyloss] nested.depth = true: should be a whole number"),
        ("pattern = ''\nenabled = 1", "18: [plugins.toyloss] enabled = 1: should be true or false"),
        ("pattern = ''\nfile = '~nobody-of-that-name/x'", "there is no such user, whose home this would be"),
        ('pattern = ""\nfile = "\\u0000"', "a path cannot hold a NUL character"),
    ],
)
def test_what_is_wrong_with_a_plugins_settings(toy, write, table, message):
    path = write(GOOD + "\n" * 7 + f"[plugins.toyloss]\n{table}\n")
    assert message in the_one(path)


SHIFT = "should be 'checkpoint', 'none' or 'auto'"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 10", "", "1: [run] give the length of the run as either steps or epochs"),
        ("steps = 10", "steps = 10\nepochs = 1", "1: [run] give the length of the run as either steps or epochs, not both"),
        ("steps = 10", "steps = 10\nname = 'a/b'", "3: [run] name = 'a/b': it becomes a file name: use up to 100 letters"),
        ("steps = 10", "steps = 10\nname = 'con.1'", "3: [run] name = 'con.1': it becomes a file name, and Windows keeps this one"),
        ("steps = 10", "steps = 10\nname = 'a.'", "3: [run] name = 'a.': it becomes a file name, and these cannot end with a dot"),
        ("steps = 10", "steps = 10\nseed = -1", "3: [run] seed = -1: should be at least 0"),
        ('family = "toyfamily"', "", "4: [model] missing setting 'family'"),
        ('family = "toyfamily"', "family = 3", "5: [model] family = 3: should be the name of a plugin"),
        ('family = "toyfamily"', 'family = "toyloss"', "5: [model] plugin 'toyloss' is no model family"),
        ('family = "toyfamily"', 'family = "core"', "5: [model] 'core' is the name of the core's own part"),
        ('family = "toyfamily"', 'family = "toyfamily"\nvariant = "smal"', "6: [model] variant = 'smal': should be 'small' or 'large'"),
        ('family = "toyfamily"', 'family = "toyfamily"\n[plugins.toyfamily]', "6: [plugins.toyfamily] is the model family, whose settings"),
        ("[[datasets]]", "[datasets]", "7: [[datasets]] should stand in double brackets"),
        ('path = "pictures"', "", "7: [[datasets]] give either `path` or `source`, to say where the"),
        ('path = "pictures"', 'path = "p"\ncaptions = "instance"', '7: [[datasets]] `captions = "instance"` and `instance_prompt`'),
        ('path = "pictures"', 'path = "p"\n[[datasets]]\npath = "q/P"', "9: [[datasets]] name 'P' is taken by dataset number 1"),
        ('path = "pictures"', 'path = "p"\n[noise]\nshift = "atuo"', f"10: [noise] shift = 'atuo': {SHIFT} or a number; did"),
        ('path = "pictures"', 'path = "p"\n[noise]\nshift = -1', f"10: [noise] shift = -1: {SHIFT} or greater than 0"),
        ('path = "pictures"', 'path = "p"\n[optimiser]\nlr = 1', "9: [optimiser] unknown table; did you mean [optimizer]?"),
        (
            'path = "pictures"',
            'path = "p"\n[zzz]\nlr = 1',
            "9: [zzz] unknown table; a plugin's is written [plugins.zzz], the core's are run, no",
        ),
        ("[run]", "[validation.prompts]\n'../x' = 'a'\n[run]", "2: [validation] prompts: name '../x': it becomes a file name: use up to"),
        ("[run]", "[validation]\nseeds = [-1]\n[run]", "2: [validation] seeds[0] = -1: should be at least 0"),
        ("[run]", "[validation]\nseeds = []\n[run]", "2: [validation] seeds = []: should have 1 or more entries"),
        ("[run]", "[validation]\nprompts.cat = 3\n[run]", "2: [validation] prompts.cat = 3: should be text in quotes"),
        (
            "[run]",
            "[validation]\nresolutions = ['1x1', '2']\n[run]",
            "2: [validation] resolutions[1] = '2': should be WIDTHxHEIGHT in pixels",
        ),
        ("[run]", "lr = 1\n[run]", "1: setting 'lr' is outside of any table; it belongs below [optimizer]"),
        ("[run]", "blah = 1\n[run]", "1: setting 'blah' is outside of any table; settings stand below a table"),
        ("[run]", "noise = 3\n[run]", "1: [noise] 3 stands where a table should be; write [noise] and its settings below it"),
        ("[run]", "validation = []\n[run]", "1: [validation] [] stands where a table should be"),
        ("[run]", "plugins = 'x'\n[run]", "1: [plugins] 'x' stands where tables should be"),
        ("[run]", "plugins.toyloss = true\n[run]", "1: [plugins.toyloss] true stands where a table should be; write [plugins.toyloss]"),
        ("[run]", "plugins.core = {}\n[run]", "1: [plugins.core] 'core' is the name of the core's own part"),
    ],
)
def test_what_is_wrong_with_the_cores_tables(toy, write, old, new, message):
    assert f"config.toml:{message}" in the_one(write(GOOD.replace(old, new, 1)))


def test_an_empty_file_names_what_is_missing(toy, write):
    assert told(write("")) == [
        "config.toml: [run] give the length of the run as either steps or epochs",
        'config.toml: [model] missing table; write [model] with family = "..."',
        'config.toml: [[datasets]] missing table; write [[datasets]] with path = "..." for each dataset',
    ]


@pytest.mark.parametrize("name", ["run", "model", "datasets", "noise", "plugins"])
@pytest.mark.parametrize("value", ["3", "true", "'x'", "[1]", "1979-05-27", "[[]]", "{ x = {} }"])
def test_a_wrong_type_for_a_whole_table_is_a_problem_and_no_crash(toy, write, name, value):
    assert all(line.startswith("config.toml") for line in told(write(f"{name} = {value}\n")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run]\nsteps = \xff\n", ":2: is not UTF-8 text"),
        (b"[run\nsteps = 1\n", ":1: is not valid TOML at column 5: Expected ']'"),
        (b"[run]\nsteps = 1\nsteps = 2\n", ":3: is not valid TOML at column 10: Cannot overwrite a value"),
        (b"[run]\nx = '''\n", ":2: is not valid TOML at the end of the file"),
        (b"x = " + b"[" * 100_000, ": is nested too deeply"),
        (b"x = " + b"1" * 10_000, ": is not valid TOML: Exceeds the limit"),
        (b"a = \x00", ":1: is not valid TOML"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(toy, tmp_path, content, message):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    assert the_one(path).startswith(f"x.toml{message}")


def test_files_that_cannot_be_read(tmp_path):
    assert the_one(tmp_path / "none.toml") == "none.toml: there is no such file"
    assert the_one(tmp_path).endswith(": is a folder; name the config file in it")
    assert "embedded null byte" in the_one(tmp_path / "a\0b")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(toy, tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("steps = 10", "stepz = 10").replace("\n", "\r\n").encode())
    assert the_one(path) == "x.toml:2: [run] unknown setting 'stepz'; did you mean 'steps'?"


TEXTS = ["", "x", "toyloss", "toyfamily", "adamw", "../x", "\x1b[31m"]
NAMES = ["path", "prompts", "type", "enabled", ""]
JUNK = st.recursive(
    st.one_of(st.integers(-3, 3), st.booleans(), st.sampled_from(TEXTS), st.just(0.5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=4,
)
KEYS = [
    *("run.steps", "run.name", "model.family", "model.source", "datasets", "noise.shift", "optimizer.type", "optimizer.betas"),
    *("plugins", "plugins.toyloss", "plugins.toyloss.file", '""', "x.y"),
    *("validation.prompts", "validation.seeds", "validation.prompts_file"),
]


def inline(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {inline(one)}" for name, one in value.items()) + "}"
    return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else json.dumps(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KEYS), JUNK), min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
def test_no_nonsense_crashes_the_reader(toy, write, pairs):
    path = write(GOOD)
    caught = ""
    try:
        load_config(path, [f"{key}={inline(value)}" for key, value in pairs])
    except ConfigErrors as error:
        caught = str(error)
    assert all(line.startswith((str(path), "--set ")) for line in caught.splitlines())
    assert "\x1b" not in caught


def test_later_stages_can_point_at_lines(toy, write):
    config = load_config(write(GOOD + "\n[plugins.toyloss]\npattern = 'x'\n"), ["plugins.toyloss.weight=2"])
    assert config.source.place(("plugins", "toyloss", "pattern"))[1] == 11
    assert config.source.place(("datasets", 0, "crop"))[1] == 7  # not given: its table
    assert config.source.place(("checkpoints", "every"))[1] is None
    assert str(config.problem(("datasets", 0, "path"), "no such folder")) == f"{config.path}:8: [[datasets]] no such folder"
    assert str(config.problem(("plugins", "toyloss", "weight"), "too much")) == "--set plugins.toyloss.weight=2: [plugins.toyloss] too much"


def test_the_schema_accepts_what_the_reader_accepts_and_names_every_setting(toy):
    from tunesmith.config import schema

    made = schema(["toyfamily", "toyloss"])
    assert set(made["properties"]) == {"run", "noise", "loss", "optimizer", "checkpoints", "validation", "datasets", "model", "plugins"}
    loss = made["properties"]["plugins"]["properties"]["toyloss"]
    assert set(loss["properties"]) == {"enabled", "weight", "block", "kind", "pattern", "file", "nested"}
    assert loss["required"] == ["pattern"]
    [family] = made["properties"]["model"]["oneOf"]
    assert family["properties"]["family"] == {"const": "toyfamily"}
    assert family["additionalProperties"] is False
    assert json.loads(json.dumps(made)) == made
    references = [part.split('"')[0] for part in json.dumps(made).split('"#/$defs/')[1:]]
    assert set(references) <= set(made["$defs"])


def test_two_readings_share_nothing(toy, write):
    path = write(GOOD)
    first, second = load_config(path, ["run.steps=3"]), load_config(path)
    assert (first.run.steps, second.run.steps) == (3, 10)
    assert first.overrides == ("run.steps=3",)


def test_installation_is_where_the_test_says(installation: Installation):
    assert installation.imported() == set()


def test_rules_over_several_settings_are_told_beside_unknown_names(toy, write):
    found = told(write(GOOD.replace("steps = 10", "steps = 10\nepochs = 1\nseeed = 1")))
    assert any("unknown setting 'seeed'" in line for line in found)
    assert any("steps or epochs, not both" in line for line in found)


def test_a_misspelt_setting_is_one_mistake_not_two(toy, write):
    assert "did you mean 'steps'" in the_one(write(GOOD.replace("steps", "stepz")))
