"""Reading ahead: every position once and in its order, by a thread or by the caller."""

import threading

import pytest

from tunesmith.data.ahead import Ahead


def test_what_is_quick_is_made_by_the_caller_and_the_rest_by_a_thread_in_the_same_order():
    quick = False
    made: list[tuple[int, bool]] = []

    def ready(position: int) -> int:
        made.append((position, threading.current_thread() is threading.main_thread()))
        return position

    with Ahead(ready, lambda position: 10 * position, start=5, lot=3, quick=lambda: 3 * quick) as numbers:
        taken = [next(numbers) for _ in range(4)]
        quick = True
        taken += [next(numbers) for _ in range(20)]
        quick = False
        taken += [next(numbers) for _ in range(20)]
    assert taken == [10 * position for position in range(5, 49)]
    assert [position for position, _ in made] == list(range(5, 5 + len(made)))
    by_caller = [position for position, caller in made if caller]
    assert len(by_caller) >= 6
    assert by_caller == list(range(by_caller[0], by_caller[-1] + 1))
    assert by_caller[0] > 8
    assert not made[-1][1]


@pytest.mark.parametrize("quick", [False, True])
def test_an_error_is_raised_where_its_position_is_taken_whoever_made_it(quick):
    def ready(position: int) -> int:
        if position == 2:
            raise ValueError("two")
        return position

    with Ahead(ready, lambda position: position, start=0, lot=4, quick=lambda: 3 * quick) as numbers:
        assert [next(numbers), next(numbers)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(numbers)
