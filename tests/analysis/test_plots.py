"""Figures of notebooks: what is drawn, read back from the figure."""

import matplotlib as mpl
import numpy as np
import pytest

from transformer.analysis import plots


def colours(figure: plots.Figure) -> np.ndarray:
    image = figure.axes[0].images[0]
    return image.cmap(image.norm(image.get_array()))[..., :3]


def test_a_matrix_is_dark_for_more_and_two_sided_about_zero() -> None:
    values = np.array([[0.0, 0.2, 0.9], [0.5, 0.1, 0.3]])
    light = colours(plots.matrix(values, "x", "y", "z")).sum(-1)
    assert (np.argsort(light.ravel()) == np.argsort(-values.ravel())).all()
    signed = colours(plots.matrix(np.array([[-1.0, 0.0, 0.5]]), "x", "y", "z"))[0]
    np.testing.assert_allclose(signed[0], mpl.colors.to_rgb(plots.COLORS[1]), atol=0.01)
    np.testing.assert_allclose(signed[1], 1, atol=0.01)
    assert signed[2, 2] > signed[2, 0]  # bluer than it is red


def test_a_matrix_names_its_rows_and_writes_its_numbers() -> None:
    figure = plots.matrix(np.array([[1.26, 0.0], [0.5, 2.0]]), "x", "y", "z", ["a", "b"], ["c", "d"], numbers=True)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["c", "d"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "1.3", (1, 0): "0.0", (0, 1): "0.5", (1, 1): "2.0"
    }  # fmt: skip


def test_lines_are_named_and_places_are_marked() -> None:
    x = np.arange(3.0)
    figure = plots.lines({"a": (x, x), "b": (x, 2 * x)}, "x", "y", {"here": 1.5})
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), 2 * x)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert (axes.lines[2].get_xdata()[0], axes.texts[0].get_text()) == (1.5, "here")


@pytest.mark.parametrize("late", [False, True])
def test_a_tree_puts_parents_beside_the_middle_of_their_children(late: bool) -> None:
    """Whatever order the nodes come in; no two stand in one place."""
    first = [plots.Node(-1, "r", True, True), plots.Node(0, "a", True, True), plots.Node(0, "b", False)]
    leaves = [plots.Node(1, "c", True, True), plots.Node(1, "d", False), plots.Node(1, "e", False)]
    nodes = [*first, *(leaves[::-1] if late else leaves)]
    axes = plots.tree(nodes).axes[0]
    at = {text.get_text(): text.get_position() for text in axes.texts}
    assert {name: x for name, (x, _) in at.items()} == {"r": 0, "a": 1, "b": 1, "c": 2, "d": 2, "e": 2}
    assert at["a"][1] == np.mean([at[name][1] for name in "cde"])
    assert len(set(at.values())) == len(nodes)
    widths = {line.get_linewidth() for line in axes.lines}
    assert widths == {2.4, 0.9}
    heavy = [line for line in axes.lines if line.get_linewidth() == 2.4]
    assert sorted(tuple(line.get_xdata()) for line in heavy) == [(0, 1), (1, 2)]


TOKENS = ["$$", "$", "$5 and $10", "$\\frac{a}$", "\\$", "a_b^c", "\x00\x1b", "\ud800", "猫"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_tokens_are_drawn_as_they_are() -> None:
    """Whatever they hold: a dollar begins no formula."""
    square = np.eye(len(TOKENS))
    x = np.arange(3.0)
    figures = [
        plots.matrix(square, "x", "y", "z", rows=TOKENS, columns=TOKENS),
        plots.tree([plots.Node(-1, token, True) for token in TOKENS]),
        plots.lines(dict.fromkeys(TOKENS, (x, x)), "x", "y", dict.fromkeys(TOKENS, 1.0)),
    ]
    for figure in figures:
        plots.to_svg(figure)
        for text in figure.findobj(mpl.text.Text):
            assert not text._preprocess_math(text.get_text())[1], text.get_text()
    names = [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()]
    drawn = [mpl.text.Text(text=name)._preprocess_math(name)[0] for name in names]
    assert drawn == [*TOKENS[:6], "\ufffd\ufffd", "\ufffd", "猫"]
