"""Ways to spoil a config: as text, by keys and values, and on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypothesis import strategies as st

BASE = """\
# a config with every table
[run]
name = "fuzz"
output = "runs"
steps = 6
seed = 1
batch_size = 2
gradient_accumulation = 1
gradient_checkpointing = false
precision = "no"
weights = "fp32"
device = "cpu"
deterministic = false
cache = true
cache_dir = "cache"
log_every = 1

[model]
family = "sana"
path = "twin"
complex_human_instruction = false
text_encoder_dtype = "auto"

[noise]
distribution = "logit_normal"
scale = 1.0
offset = 0.0
shift = "auto"

[loss]
type = "huber"
huber_c = 0.1

[optimizer]
type = "adamw"
lr = 1e-3
schedule = "cosine"
warmup = 2
betas = [0.9, 0.99]
weight_decay = 0.01
clip_norm = 1.0

[[datasets]]
path = "pictures"
resolution = 64
resolution_type = "pixel_area"
bucket_rounding = 2
caption_dropout = 0.3
crop = "random"
variants = 2
repeats = 1
oversubscribe = false

[[datasets]]
name = "again"
path = "pictures"
captions = "instance"
instance_prompt = "a square"
resolution = 64
batch_size = 1

[checkpoints]
every = 3
keep = 2

[validation]
prompts = { red = "a red square", blue = 'a blue one' }
prompts_file = "prompts.json"
resolutions = ["64x64", "64x96"]
seeds = [0, 1]
steps = 2
scheduler = "DPMSolverMultistepScheduler"

[plugins.lora]
rank = 4
alpha = 8
dropout = 0.1
"""

SETTINGS = re.findall(r"^([a-z_]+) = (.*)$", BASE, re.MULTILINE)
TABLES = re.findall(r"^\[+(.*?)\]+$", BASE, re.MULTILINE)
VALUES = [
    *("true", "false", "0", "1", "-1", "2", "1e400", "-1e400", "nan", "inf", "-0.0", "1e-320", "1e308", "0x7fffffffffffffff"),
    *("0b1", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1000000000000", "1" + "0" * 400),
    *("9" * 5000, "1_000", "0.5", '""', '"x"', "''", '"a/b"', '"."', '".."', '"pictures"', '"twin"', '"prompts.json"'),
    *('"broken.json"', '"nested/deep"', '"fuzz.toml"', '"\\u0000"', '"a\\u0000b"', '"\\u202e\\u200b"', '"\\n"'),
    *('"\\t\\u001b[31m"', '"\U0001f6d1"', '"e\\u0301"', '"CON"', '"a:b"', '"%s {0}"', f'"{"x" * 300}"', f'"{"a/" * 3000}b"'),
    *('"torch.optim.LBFGS"', '"torch.optim.Optimizer"', '"torch.nn.Linear"', '"a.b"', '".a"', '"a."', '"lbfgs"', '"sgd"'),
    *('"muon"', '"adafactor"', '"cuda:9"', '"meta"', '"mps"', '"cuda:x"', '"fp16"', '"bf16"', '"auto"', '"beta"', '"none"'),
    *('"99999x99999"', '"1x1"', '"0x0"', "[]", "[[]]", "[1, 'a', true]", "[0.9]", "[-1, 2]", "[{}]", "{}", "{a = 1}"),
    *("{a = {b = []}}", "{red = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "[" * 200 + "]" * 200, '"""\na\n"""'),
    *("'''\\'''", "", "=", "[", "{", '"', "#", "\\", '{"" = ""}', '{"\\u0000" = "x"}', '{"a/b" = "x"}', '{"CON" = "x"}'),
    *('{RED = "x", red = "y"}', "[1.5, 2]", "[true]", "[9223372036854775808]", "1000001", "65537", "1e6", '"sana"', '"lora"'),
    *('"core"', '"nobody"', '"instance"', '"filename"', '"area"', '"pixel"', '"square"'),
]
"""TOML values, and what is none, that settings were not made for."""
SNIPPETS = [
    *("\x00", "\r", "\r\n", "\t", "\ufeff", "\u2028", "\x1b", "\u202e", "\U0001f409", '"', "'", '"""', "[", "]]", "{", "}"),
    *("=", ".", ",", "#"),
]
KEYS = [
    *("", '""', '"\\u0000"', "a.b.c", "enabled", "family", "name", "'x y'", "ключ", '"ключ"', "params", "lr", "self"),
    *("foreach", "fused", "-", "1"),
]

