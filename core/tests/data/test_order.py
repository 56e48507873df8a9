"""Which samples come when: a pure function of the position."""

import time
from collections import Counter
from itertools import pairwise

import pytest

from core.tests.data.support import Facts, ordered, pictures, run_table, scanned, table
from tunesmith import Caption, InputError
from tunesmith.data.dataset import Dataset, Sample
from tunesmith.data.funnel import Funnel
from tunesmith.data.geometry import Target
from tunesmith.data.order import Draw, Order
from tunesmith.data.pictures import ImageKind
from tunesmith.data.scan import survey
from tunesmith.data.segments import Lane, segments_of
from tunesmith.kinds import Piece, Probe


def files(order, epoch):
    """How often each file comes in an epoch."""
    size = order.batches_per_epoch
    return Counter(source.file.name for position in range(epoch * size, (epoch + 1) * size) for source in order.batch(position))


def mixed(folder, **settings):
    """Two datasets of two shapes each."""
    for name in ("first", "second"):
        pictures(folder / name, 5)
        pictures(folder / name, 4, (64, 16), "wide")
    one = survey(table(folder / "first", batch_size=2, **settings), Facts(), run_table())
    two = survey(table(folder / "second", batch_size=3, **settings), Facts(), run_table())
    return [one, two]


def test_a_batch_depends_on_its_position_and_on_no_history(tmp_path):
    datasets = mixed(tmp_path, crop="random", caption_dropout=0.5)
    forwards = Order(datasets, 7, cached=True)
    positions = range(4 * forwards.batches_per_epoch)
    expected = [forwards.batch(position) for position in positions]
    backwards = Order(datasets, 7, cached=True)
    assert [backwards.batch(position) for position in reversed(positions)] == expected[::-1]
    assert Order(mixed(tmp_path, crop="random", caption_dropout=0.5), 7, cached=True).batch(13) == expected[13]


def test_every_batch_is_whole_and_of_one_dataset_and_one_size(tmp_path):
    order = Order(mixed(tmp_path), 0, cached=True)
    assert order.batches_per_epoch == 2 + 2 + 1 + 1
    for position in range(3 * order.batches_per_epoch):
        batch = order.batch(position)
        [dataset] = {source.dataset for source in batch}
        assert len({source.crop.size for source in batch}) == 1
        assert len(batch) == {"first": 2, "second": 3}[dataset]
        assert order.epoch_of(position) == position // 6


def test_an_epoch_sees_every_sample_as_often_as_it_repeats(tmp_path):
    pictures(tmp_path, 6)
    for repeats in (1, 3):
        order = ordered(tmp_path, batch_size=3, repeats=repeats)
        assert files(order, 0) == files(order, 5) == {f"{number:02}.png": repeats for number in range(6)}


def test_epochs_differ_in_order_and_in_what_is_left_over(tmp_path):
    pictures(tmp_path, 5)
    order = ordered(tmp_path, batch_size=2)
    epochs = [[source.file for position in (2 * epoch, 2 * epoch + 1) for source in order.batch(position)] for epoch in range(12)]
    assert len({tuple(epoch) for epoch in epochs}) > 8
    left_over = Counter(number for epoch in range(12) for number in range(5) if f"{number:02}.png" not in files(order, epoch))
    assert sum(left_over.values()) == 12
    assert len(left_over) > 2


def test_batches_of_all_buckets_are_shuffled_together(tmp_path):
    order = Order(mixed(tmp_path), 0, cached=True)
    arrangements = {tuple(order.batch(6 * epoch + number)[0].dataset for number in range(6)) for epoch in range(10)}
    assert len(arrangements) > 4


def test_seeds_give_different_orders(tmp_path):
    pictures(tmp_path, 8)
    first, second = ([ordered(tmp_path, seed=seed).batch(position) for position in range(4)] for seed in (1, 2))
    assert first != second


