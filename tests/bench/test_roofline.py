"""The picture has every contender, the roof, and text that can be read."""

import pytest
from test_report import case, report

from aoq.bench.roofline import roofline, save


@pytest.fixture
def figures():
    one = case(m=1, ours=[1e-3] * 3, fast=[2e-3] * 3, slow=[3e-3] * 3, base=[4e-3] * 3, other=[1e-3] * 3)
    many = case(m=256, ours=[2e-2] * 3, fast=[3e-2] * 3, base=[4e-2] * 3, other=[9e-3] * 3)
    return report(one, many)


def test_every_contender_is_on_it(figures):
    figure = roofline(figures, 4096, 4096)
    assert [axis.get_title() for axis in figure.axes] == ["int4_mm", "int8_mm"]
    for axis, names in zip(figure.axes, (["ours", "fast", "slow", "base"], ["other", "base"]), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert [text.get_text() for text in axis.get_legend().get_texts()] == names
        looks = {(lines[name].get_color(), lines[name].get_marker()) for name in names}
        assert len(looks) == len(names)
    (line,) = (line for line in figure.axes[0].get_lines() if line.get_label() == "ours")
    operations = 2 * 4096 * 4096
    assert line.get_ydata()[0] == pytest.approx(operations / 1e-3 / 1e9)
    assert line.get_xdata()[0] == pytest.approx(operations / (4096 * 4096 / 2 + 4096 * 32 * 2 + 4 * 4096))


def test_all_lies_within_the_axes_and_under_the_roof_it_names(figures):
    figure = roofline(figures, 4096, 4096)
    figure.canvas.draw()
    for axis in figure.axes:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        for line in axis.get_lines():
            assert all(left <= x <= right for x in line.get_xdata())
            assert all(y <= top for y in line.get_ydata())
            if not line.get_label().startswith("_"):
                assert all(y >= bottom for y in line.get_ydata())
        texts = [text.get_text() for text in axis.texts]
        assert "reading memory, 10 GB/s" in texts
        assert any(text.startswith("vdpbf16ps 500") for text in texts)
        assert any(text.startswith("vpdpbusd 1,000") for text in texts) == (axis.get_title() == "int8_mm")


def test_a_file_a_shape(figures, tmp_path):
    assert [path.name for path in save(figures, tmp_path / "all.png")] == ["all.png"]
    figures["cases"].append(case(n=64, k=128, ours=[1e-5] * 3, base=[1e-5] * 3))
    assert [path.name for path in save(figures, tmp_path / "all.svg")] == ["all-4096x4096.svg", "all-64x128.svg"]
    assert "aoq 0" in (tmp_path / "all-64x128.svg").read_text() or (tmp_path / "all-64x128.svg").stat().st_size > 10_000


def test_nothing_measured_is_an_empty_picture(tmp_path):
    empty = case()
    empty["limits"] = []
    (file,) = save(report(empty), tmp_path / "empty.png")
    assert file.read_bytes().startswith(b"\x89PNG")
