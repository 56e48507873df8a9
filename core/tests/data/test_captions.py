"""Captions: where they come from, and what filters, shuffling and a prefix make of them."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.tests.data.support import Facts, picture, run_table, table
from tunesmith import InputError
from tunesmith.data.captions import Captions, NoCaption
from tunesmith.data.scan import survey


def captions(name: str = "a.png", text: str | None = None, columns: dict[str, Any] | None = None, **settings: Any) -> tuple[str, ...]:
    return Captions(table(Path("somewhere"), **{"captions": "textfile", **settings})).of(name, columns or {}, text)


def surveyed(folder, **settings):
    return survey(table(folder, **{"captions": "textfile", **settings}), Facts(), run_table(1))


def losses(dataset):
    return {lost.reason: lost.examples for lost in dataset.funnel.losses if lost.station == "captioned"}


def test_the_lines_of_a_text_file_are_alternative_captions(tmp_path):
    picture(tmp_path / "a.b.png")
    (tmp_path / "a.b.txt").write_bytes("\ufeff  ein Bär \r\n\n\tzwei Bären\n".encode())
    [sample] = surveyed(tmp_path).samples
    assert sample.captions == ("ein Bär", "zwei Bären")


def test_captions_from_names_read_underscores_as_spaces_and_instances_share_one():
    assert captions("folder.x/a_red_fox.2.png", captions="filename") == ("a red fox.2",)
    assert captions(captions="instance", instance_prompt="a sks fox") == ("a sks fox",)


@pytest.mark.parametrize("kind", ["textfile", "json"])
def test_a_missing_or_undecodable_file_beside_the_sample_says_so(tmp_path, kind):
    ending = {"textfile": ".txt", "json": ".json"}[kind]
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / f"b{ending}").write_bytes(b"\xff\xfea")
    (tmp_path / f"c{ending}").mkdir()
    assert losses(surveyed(tmp_path, captions=kind)) == {
        f"no {ending} file beside it": ["a.png"],
        f"the {ending} file is not UTF-8": ["b.png"],
        f"what has the name of the {ending} file is a folder, pipe or device": ["c.png"],
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [(" \n\n", "the .txt file is empty"), ("", "the .txt file is empty")],
)
def test_an_empty_text_file_is_no_caption(content, reason):
    with pytest.raises(NoCaption, match=reason):
        captions(text=content)


def test_a_json_file_beside_the_sample_holds_a_caption_or_alternatives(tmp_path):
    contents = {"a": {"caption": "one"}, "b": {"text": [" two ", "", "three"]}, "c": {"other": "x"}, "d": ["x"], "e": {"caption": 3}}
    for name, content in contents.items():
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    dataset = surveyed(tmp_path, captions="json")
    assert {sample.name: sample.captions for sample in dataset.samples} == {"a.png": ("one",), "b.png": ("two", "three")}
    assert losses(dataset) == {
        "its .json file has no key 'caption' or 'text'": ["c.png"],
        "the .json file holds no object of keys and values": ["d.png"],
        "its caption in the .json file is no text and no list of texts": ["e.png"],
    }
    with pytest.raises(NoCaption, match=r"the .json file is not valid JSON"):
        captions(text="{", captions="json")
    with pytest.raises(NoCaption, match=r"the .json file is not valid JSON"):
        captions(text="[" * 100_000, captions="json")
    assert captions(text='{"long": "a long one", "caption": "short"}', captions="json", caption_column="long") == ("a long one",)


def test_captions_come_from_a_column_of_the_list(tmp_path):
    picture(tmp_path / "a.png")
    assert losses(surveyed(tmp_path, captions="column")) == {"what lists the files has no column 'caption' or 'text'": ["a.png"]}
    row = {"file": "a.png", "text": "second", "caption": "first", "tags": ["x", "y"]}
    assert captions(columns=row, captions="column") == ("first",)
    assert captions(columns={"text": "only"}, captions="column") == ("only",)
    assert captions(columns=row, captions="column", caption_column="tags") == ("x", "y")
    with pytest.raises(NoCaption, match="what lists the files has no column 'captoin'"):
        captions(columns=row, captions="column", caption_column="captoin")
    for empty in (None, "", math.nan, [], ["  "]):
        with pytest.raises(NoCaption, match="its caption is empty"):
            captions(columns={"caption": empty}, captions="column")
    with pytest.raises(NoCaption, match="no text and no list"):
        captions(columns={"caption": 3}, captions="column")


def test_filters_take_out_texts_and_replace_by_patterns_in_their_order(tmp_path):
    filters = [", watermark", "s/[0-9]+ (bears)/many \\1/", r"s/\//or/", "."]
    assert captions(text="12 bears/cats, watermark.", caption_filter=filters) == ("many bearsorcats",)
    assert captions(text="a.c abc", caption_filter=["a.c"]) == ("abc",)
    (tmp_path / "filter.txt").write_text("one \ns/two/2/\n")
    assert captions(text="one two", caption_filter=tmp_path / "filter.txt") == ("2",)


def test_a_filter_that_is_gone_since_the_config_was_read_is_told(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "filter.txt").write_text("one\n")
    made = table(tmp_path, caption_filter=tmp_path / "filter.txt")
    (tmp_path / "filter.txt").unlink()
    with pytest.raises(InputError, match=r"caption_filter: .*filter.txt is not there"):
        survey(made, Facts(), run_table(1))


def test_a_caption_that_the_filter_empties_is_told(tmp_path):
    for name, text in {"a": "spam\nham", "b": "spam", "c": "ham"}.items():
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    dataset = surveyed(tmp_path, caption_filter=["spam"], caption_prefix="some")
    assert {sample.name: sample.captions for sample in dataset.samples} == {"a.png": ("some ham",), "c.png": ("some ham",)}
    assert losses(dataset) == {"caption_filter leaves nothing of its caption": ["b.png"]}
    assert dataset.funnel.notes == ["caption_filter leaves nothing of a caption of 1 samples, which keep their other captions (a.png)"]


def test_the_prefix_comes_before_every_caption_with_one_space():
    assert captions(text="a\nb", caption_prefix="sks,") == ("sks, a", "sks, b")
    assert captions(text="a", caption_prefix="sks ") == ("sks a",)


def test_shuffling_keeps_the_head_and_all_parts_and_never_doubles_a_caption():
    made = captions(text="x, a, b, c", caption_shuffle={"keep": 1, "variants": 100})
    every = {", ".join(("x", *rest)) for rest in permutations("abc")}
    assert made[0] == "x, a, b, c"
    assert len(made) == len(set(made))
    assert set(made) == every  # a hundred draws of six orders leave one out with a chance of one in ten million


def test_a_shuffle_is_a_function_of_the_caption_alone():
    how = {"variants": 3, "original": False}
    text = ", ".join("abcdefghij")
    alone = captions(text=text, caption_shuffle=how)
    assert len(alone) == 3
    assert text not in alone
    assert captions("other.jpg", text=f"{text}\nk, l", caption_shuffle=how)[:3] == alone
    assert captions(text=text, caption_shuffle={"variants": 5, "original": False})[:3] == alone
    assert captions(text=text + ", k", caption_shuffle=how)[0].replace(", k", "").replace("k, ", "") != alone[0]


def test_shuffled_parts_are_joined_as_the_caption_joins_them():
    def shuffle(text: str, separator: str) -> set[str]:
        return set(captions(text=text, caption_shuffle={"separator": separator, "variants": 40}))

    assert shuffle("a,b", ",") == {"a,b", "b,a"}
    assert shuffle("a b", " ") == {"a b", "b a"}
    assert shuffle("one. two", ".") == {"one. two", "two. one"}


def test_what_cannot_be_shuffled_stays_as_it_is():
    for text in ("alone", "head, tail"):
        assert captions(text=text, caption_shuffle={"keep": 1, "original": False, "variants": 5}) == (text,)


def test_the_prefix_is_not_shuffled():
    made = captions(text="a, b, c", caption_shuffle={"variants": 20}, caption_prefix="sks,")
    assert len(made) > 1
    assert all(text.startswith("sks, ") for text in made)


def test_a_column_without_a_use_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="goes with"):
        table(tmp_path, captions="textfile", caption_column="x")
