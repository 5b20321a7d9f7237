"""J and F against masks worked out by hand, and against the definitions written out pixel by pixel."""

import numpy as np
import pytest

from diffusers_videogpt.metrics.segmentation import (
    boundary,
    boundary_radius,
    boundary_similarity,
    format_scores,
    region_similarity,
    score_sequence,
    statistics,
    summarize,
)


def square(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def slow_boundary(mask):
    height, width = mask.shape
    edges = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < height and x + dx < width:
                    edges[y, x] |= mask[y, x] != mask[y + dy, x + dx]
    return edges


def slow_boundary_similarity(truth, predicted):
    radius = np.ceil(0.008 * (truth.shape[0] ** 2 + truth.shape[1] ** 2) ** 0.5)
    a, b = (list(zip(*np.nonzero(slow_boundary(mask)), strict=True)) for mask in (predicted, truth))
    if not a or not b:
        return float(not a and not b)
    near = lambda p, others: any((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 <= radius**2 for q in others)  # noqa: E731
    precision, recall = np.mean([near(p, b) for p in a]), np.mean([near(p, a) for p in b])
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_region_similarity():
    truth = np.stack([square(6, 6, 1, 1, 2), np.zeros((6, 6), bool), np.zeros((6, 6), bool)])
    predicted = np.stack([square(6, 6, 1, 2, 2), np.zeros((6, 6), bool), square(6, 6, 0, 0, 1)])
    assert region_similarity(truth, predicted).tolist() == [2 / 6, 1.0, 0.0]


def test_boundary():
    expected = np.array(
        [
            [1, 1, 1, 0, 0],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(boundary(square(4, 5, 1, 1, 2)), expected)
    # The picture's edge is no boundary: of a full picture there is none, of its lower right quarter the two inner sides.
    assert not boundary(np.ones((4, 4), bool)).any()
    expected = np.zeros((4, 4), bool)
    expected[1, 1:] = expected[1:, 1] = True
    np.testing.assert_array_equal(boundary(square(4, 4, 2, 2, 2)), expected)


@pytest.mark.parametrize("size, radius", [((480, 854), 8), ((480, 910), 9), ((64, 64), 1), ((300, 400), 4)])
def test_boundary_radius(size, radius):
    assert boundary_radius(*size) == radius


def test_boundary_similarity_by_hand():
    """A radius of 1: moved by one pixel all agrees, by two only what lies along the way."""
    truth = square(20, 20, 5, 5, 6)
    assert boundary_similarity(truth, square(20, 20, 5, 6, 6)) == 1.0
    # Either boundary is a ring of 7 × 7, 24 pixels. The rows agree but for their outer ends, 2 × 6; of the columns only
    # the ends of the inner one, next to the other's rows, 2.
    assert boundary_similarity(truth, square(20, 20, 5, 7, 6)) == pytest.approx(14 / 24)
    nothing = np.zeros_like(truth)
    assert boundary_similarity(nothing, nothing) == 1.0
    assert boundary_similarity(truth, nothing) == boundary_similarity(nothing, truth) == 0.0
    assert boundary_similarity(truth, square(20, 20, 17, 17, 2)) == 0.0


@pytest.mark.parametrize("size", [(20, 20), (30, 41), (130, 190)])
def test_against_the_slow_twin(size):
    rng = np.random.default_rng(size)
    for _ in range(3):
        truth, predicted = np.zeros((2, *size), bool)
        for mask in (truth, predicted):
            y, x = (rng.uniform(0, n) for n in size)
            radius = rng.uniform(4, 9)
            mask |= np.hypot(*(np.ogrid[: size[0], : size[1]][i] - c for i, c in enumerate((y, x)))) < radius
            mask |= rng.random(size) < 8 / mask.size
        np.testing.assert_array_equal(boundary(truth), slow_boundary(truth))
        assert boundary_similarity(truth, predicted) == pytest.approx(slow_boundary_similarity(truth, predicted))


def test_statistics():
    """Of 9 frames the quarters are frames 1–3, 3–5, 5–7, 7–9."""
    values = np.array([1, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    mean, recall, decay = statistics(values)
    assert (mean, recall, decay) == pytest.approx((values.mean(), 4 / 9, 0.9 - 0.2))
    # 10 frames: edges at 1, 3.25, 5.5, 7.75, 10, rounded half up to 1, 3, 6, 8, 10.
    values = np.arange(10) / 10
    assert statistics(values)[2] == pytest.approx(0.1 - 0.8)
    assert statistics(np.array([0.7])) == pytest.approx((0.7, 1.0, 0.0))


def test_only_frames_between_the_first_and_the_last_count():
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[:, 2:8, 2:8], truth[:, 12:18, 12:18] = 1, 2
    truth[:, 0, 0] = 255  # left open: background
    predicted = truth.copy()
    predicted[0] = predicted[-1] = 9
    predicted[truth == 255] = 0
    predicted[1][truth[1] == 2] = 0
    scores = score_sequence(truth, predicted)
    np.testing.assert_allclose(scores.j, [[1, 1], [0, 1]])
    np.testing.assert_allclose(scores.f, [[1, 1], [0, 1]])
    summary = summarize({"bear": scores, "cow": score_sequence(truth, np.where(truth == 255, 0, truth))})
    assert summary.objects == {"bear_1": (1, 1), "bear_2": (0.5, 0.5), "cow_1": (1, 1), "cow_2": (1, 1)}
    assert summary.j_mean == summary.f_mean == summary.jf_mean == pytest.approx(3.5 / 4)
    assert summary.j_recall == pytest.approx(3.5 / 4) and summary.j_decay == pytest.approx(-1 / 4)
    assert "| mine | 0.875 | 0.875 | 0.875 | -0.250 |" in format_scores({"mine": summary})


def test_an_object_that_the_prediction_lacks_scores_where_it_is_gone():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:2, 1:3, 1:3] = 1
    scores = score_sequence(truth, np.zeros_like(truth))
    assert scores.j.tolist() == scores.f.tolist() == [[0, 1]]


def test_bad_input():
    masks = np.ones((3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), predicted ones \(3, 4, 5\)"):
        score_sequence(masks, np.ones((3, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="2 frames leave none"):
        score_sequence(masks[:2], masks[:2])
    with pytest.raises(ValueError, match="marks no object"):
        score_sequence(255 * masks, masks)
    with pytest.raises(ValueError, match="the object 2, the first true mask only 1"):
        score_sequence(masks, 2 * masks)
