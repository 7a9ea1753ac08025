"""The head viewer in a real browser: clicked, and read back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import chromium
from transformer.analysis import head_page as pages
from transformer.analysis.attention import Attention
from transformer.errors import UserError
from transformer.model.tokens import Tokens

N, H, L, S = 2, 3, 5, 4
TOKENS = {"encoder": ["un", "deux</script>", "trois", "[end]"], "decoder": ["[begin]", "▁one", "two", "&amp;", "✓"]}


def places(length: int) -> Tokens:
    return Tokens(np.arange(length)[None], np.ones((1, length), int))


def attention(queries: int, keys: int, seed: int) -> Attention:
    weights = np.random.default_rng(seed).dirichlet(np.full(keys, 0.3), (N, 1, H, queries))
    return Attention(weights, places(queries), places(keys))


def watched() -> dict[str, dict[str, Attention]]:
    decoder = {"self": attention(L, L, 1), "cross": attention(L, S, 2)}
    decoder["self"].weights[1, 0, 2, 0] = 0  # a query that sees nothing
    return {"encoder": {"self": attention(S, S, 0)}, "decoder": decoder}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not chromium.found():
        pytest.skip("no Chromium here: the head viewer was not looked at in a browser")
    path = tmp_path_factory.mktemp("page") / "heads.html"
    path.write_text(pages.head_page(watched(), TOKENS, "a toy <b>& its heads</b>"), encoding="utf-8")
    opened = chromium.Page(path.as_uri())
    yield opened
    opened.close()


def head(layer: int, number: int) -> str:
    return f'#grid button[data-layer="{layer}"][data-head="{number}"]'


def token(number: int) -> str:
    return f'#queries button[data-token="{number}"]'


def shown_shares(page: Any) -> list[float]:
    """What stands under each key, in percent; nothing is shown below half a percent."""
    texts = page.evaluate('[...document.querySelectorAll("#keys small")].map(e => e.textContent)')
    return [float(text.removesuffix(" %") or 0) for text in texts]


def test_what_a_token_sees_is_shown_for_the_head_that_was_clicked(page: Any) -> None:
    page.click("#views button:nth-child(3)")
    assert page.text("#views [aria-pressed=true]") == "cross: output to input"
    weights = watched()["decoder"]["cross"].weights[:, 0]
    for layer, number, query in ((1, 2, 3), (0, 1, 4), (1, 0, 0)):
        page.click(head(layer, number))
        page.hover(token(query))
        np.testing.assert_allclose(shown_shares(page), 100 * weights[layer, number, query], atol=0.51)
        best = int(weights[layer, number, query].argmax())
        assert page.text("#reading").startswith(f"“{TOKENS['decoder'][query]}” looks at “{TOKENS['encoder'][best]}” (")
        assert page.text("#head").startswith(f"Layer {layer + 1}, head {number + 1}: entropy ")
        strength = page.evaluate(
            '[...document.querySelectorAll("#keys > *")].map(e => e.style.backgroundColor.match(/([0-9.]+)\\)$/)[1])'
        )
        assert int(np.argmax([float(x) for x in strength])) == best


def test_each_kind_of_attention_has_its_tokens(page: Any) -> None:
    for number, (queries, keys) in enumerate((("encoder", "encoder"), ("decoder", "decoder"), ("decoder", "encoder"))):
        page.click(f"#views button:nth-child({number + 1})")
        for place, stack in (("queries", queries), ("keys", keys)):
            shown = page.evaluate(f'[...document.querySelectorAll("#{place} > *")].map(e => e.firstChild.textContent)')
            assert shown == TOKENS[stack]


def test_keys_move_from_head_to_head_and_from_token_to_token(page: Any) -> None:
    page.click("#views button:nth-child(2)")
    page.click(head(0, 0))
    for key in ("ArrowDown", "ArrowLeft"):
        page.press(key)
    assert page.text("#head").startswith("Layer 2, head 3:")  # over the edge to the last
    page.press("Tab")
    assert page.evaluate("document.activeElement.closest('#queries') !== null")
    page.hover(token(0))
    assert page.text("#reading") == "“[begin]” sees nothing."
    page.press("ArrowRight")
    assert page.text("#reading").startswith("“▁one” looks at")
    assert page.evaluate("document.activeElement.dataset.token") == "1"


def test_cells_tell_entropy_and_distance(page: Any) -> None:
    page.click("#views button:nth-child(1)")
    weights = watched()["encoder"]["self"].weights[1, 0, 2]
    entropy = -(weights * np.log(weights)).sum(-1).mean()
    distance = (weights * abs(np.arange(S)[:, None] - np.arange(S))).sum(-1).mean()
    label = page.evaluate(f"document.querySelector({json.dumps(head(1, 2))}).ariaLabel")
    found = re.fullmatch(r"layer 2, head 3: entropy ([\d.]+) nats, distance ([\d.]+)", label)
    assert found is not None
    np.testing.assert_allclose([float(found[1]), float(found[2])], [entropy, distance], atol=0.051)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen_and_is_readable(page: Any, scheme: str) -> None:
    page.scheme(scheme)
    page.resize(360, 700)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, back = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/[0-9]+/g).slice(0, 3).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert abs(np.mean(ink) - np.mean(back)) > 150
    assert (np.mean(back) < 100) == (scheme == "dark")


def test_nothing_failed_and_nothing_was_fetched(page: Any) -> None:
    assert page.errors == []
    assert [url.partition(":")[0] for url in page.requests] == ["file"]
    assert page.text("#about") == "a toy <b>& its heads</b>"


def test_more_tokens_than_a_page_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"the attention of 5 tokens takes .* a page holds .*: give a shorter text"):
        pages.head_page(watched(), TOKENS, "")


def test_attention_of_a_run_that_diverged() -> None:
    seen = watched()
    seen["decoder"]["cross"].weights[1, 0, 2, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"attention is not a number \(NaN\), as after a training run that diverged"):
        pages.head_page(seen, TOKENS, "")


def test_no_token_ends_the_script() -> None:
    tokens = ["</script><script>alert(1)</script>", "<!--", "@DATA@", "\u2028\x00\\u003c"]
    page = pages.head_page({"encoder": {"self": attention(S, S, 0)}}, {"encoder": tokens}, "</script> @DATA@")
    assert page.lower().count("</script>") == page.lower().count("<script")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert (data["views"][0]["queries"], data["about"]) == (tokens, "</script> @DATA@")


def test_tokens_that_do_not_fit_the_weights() -> None:
    with pytest.raises(ValueError, match="3 and 3 tokens for weights"):
        pages.head_page({"encoder": watched()["encoder"]}, {"encoder": ["a", "b", "c"]}, "")


def test_the_page_is_one_file() -> None:
    text = Path(pages.__file__).with_suffix(".html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|@import|url\(|fetch\(", text)
