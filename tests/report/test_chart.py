"""Charts: where a value is drawn, and what is said of it."""

import re

import pytest

from diffem.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Series, svg


def places(drawing: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)
    return [(float(x), float(y)) for x, y in found]


def test_points_are_where_their_values_are() -> None:
    chart = Chart("score", "round", [Series("", [(0, 1.0), (1, 3.0), (4, 2.0)])])
    (x0, y0), (x1, y1), (x2, y2) = places(svg(chart))
    assert (x0, x2) == (LEFT, WIDTH - RIGHT)
    assert x1 == pytest.approx(x0 + (x2 - x0) / 4, abs=0.06)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.06)  # texts have one digit
    assert TOP <= y1 < y0 <= HEIGHT - BOTTOM


def test_far_values_of_a_score_with_an_expectation_are_on_a_log_scale() -> None:
    points = [(0.0, 100.0), (1.0, 10.0), (2.0, 1.0)]
    chart = Chart("χ²", "round", [Series("", points)], [("expected", 1.0)])
    (_, a), (_, b), (_, c) = places(svg(chart))
    assert chart.log and b == pytest.approx((a + c) / 2, abs=0.06)
    assert not Chart("χ²", "round", [Series("", points)]).log
    assert not Chart("x", "round", [Series("", [(0, -1.0), (1, 99.0)])], [("expected", 1.0)]).log


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-2.0, -2.0], [1e-12, 1e12], [-1e308, 1e308]]
)
def test_any_values_are_within_the_chart(values: list[float]) -> None:
    points = [(float(i), value) for i, value in enumerate(values)]
    swapped = [(x, y) for y, x in points]
    for label, drawn in (("round", points), ("NFE", points), ("NFE", swapped)):
        found = places(svg(Chart("score", label, [Series("", drawn)])))
        assert len(found) == len(values)
        for x, y in found:
            assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM


def test_what_is_said() -> None:
    lines = [Series("a <b>", [(0, 1.0), (1, 2.0)], 0), Series("c", [(0, 3.0)], 9), Series("d", [])]
    drawing = svg(Chart("score", "round", lines, [("expected", 1.0)], digits=1))
    assert 'aria-label="score over round: a &lt;b&gt;: 1.0 to 2.0; c: 3.0 to 3.0"' in drawing
    assert "<title>a &lt;b&gt;, round 1: 2.0</title>" in drawing
    assert "<title>expected: 1.0</title>" in drawing
    assert "color:var(--line-1)" in drawing and 'stroke-dasharray="6 3"' in drawing
    assert svg(Chart("score", "round", [Series("", [])])) == ""


def test_errors_are_bars() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    drawing = svg(Chart("score", "round", [Series("", points, errors=[0.5, None])], digits=1))
    ((_, y), (_, top)) = places(drawing)
    found = re.search(r'M[\d.]+ ([\d.]+)V([\d.]+)"', drawing)
    assert found and len(re.findall("V[0-9]", drawing)) == 1
    low, high = (float(end) for end in found.groups())
    assert low - y == pytest.approx((y - top) / 2, abs=0.11)
    assert y - high == pytest.approx((y - top) / 2, abs=0.11)
    assert "round 0: 1.0 ± 0.5" in drawing and "round 1: 2.0<" in drawing
