"""The mathematics of distances, against formulas written out here, published values and itself."""

import numpy as np
import pytest

from i3d_jax import fvd
from i3d_jax.fvd import statistics


def features(number, dimensions, seed, shift=0.0):
    """Features with unequal variances, whose dimensions are correlated."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(dimensions, dimensions)) * 0.9 ** np.arange(dimensions)[:, None]
    return rng.normal(size=(number, dimensions)) @ mixed + shift


def tensorflow_gans_distance(x, y, ddof):
    """tr sqrt(A C2 A), A = sqrt(C1), both roots by SVD, small singular values unrooted."""

    def root(matrix):
        u, s, v = np.linalg.svd(matrix)
        return u @ np.diag(np.where(s < 1e-10, s, np.sqrt(s))) @ v

    c1, c2 = (np.cov(each, rowvar=False, ddof=ddof) for each in (x, y))
    a = root(c1)
    means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return means + np.trace(c1 + c2) - 2 * np.trace(root(a @ c2 @ a))


@pytest.mark.parametrize("numbers,ddof", [((90, 120), 1), ((500, 700), 0), ((90, 700), 1)])
def test_distance_is_that_of_the_reference_code(numbers, ddof):
    x, y = features(numbers[0], 400, 0), features(numbers[1], 400, 1, shift=0.3)
    wanted = tensorflow_gans_distance(x, y, ddof)
    assert fvd.distance(x, y, ddof=ddof) == pytest.approx(wanted, rel=1e-7)
    found = fvd.distance(statistics.of(x), statistics.of(y), ddof=ddof)
    assert found == pytest.approx(wanted, rel=1e-7)


def test_distance_of_diagonal_covariances_is_that_of_the_standard_deviations():
    # Columns are orthogonal and centred, so that covariances are diagonal by construction.
    base = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 9)) - 0.0)[0]
    base = np.linalg.qr(base - base.mean(0, keepdims=True))[0] * np.sqrt(49)
    first, second = np.arange(1.0, 10), np.linspace(3, 0.5, 9)
    x, y = base * first[None], base[:, ::-1] * second[None] + 2
    wanted = 9 * 4 + ((first - second) ** 2).sum()
    assert fvd.distance(x, y) == pytest.approx(wanted, rel=1e-12)
    assert fvd.distance(x, y, ddof=0) == pytest.approx(36 + (wanted - 36) * 49 / 50, rel=1e-12)
    assert fvd.terms(x, y).means == pytest.approx(36, rel=1e-12)


def test_a_set_is_at_no_distance_from_itself():
    for number in 20, 300:
        x = features(number, 64, 3)
        assert 0 <= fvd.distance(x, x) < 1e-10 * np.trace(np.cov(x, rowvar=False))


@pytest.mark.parametrize("number", [30, 1000])
def test_statistics_in_parts_are_those_of_all(number):
    x = features(number, 40, 0) * 1e-3 + 1e3  # Far from zero, where sums of squares lose digits.
    parts = [statistics.of(part) for part in np.array_split(x, 7)]
    found = statistics.empty(40)
    for part in parts[::-1]:
        found = fvd.merge(found, part)
    whole = x - x.mean(0, keepdims=True)
    assert found.number == number
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.scatter, whole.T @ whole, rtol=1e-10, atol=1e-12 * number)


@pytest.mark.parametrize(
    "x,ddof,message",
    [
        (np.zeros((1, 3)), 1, "1 features have no covariance"),
        (np.zeros(3), 1, "features of shape (3,)"),
        (np.full((4, 3), np.nan), 1, "row 0 is not finite"),
        (np.zeros((4, 2)), 1, "features of 2 and of 3 dimensions"),
        (np.zeros((4, 3)), 2, "ddof is 2"),
    ],
)
def test_what_has_no_distance_is_refused(x, ddof, message):
    with pytest.raises(ValueError) as error:
        fvd.distance(x, np.zeros((4, 3)), ddof=ddof)
    assert message in str(error.value)


def test_kernel_distance_is_the_sum_over_pairs():
    x, y = features(11, 5, 0), features(8, 5, 1)

    def kernel(a, b):
        return (sum(a * b) / 5 + 1) ** 3

    within = [
        np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    wanted = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    found = fvd.kernel_distance(x, y)
    assert found.distance == pytest.approx(wanted, rel=1e-10)
    assert found.standard_error is None and found.blocks == 1


def test_kernel_distance_of_blocks_has_a_standard_error():
    pairs = [(features(300, 4, 2), features(300, 4, seed) + 0.2) for seed in range(3, 23)]
    found = [fvd.kernel_distance(*pair, block=50) for pair in pairs]
    assert {each.blocks for each in found} == {6}
    errors = [each.standard_error for each in found if each.standard_error is not None]
    assert len(errors) == 20 and min(errors) > 0


def test_jedis_kernel_gives_its_known_value():
    x = np.arange(1.0, 10).reshape(3, 3)
    y = np.array([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]], float)
    found = fvd.squared_mmd(x, y, degree=2, offset=0, unbiased=False)
    assert found == pytest.approx(270.7222, abs=1e-4)  # Measured on its code.


@pytest.mark.parametrize("number", [40, 200])
def test_standard_error_is_the_spread_over_other_samples(number):
    """Also where there are fewer features than dimensions."""
    rng = np.random.default_rng(2)
    mixed = [rng.normal(size=(50, 50)) * 0.9 ** np.arange(50)[:, None] for _ in range(2)]

    def draw():
        x, y = (rng.normal(size=(number, 50)) @ each for each in mixed)
        return x, y + 0.5

    spread = np.std([fvd.distance(*draw()) for _ in range(60)], ddof=1)
    errors = [fvd.bootstrap(*draw(), replicates=40, seed=i).standard_error for i in range(4)]
    assert 0.7 < np.mean(errors) / spread < 1.4


def test_clips_of_one_video_are_drawn_together():
    x, y = features(40, 6, 0), features(40, 6, 1)
    alone = fvd.bootstrap(x, y).standard_error
    # Each video counts four times: the error is as if there were a quarter of the clips.
    copies, videos = np.repeat(x, 4, 0), np.repeat(np.arange(40), 4)
    others = np.repeat(y, 4, 0)
    grouped = fvd.bootstrap(copies, others, real_videos=videos, generated_videos=videos)
    assert grouped.standard_error == pytest.approx(alone, rel=0.1)
    assert fvd.bootstrap(copies, others).standard_error < 0.7 * alone


def test_statistics_have_no_error_of_their_own():
    x, y = features(60, 6, 0), features(60, 6, 1)
    both = fvd.bootstrap(x, y)
    one = fvd.bootstrap(statistics.of(x), y)
    assert 0 < one.standard_error < both.standard_error
    assert one.low < fvd.distance(x, y) < one.high
    with pytest.raises(ValueError, match="statistics have no videos"):
        fvd.bootstrap(statistics.of(x), statistics.of(y))


def test_extrapolation_is_nearer_to_the_distance_of_infinitely_many():
    # By the means alone it is 30 * 0.1^2; equal covariances add nothing.
    rng, truth = np.random.default_rng(0), 30 * 0.01
    pairs = [(rng.normal(size=(300, 30)), rng.normal(size=(300, 30)) + 0.1) for _ in range(8)]
    plain = np.mean([fvd.distance(x, y) for x, y in pairs])
    found = np.mean([fvd.extrapolate(x, y) for x, y in pairs])
    assert plain > 2 * truth and abs(found - truth) < 0.3 * (plain - truth)
    with pytest.raises(ValueError, match="7 features, wanted 8 at least"):
        fvd.extrapolate(pairs[0][0][:7], pairs[0][1])
