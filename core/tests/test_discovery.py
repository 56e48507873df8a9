"""Plugins are found by metadata alone, and exactly the one that is asked for is imported."""

from __future__ import annotations

import pytest

from tunesmith.discovery import InstalledPlugin, catalogue, installed, load_class
from tunesmith.errors import InputError


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_class(name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_listing_reads_metadata_sorted_and_imports_nothing(installation):
    installation.plain("zulu")
    installation.plain("yankee")
    found = installed()
    assert list(found) == sorted(found)
    assert found["zulu"] == [InstalledPlugin("zulu", "acme-zulu", "1.0", "About acme-zulu.", "acme_zulu_module:Probe")]
    assert installation.imported() == set()


def test_exactly_one_plugin_is_imported(installation):
    installation.plain("zulu")
    installation.plain("yankee")
    assert load_class("zulu").__name__ == "Probe"
    assert installation.imported() == {"acme_zulu_module"}


def test_a_name_that_is_not_installed_gets_the_nearest_that_is(installation):
    installation.plain("zulu")
    assert refusal("zuluu") == "no plugin named 'zuluu' is installed; did you mean 'zulu'?"


def test_a_pip_hint_is_given_for_the_official_catalogue_only(installation):
    installation.distribution("tunesmith", "9.9", extras=("whiskey", "two-words"))
    assert catalogue() == {"whiskey": "whiskey", "two_words": "two-words"}
    assert refusal("whiskey") == "no plugin named 'whiskey' is installed; try: pip install 'tunesmith[whiskey]'"
    assert refusal("two_words") == "no plugin named 'two_words' is installed; try: pip install 'tunesmith[two-words]'"
    assert refusal("whisky") == "no plugin named 'whisky' is installed; did you mean 'whiskey'? try: pip install 'tunesmith[whiskey]'"
    assert "pip install" not in refusal("qqq")


def test_two_distributions_with_one_name_are_told_only_when_it_is_used(installation):
    installation.plugin("zulu", "", "acme-zulu", "1.0")
    installation.plugin("zulu", "", "other-zulu", "2.0")
    installation.plain("yankee")
    assert [one.distribution for one in installed()["zulu"]] == ["acme-zulu", "other-zulu"]
    assert load_class("yankee")
    assert refusal("zulu") == "plugin 'zulu' is provided by acme-zulu 1.0 and other-zulu 2.0; uninstall all but one"


def test_a_second_copy_of_one_distribution_further_down_the_path_does_not_count(installation, tmp_path, monkeypatch):
    installation.plain("zulu")
    copy = tmp_path / "copy" / "Acme.Zulu-0.9.dist-info"
    copy.mkdir(parents=True)
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: Acme.Zulu\nVersion: 0.9\n")
    (copy / "entry_points.txt").write_text("[tunesmith]\nzulu = x:y\n")
    monkeypatch.syspath_prepend(str(tmp_path / "copy"))
    [plugin] = installed()["zulu"]
    assert plugin.version == "0.9"


@pytest.mark.parametrize(
    ("source", "target", "cause"),
    [
        ("import absent_", "Probe", "is installed but cannot be imported: ModuleNotFoundError: No module named 'absent_' ("),
        ("raise RuntimeError('two\\nlines')", "Probe", "is installed but cannot be imported: RuntimeError: two lines ("),
        ("def broken(:", "Probe", "is installed but cannot be imported: SyntaxError: invalid syntax"),
        ("x = 1", "Probe", "is installed but cannot be imported: AttributeError: "),
        ("x = 1", "", "is installed but cannot be imported: "),
        ("x = 1", "x", "is installed but cannot be used: 1 is not a subclass of tunesmith.Plugin"),
    ],
)
def test_installed_but_broken_is_told_apart_from_not_found(installation, source, target, cause):
    installation.plugin("zulu", source, target=target)
    assert refusal("zulu").startswith(f"plugin 'zulu' (acme-zulu 1.0) {cause}")


@pytest.mark.parametrize("text", ["garbage", "[tunesmith]\nno value\n", "[tunesmith", "[other]\nx\n", "[tunesmith]\n= y\n", "\0", "[]"])
def test_broken_metadata_of_another_project_does_no_harm(installation, text):
    installation.plain("zulu")
    installation.distribution("stranger", entry_points=text)
    (installation.folder / "empty-1.dist-info").mkdir()
    assert load_class("zulu")


def test_metadata_without_a_name_is_shown_as_unknown(installation):
    info = installation.distribution("x", entry_points="[tunesmith]\nzulu = a:b\n")
    (info / "METADATA").write_text("")
    assert installed()["zulu"] == [InstalledPlugin("zulu", "unknown", "unknown", "", "a:b")]
