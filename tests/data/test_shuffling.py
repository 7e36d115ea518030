"""Orders of items, against the same computed for one number, and as orders."""

import numpy as np
import pytest

from jtcse_jax.data.shuffling import shuffled


def one_at_a_time(position: int, count: int, seed: list[int]) -> int:
    """The same in Python's integers."""
    size = 1  # of the square that holds every number
    while size == 1 or size**2 < count:
        size *= 2

    def mixed(x: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = (x ^ x >> shift) * factor % 2**64
        return x

    keys = [int(key) for key in np.random.SeedSequence(seed).generate_state(8, np.uint64)]
    while True:
        left, right = divmod(position, size)
        for key in keys:
            left, right = right, left ^ mixed((right + key) % 2**64) * size // 2**64
        position = left * size + right
        if position < count:
            return position


@pytest.mark.parametrize("count", [1, 2, 5, 300, 2**16, 2**16 + 1, 10**9, 2**40 + 3, 2**62])
def test_it_is_the_network_for_one_number(count):
    positions = sorted({share * (count - 1) // 40 for share in range(41)})
    expected = [one_at_a_time(position, count, [7, 3]) for position in positions]
    assert shuffled(np.array(positions), count, [7, 3]).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 97, 2**16, 2**16 + 1, 100_000])
def test_every_item_comes_once(count):
    items = shuffled(np.arange(count), count, [0])
    assert items.dtype == np.int64
    np.testing.assert_array_equal(np.sort(items), np.arange(count))


def test_a_part_is_that_of_the_whole_in_any_shape():
    whole = shuffled(np.arange(1000), 1000, [1, 2])
    positions = np.array([[999, 0], [17, 500]])
    np.testing.assert_array_equal(shuffled(positions, 1000, [1, 2]), whole[positions])


@pytest.mark.parametrize("count", [500, 20_000, 70_000])
def test_orders_look_random(count):
    """Items against positions, neighbours, parities, seeds and epochs: no more than chance."""
    orders = [shuffled(np.arange(count), count, seed) for seed in ([0, 0], [0, 1], [1, 0], [1, 1])]
    chance = 4.5 / np.sqrt(count)
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < chance
        for distance in (1, 2, 8, 64):
            assert abs(np.corrcoef(order[:-distance], order[distance:])[0, 1]) < chance
            pairs = (order[:-distance] ^ order[distance:]) % 2
            assert abs(pairs.mean() - 0.5) < chance
        # Each batch of 100 takes from the whole text, as draws without return do.
        quarters = np.histogram(order[:100], bins=4, range=(0, count))[0]
        assert quarters.min() > 8
    for index, one in enumerate(orders):
        for other in orders[:index]:
            assert abs(np.corrcoef(one, other)[0, 1]) < chance
            assert (one == other).sum() < 12
