"""Pictures of the report, against the numbers they are made of."""

import base64
import io
import re

import numpy as np
import pytest

from jtcse_jax.report.figures import Line, curves, heat_map, histograms, thinned

pytest.importorskip("matplotlib")


def paths(svg: str, color: int) -> list[np.ndarray]:
    """The points [n, 2] of the lines of a colour."""
    found = re.findall(rf'd="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-{color}\)', svg)
    return [np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2) for path in found]


def test_a_curve_goes_through_its_points():
    x = np.array([0, 1, 4, 9, 10, 11])
    y = np.array([3.0, 1.0, 2.5, -1.0, 0.0, 7.0])
    picture = curves("Some", [Line("up", x, y, color=2, low=y - 1, high=y + 1, mark=9)])
    (points,) = [path for path in paths(picture.svg, 2) if len(path) == len(x)]
    for drawn, given in zip(points.T, (x, y), strict=True):
        slope, offset = np.polyfit(given, drawn, 1)
        np.testing.assert_allclose(drawn, slope * given + offset, atol=0.02)
    assert np.polyfit(y, points[:, 1], 1)[0] < 0 < np.polyfit(x, points[:, 0], 1)[0]


def test_long_lines_are_thinned_to_means():
    values = np.random.default_rng(0).normal(size=1001)
    found = thinned(values, 100)
    assert len(found) == 100
    np.testing.assert_allclose(found[0], values[:11].mean())
    np.testing.assert_allclose(found[-1], values[-10:].mean())
    np.testing.assert_array_equal(thinned(values, 2000), values)


def test_histograms_tell_pairs_and_means_by_gold():
    random = np.random.default_rng(1)
    gold = random.choice([0, 0.5, 1, 2.2, 3, 4, 4.6, 5], 200)
    cosines = random.uniform(-0.2, 1, 200)
    (told,) = re.findall('aria-label="([^"]*)"', histograms("By gold", cosines, gold).svg)
    for low in range(5):
        chosen = [
            cosine
            for cosine, score in zip(cosines, gold, strict=True)
            if low <= score < low + 1 or (low == 4 and score == 5)
        ]
        mean = sum(chosen) / len(chosen)
        assert f"gold {low} to {low + 1}: {len(chosen)} pairs, mean cosine {mean:.2f}" in told


def test_a_heat_map_has_layer_one_above_and_head_one_on_the_left():
    image = pytest.importorskip("PIL.Image")
    values = [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]
    picture = heat_map("Heat", values, largest=0.5)
    assert "layer 2, head 3" in picture.svg
    drawn = re.search(r'xlink:href="data:image/png;base64,\s*([^"]*)"[^>]*', picture.svg)
    scale = re.search(r"matrix\(([\d.-]+) 0 0 ([\d.-]+)", drawn[0])
    assert float(scale[1]) > 0 and float(scale[2]) > 0  # not turned over
    pixels = np.array(image.open(io.BytesIO(base64.b64decode(drawn[1]))).convert("RGB"), float)
    brightness = pixels.sum(axis=2)  # cividis grows brighter
    assert brightness.shape == (2, 3)
    assert (np.diff(brightness.ravel()) > 0).all()