def test_oversubscription_fills_a_batch_as_evenly_as_it_goes(tmp_path):
    pictures(tmp_path, 3)
    order = ordered(tmp_path, batch_size=8, oversubscribe=True)
    assert order.batches_per_epoch == 1
    for epoch in range(5):
        assert sorted(files(order, epoch).values()) == [2, 3, 3]


def test_oversubscription_leaves_large_buckets_alone(tmp_path):
    pictures(tmp_path, 5)
    order = ordered(tmp_path, batch_size=2, oversubscribe=True)
    assert order.batches_per_epoch == 2
    assert max(files(order, 0).values()) == 1


def test_captions_are_drawn_anew_for_each_sample_and_epoch(tmp_path):
    pictures(tmp_path, 2)
    for file in tmp_path.glob("*.png"):
        file.with_suffix(".txt").write_text(f"{file.stem} one\n{file.stem} two\n")
    order = ordered(tmp_path, captions="textfile")
    drawn = Counter(source.caption.text for epoch in range(100) for source in order.batch(epoch))
    assert set(drawn) == {"00 one", "00 two", "01 one", "01 two"}
    assert min(drawn.values()) > 30
    assert set(order.all_captions()) == {Caption(text) for text in drawn}


def test_caption_dropout_empties_that_share_of_the_captions(tmp_path):
    pictures(tmp_path, 4)
    order = ordered(tmp_path, batch_size=4, caption_dropout=0.25)
    texts = [source.caption.text for epoch in range(250) for source in order.batch(epoch)]
    assert 0.21 < texts.count("") / len(texts) < 0.29  # 3 standard deviations of 1000 draws are 0.04
    assert Caption("", negative=True) in order.all_captions()
    assert Caption("", negative=True) not in ordered(tmp_path, batch_size=4).all_captions()


def test_with_a_cache_random_crops_are_those_that_the_cache_holds(tmp_path):
    pictures(tmp_path, 4, (96, 33))
    order = ordered(tmp_path, batch_size=4, crop="random", crop_aspect="square", variants=3)
    held = {(source.file, source.crop) for source in order.all_sources()}
    assert len(list(order.all_sources())) == 12
    seen = {(source.file, source.crop) for epoch in range(60) for source in order.batch(epoch)}
    assert seen == held
    assert len(held) > 8  # crops of one file may coincide, but hardly all


def test_without_a_cache_every_epoch_draws_its_own_crop(tmp_path):
    pictures(tmp_path, 1, (36, 32))
    order = ordered(tmp_path, batch_size=1, cached=False, crop="random", crop_aspect="square")
    crops = [order.batch(epoch)[0].crop for epoch in range(40)]
    room = crops[0].resize[0] - crops[0].size[0]
    assert len({crop.offset[0] for crop in crops}) == room + 1 == 5
    assert all(0 <= crop.offset[0] <= room for crop in crops)


def test_center_crops_are_held_once(tmp_path):
    pictures(tmp_path, 3)
    assert len(list(ordered(tmp_path, batch_size=1, variants=5).all_sources())) == 3


def test_dropping_a_file_orders_the_rest_anew(tmp_path):
    pictures(tmp_path, 5)
    order = ordered(tmp_path, batch_size=1)
    assert sum(files(order, 0).values()) == 5
    source = next(order.all_sources())
    assert order.drop(source, "broken")
    assert not order.drop(source, "broken")
    assert order.batches_per_epoch == 4
    assert files(order, 0) == {f"{number:02}.png": 1 for number in range(1, 5)}