CHARACTERS = st.characters(exclude_categories=["Cs"])
"""Any that a file can hold."""


@st.composite
def configs(draw: st.DrawFn) -> str:
    """The base, spoilt one to three times."""
    text = BASE
    for _ in range(draw(st.integers(1, 3))):
        text = draw(st.sampled_from(SPOILS))(draw, text)
    return text


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """A `--set`, right or wrong."""
    table, (key, value) = draw(st.sampled_from([*TABLES, "datasets.0", "datasets.7", "", "x"])), draw(st.sampled_from(SETTINGS))
    value = draw(st.sampled_from([value, *VALUES]))
    odd = [f"{key}={value}", f"{table}={value}", f"{table}.{key}", "", "=", f"{table}.{key}=\udcff"]
    made = draw(st.sampled_from([*[f"{table}.{key}={value}"] * 4, *odd]))
    return made if draw(st.integers(0, 5)) else draw(st.text(CHARACTERS, max_size=30))


def _insert(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(SNIPPETS) | st.text(CHARACTERS, max_size=5)) + text[at:]


def _delete(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + text[at + draw(st.integers(1, 40)) :]


def _truncate(draw: st.DrawFn, text: str) -> str:
    return text[: draw(st.integers(0, len(text)))]


def _duplicate_line(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)))
    return "\n".join(lines)


def _delete_line(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    del lines[draw(st.integers(0, len(lines) - 1))]
    return "\n".join(lines)


def _duplicate_part(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    part = text[at : at + draw(st.integers(1, 400))]
    to = draw(st.integers(0, len(text)))
    return text[:to] + part + text[to:]


def _change_setting(draw: st.DrawFn, text: str) -> str:
    key, value = draw(st.sampled_from(SETTINGS))
    new_key = key if draw(st.integers(0, 3)) else draw(st.sampled_from([*KEYS, *(one for one, _ in SETTINGS)]))
    new_value = draw(st.sampled_from([*VALUES, *(one for _, one in SETTINGS)]))
    return text.replace(f"\n{key} = {value}\n", f"\n{new_key} = {new_value}\n", 1)


def _change_value(draw: st.DrawFn, text: str) -> str:
    key, value = draw(st.sampled_from(SETTINGS))
    return text.replace(f"\n{key} = {value}\n", f"\n{key} = {draw(st.sampled_from(VALUES))}\n", 1)


def _change_number(draw: st.DrawFn, text: str) -> str:
    key, value = draw(st.sampled_from(SETTINGS))
    number = draw(st.integers() | st.floats() | st.integers(0, 10**30))
    return text.replace(f"\n{key} = {value}\n", f"\n{key} = {number}\n", 1)


def _change_table(draw: st.DrawFn, text: str) -> str:
    table = draw(st.sampled_from(TABLES))
    other = draw(st.sampled_from([*TABLES, "datasets.x", "plugins.nobody", "plugins", "plugins.sana", "run.run", "x", '""', "model.x"]))
    before, after = draw(st.sampled_from([("[", "]"), ("[[", "]]")]))
    return re.sub(rf"^\[+{re.escape(table)}\]+$", lambda match: f"{before}{other}{after}", text, count=1, flags=re.MULTILINE)


SPOILS: list[Callable[[st.DrawFn, str], str]] = [
    *(_insert, _delete, _truncate, _duplicate_line, _delete_line, _duplicate_part),
    *(_change_setting, _change_table, _change_number, *[_change_value] * 4),
]
