"""A mistake in the code of a kind is shown with the plugin, the method and the file that it met."""

import pytest

from core.tests.data.clips import ClipFacts, ClipKind, clip, clip_table
from core.tests.data.support import run_table
from tunesmith import InputError
from tunesmith.data.order import Order
from tunesmith.data.scan import survey


def kind_that_breaks(method, folder, error):
    """A kind with a mistake in one method."""

    def broken(*arguments):
        raise error

    broken_method = classmethod(broken) if method == "probe" else broken
    return type("BrokenKind", (ClipKind,), {method: broken_method})(clip_table(folder), ClipFacts())


def use(folder, kind):
    """Do all with a dataset that leads to its kind's methods."""
    dataset = survey(clip_table(folder), ClipFacts(), run_table(1), kind)
    [source, *_] = Order([dataset], 0, cached=False).batch(0)
    dataset.load(source, "pixels")


@pytest.mark.parametrize("method", ["probe", "pieces", "part", "load"])
def test_a_mistake_of_a_kind_names_plugin_method_and_file(tmp_path, method):
    file = clip(tmp_path / "a.clip", 2.0)
    with pytest.raises(ZeroDivisionError) as caught:
        use(tmp_path, kind_that_breaks(method, tmp_path, ZeroDivisionError("a mistake")))
    assert caught.value.__notes__ == [f"in {method} of plugin 'clips', with {file}"]


@pytest.mark.parametrize("method", ["pieces", "part", "load"])
def test_what_a_kind_tells_the_user_is_no_mistake(tmp_path, method):
    clip(tmp_path / "a.clip", 2.0)
    with pytest.raises(InputError) as caught:
        use(tmp_path, kind_that_breaks(method, tmp_path, InputError("the user's")))
    assert not hasattr(caught.value, "__notes__")


def test_every_source_of_a_cache_is_cut_under_the_same_watch(tmp_path):
    file = clip(tmp_path / "a.clip", 2.0)
    dataset = survey(clip_table(tmp_path), ClipFacts(), run_table(1), kind_that_breaks("part", tmp_path, ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError) as caught:
        list(Order([dataset], 0, cached=True).all_sources())
    assert caught.value.__notes__ == [f"in part of plugin 'clips', with {file}"]