def shared(folder, weights, steps=((0, None),) * 3, seed=7, accumulation=1, **settings):
    """Three datasets of 6, 4 and 15 batches of one sample, of two sizes each."""
    datasets = []
    for name, count, weight, (start, end) in zip(("first", "second", "third"), (6, 4, 15), weights, steps, strict=True):
        if not (folder / name).exists():
            pictures(folder / name, count // 2)
            pictures(folder / name, count - count // 2, (64, 16), "wide")
        of = table(folder / name, weight=weight, start_step=start, end_step=end, **settings)
        datasets.append(survey(of, Facts(), run_table(1)))
    return Order(datasets, seed, cached=True, accumulation=accumulation)


def datasets_at(order, positions):
    return Counter(order.draws(position)[0].dataset.name for position in positions)


def test_weights_are_shares_of_the_batches(tmp_path):
    order = shared(tmp_path, (0.5, 0.3, 0.2))
    for number in (0, 1, 7):
        assert datasets_at(order, range(1000 * number, 1000 * number + 1000)) == {"first": 500, "second": 300, "third": 200}
    first = datasets_at(order, range(100))
    assert 30 < first["first"] < 70  # 5 standard deviations of 100 draws are 25


def test_only_the_proportion_of_weights_counts(tmp_path):
    one, other = shared(tmp_path, (1, 2, 2)), shared(tmp_path, (10, 20, 20))
    assert [one.batch(position) for position in range(300)] == [other.batch(position) for position in range(300)]


def test_with_weights_each_dataset_sees_its_samples_equally_often_and_its_buckets_mixed(tmp_path):
    order = shared(tmp_path, (0.1, 0.55, 0.35))
    own: dict[str, list[Draw]] = {"first": [], "second": [], "third": []}
    for position in range(2500):  # two rounds and a half
        [draw] = order.draws(position)
        own[draw.dataset.name].append(draw)
    for name, count in (("first", 6), ("second", 4), ("third", 15)):
        for epoch in range(len(own[name]) // count):
            part = own[name][epoch * count : (epoch + 1) * count]
            assert sorted(draw.index for draw in part) == list(range(count))
            assert {draw.epoch for draw in part} == {epoch}
    sizes = [draw.bucket[0] for draw in own["third"][:150]]
    changes = sum(before != after for before, after in pairwise(sizes))
    assert changes > 40  # one after the other they would change 19 times


def test_with_weights_the_order_is_anew_in_each_epoch(tmp_path):
    order = shared(tmp_path, (1, 1, 1))
    own = [draw.index for position in range(1000) for draw in order.draws(position) if draw.dataset.name == "second"]
    assert len({tuple(own[start : start + 4]) for start in range(0, 320, 4)}) > 15  # of 24 orders


def test_datasets_come_and_go_at_their_steps(tmp_path):
    order = shared(tmp_path, (None,) * 3, ((0, 20), (10, None), (30, 40)), accumulation=3)
    assert datasets_at(order, range(30)) == {"first": 30}
    assert datasets_at(order, range(30, 60)) == {"first": 18, "second": 12}
    assert datasets_at(order, range(60, 90)) == {"second": 30}
    assert set(datasets_at(order, range(90, 120))) == {"second", "third"}
    assert datasets_at(order, range(120, 500)) == {"second": 380}


def test_where_a_dataset_comes_in_all_begin_an_epoch(tmp_path):
    order = shared(tmp_path, (None,) * 3, ((0, None), (8, None), (8, None)))
    assert [order.epoch_of(position) for position in (0, 5, 6, 7, 8, 32, 33)] == [0, 0, 1, 1, 2, 2, 3]
    assert datasets_at(order, range(8, 33)) == {"first": 6, "second": 4, "third": 15}
    seen = {(source.dataset, source.file) for position in range(8, 33) for source in order.batch(position)}
    assert len(seen) == 25


def test_nothing_is_drawn_twice_in_a_run_whose_datasets_come_and_go(tmp_path):
    steps = ((0, 50), (7, None), (30, 90))
    for weights in ((None,) * 3, (0.2, 0.7, 0.1)):
        order = shared(tmp_path, weights, steps, repeats=2)
        drawn = Counter(draw_key(order, position) for position in range(1500))
        assert max(drawn.values()) == 1


def draw_key(order, position):
    [draw] = order.draws(position)
    return draw.dataset.name, draw.index, draw.epoch, draw.repeat


def test_with_weights_and_steps_a_batch_depends_on_its_position_alone(tmp_path):
    settings = {"crop": "random", "caption_dropout": 0.3, "variants": 2}
    for weights in ((None,) * 3, (0.2, 0.7, 0.1)):
        made = [shared(tmp_path, weights, ((0, 40), (7, None), (30, 60)), **settings) for _ in range(3)]
        expected = [made[0].batch(position) for position in range(1300)]
        assert [made[1].batch(position) for position in reversed(range(1300))] == expected[::-1]
        assert made[2].batch(1203) == expected[1203]


def test_the_identity_knows_weights_and_steps(tmp_path):
    plain = ((0, None),) * 3
    orders = [
        shared(tmp_path, (None,) * 3),
        shared(tmp_path, (1, 1, 1)),
        shared(tmp_path, (1, 1, 2)),
        shared(tmp_path, (None,) * 3, ((0, None), (0, None), (5, None))),
        shared(tmp_path, (None,) * 3, ((0, None), (0, 5), (0, None))),
        shared(tmp_path, (None,) * 3, ((0, None), (0, 5), (0, None)), accumulation=2),
    ]
    assert len({order.identity() for order in orders}) == len(orders)
    assert shared(tmp_path, (1, 1, 1), plain, seed=3).identity() == orders[1].identity()


def test_weights_divide_turns_by_largest_remainder():
    for weights in ([0.5, 0.3, 0.2], [1, 1, 1], [7, 2, 1, 1e-9], [0.999, 0.0005, 0.0005]):
        [segment] = segments_of([Lane(4, weight) for weight in weights])
        exact = [weight / sum(weights) * segment.round for weight in weights]
        counts = segment.counts.tolist()
        assert sum(counts) == segment.round >= 1000
        assert min(counts) >= 1
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True) if share >= 1)


def test_a_round_is_an_epoch_where_that_is_longer():
    [segment] = segments_of([Lane(3000, 1.0), Lane(17, 3.0)])
    assert (segment.round, segment.length) == (3017, 3017)
    assert segment.counts.tolist() == [754, 2263]


def test_a_stretch_without_datasets_goes_on_with_those_before():
    segments = segments_of([Lane(3, start=0, end=10), Lane(2, start=20), Lane(0, start=4)])
    assert [(segment.start, segment.lanes) for segment in segments] == [(0, (0,)), (20, (1,))]
    assert [segment.start for segment in segments_of([Lane(3, start=5)])] == [0]
    assert segments_of([Lane(0), Lane(0)]) == ()


def test_segments_of_one_length_are_shuffled_each_in_its_own_way():
    first, second = segments_of([Lane(30, end=60), Lane(30, start=60)])
    assert first.shuffled(0, 0).tolist() != second.shuffled(0, 0).tolist()
    assert sorted(second.shuffled(0, 0).tolist()) == list(range(30))


def test_the_others_of_a_bucket_stand_in_from_the_next_one_on(tmp_path):
    pictures(tmp_path, 4)
    order = ordered(tmp_path, batch_size=1)
    [draw] = order.draws(2)
    others = [one.index for one in order.neighbours(draw)]
    assert others == [(draw.index + more) % 4 for more in (1, 2, 3)]


def test_datasets_of_one_name_are_refused(tmp_path):
    pictures(tmp_path / "a" / "set", 2)
    pictures(tmp_path / "b" / "set", 2)
    with pytest.raises(InputError, match="2 datasets are named 'set'"):
        Order([scanned(tmp_path / "a" / "set"), scanned(tmp_path / "b" / "set")], 0, cached=True)


def test_a_hundred_thousand_samples_are_ordered_in_well_under_a_second(tmp_path):
    targets = [Target((256 + 32 * step, 512), (512, 512), 1.0) for step in range(10)]
    samples = [Sample(f"{number}.png", f"{number}.png", ("",), Probe(512, 512), Piece(targets[number % 10])) for number in range(100_000)]
    of = table(tmp_path)
    order = Order([Dataset(of, ImageKind(of, Facts()), "many", 4, samples, Funnel("many", len(samples)))], 0, cached=True)
    begin = time.process_time()
    order.batch(order.batches_per_epoch * 3 + 17)
    assert time.process_time() - begin < 0.5
