"""Pictures of the report, against the numbers they are made of."""

import base64
import csv
import io
import re
from urllib.parse import unquote

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


def rows(picture) -> list[list[str]]:
    """The numbers behind a picture, from its link."""
    start, _, content = picture.link.partition(",")
    assert start == "data:text/csv;charset=utf-8"
    assert re.fullmatch(r"[\w,.%~-]+", content, flags=re.ASCII)  # nothing that ends an address
    return list(csv.reader(unquote(content).splitlines()))


def test_numbers_of_curves_are_those_drawn():
    x, values = np.arange(1000) * 10, np.random.default_rng(0).normal(size=1000)
    lines = [
        Line("one, and only", [5, 7], [0.123456789, -2e-9], low=[0, 1], high=[2, 3]),
        Line("two: ü", x, values),
    ]
    picture = curves("Loss & its terms (all)", lines, x="step", y="loss")
    header, *found = rows(picture)
    assert header == ["line", "step", "loss", "low", "high"]
    assert found[:2] == [
        ["one, and only", "5", "0.1234568", "0", "2"],
        ["one, and only", "7", "-2e-09", "1", "3"],
    ]
    drawn = np.array([row[1:] for row in found[2:]], float)
    assert {row[0] for row in found[2:]} == {"two: ü"} and len(drawn) == 300
    for given, column in zip((x, values), drawn.T, strict=True):
        np.testing.assert_allclose(column, thinned(given), rtol=1e-6)
    assert picture.file == "loss-its-terms-all.csv"


def test_numbers_of_histograms_and_heat_maps():
    gold, cosines = np.array([0, 0, 0, 5.0]), np.array([0.1, 0.1, 0.9, 1])
    header, *found = rows(histograms("By gold", cosines, gold))
    assert header == ["gold", "pairs", "cosine from", "cosine to", "share"]
    shares = {(row[0], row[2]): (row[1], float(row[4])) for row in found if float(row[4])}
    assert {key[0]: sum(v for k, (_, v) in shares.items() if k[0] == key[0]) for key in shares} == {
        "0 to 1": pytest.approx(1),
        "4 to 5": 1,
    }
    low = [row for row in found if row[0] == "0 to 1" and float(row[2]) <= 0.1 < float(row[3])]
    assert [(row[1], float(row[4])) for row in low] == [("3", pytest.approx(2 / 3))]
    header, *found = rows(heat_map("Heat", [[0.0, 0.1], [0.3, 0.25]], largest=0.5))
    assert header == ["layer", "head", "value"]
    cells = [["1", "1", "0"], ["1", "2", "0.1"], ["2", "1", "0.3"], ["2", "2", "0.25"]]
    assert found == cells


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
