"""The pure modules of the page, called in the browser: curves that grow, differences, token colours, the formula."""

import pytest


@pytest.fixture
def call(site):
    """call(module, expression with `m`, argument `x`)"""
    page = site.page()

    def run(module, expression, argument=None):
        return page.evaluate(
            f"async (x) => {{ const m = await import('{site.base}/page/app/{module}'); return {expression}; }}",
            argument,
        )

    return run


def test_curves_are_appended_and_replaced(call):
    first = {
        "reset": True, "cursor": "a", "bucket": 2, "steps": [1, 3], "last_steps": [2, 4], "names": ["r"],
        "attempts": [], "num_rows": 4, "series": {"r": {"mean": [0.1, 0.2], "min": [0.0, 0.1], "max": [0.2, 0.3]}},
    }  # fmt: skip
    more = {"reset": False, "cursor": "b", "bucket": 1, "steps": [5], "series": {"s": {"mean": [7]}}}
    held = call("series.js", "m.addSeries(m.addSeries(m.emptySeries(), x[0]), x[1])", [first, more])
    assert (held["steps"], held["lastSteps"], held["cursor"], held["names"]) == ([1, 3, 5], [2, 4, 5], "b", ["r"])
    assert held["series"]["r"] == {"mean": [0.1, 0.2, None], "min": [0.0, 0.1, None], "max": [0.2, 0.3, None]}
    assert held["series"]["s"]["mean"] == [None, None, 7]
    again = call(
        "series.js", "m.addSeries(m.addSeries(m.emptySeries(), x[0]), x[1])", [first, first | {"steps": [9, 10]}]
    )
    assert again["steps"] == [9, 10]


def test_smoothing_keeps_gaps(call):
    assert call("series.js", "m.smooth(x, 2)", [1, None, 3, 5]) == [1, None, 2, 4]
    assert call("series.js", "m.smooth(x, 1)", [1, None, 3]) == [1, None, 3]


def test_differences_are_word_by_word(call):
    parts = call("diff.js", "m.newParts(x[0], x[1])", ["the sum is 12 in all", "the sum was 13 in all"])
    assert "".join(part["text"] for part in parts) == "the sum was 13 in all"
    assert [part["text"] for part in parts if part["isNew"]] == ["was", "13"]
    long = call("diff.js", "m.newParts(x[0], x[1])", ["a " * 2000 + "x", "b " * 2000 + "x"])
    assert [part["isNew"] for part in long] == [True, False]


def test_token_colours_follow_their_formulas(call):
    columns = {
        "logp_infer": [-0.1, -2.0, -0.5], "delta": [0.0, 0.5, 0.0], "delta_ref": [0.0, 1.0, -1.0], "mask": [1, 1, 0],
        "ratio": [1.0, 1.5, 2.0],
    }  # fmt: skip
    of = "m.shades(m.MODES.find((mode) => mode.id === x[0]), x[1], -2, 3)"
    push = call("token_modes.js", of, ["push", columns])
    assert push["values"][:2] == pytest.approx([-2 * (1 - 0.904837), -2 * (1 - 0.223130)], abs=1e-5)
    assert push["values"][2] is None, "tokens that do not train have no colour"
    assert push["levels"] == [1, 4, 0]
    assert call("token_modes.js", of, ["ratio", columns])["values"] == [0, -1, None]
    kl = call("token_modes.js", of, ["kl", columns])["values"]
    assert kl[:2] == pytest.approx([0, 0.367879], abs=1e-5)
    offered = call("token_modes.js", "m.modesFor(x).map((mode) => mode.id)", {"logp_infer": [-1], "ratio": [None]})
    assert offered == ["push", "surprise"]


def test_token_texts_are_cut_by_code_points(call):
    data = {"text": "a😀b", "text_offset": 10, "columns": {"text_offsets": [10, 11, 12, 13]}}
    assert call("token_modes.js", "m.tokenTexts(x)", data) == ["a", "😀", "b", ""]


def test_the_formula_is_shown_only_where_it_holds(call):
    answers = [{"reward": 1.0, "advantage": 0.7071}, {"reward": 0.0, "advantage": -0.7071}]
    group = {"mean": 0.5, "std": 0.7071, "completions": answers, "loss": {"scale_rewards": "group"}}
    assert call("charts/grpo_layout.js", "m.ruleOf(x).holds", group)
    batch = group | {"loss": {"scale_rewards": "batch"}}
    assert not call("charts/grpo_layout.js", "m.ruleOf(x).holds", batch)
    plain = group | {"loss": {"scale_rewards": "none"}, "completions": [{"reward": 1.0, "advantage": 0.5}]}
    assert call("charts/grpo_layout.js", "[m.ruleOf(x).holds, m.ruleOf(x).formula]", plain) == [True, "A = r − mean"]


def test_numbers_are_written_short(call):
    numbers = [0, 0.5, -0.71234, 1463.7, 12345, 1.5e-6, None]
    assert call("format.js", "x.map(m.short)", numbers) == ["0", "0.5", "−0.712", "1464", "12.3k", "1.5e−6", "–"]
    assert call("format.js", "x.map(m.duration)", [0.25, 61, 4000]) == ["250 ms", "1 min 01 s", "1 h 06 min"]
    borders = [0.9996, 9.94, 9.97, 59.7, 119.6, 3599.7, 172799.9]
    words = ["1.0 s", "9.9 s", "10 s", "1 min 00 s", "2 min 00 s", "1 h 00 min", "2 d 0 h"]
    assert call("format.js", "x.map(m.duration)", borders) == words
    assert call("format.js", "x.map(m.percent)", [0.004, 0.5, 1]) == ["0.4%", "50%", "100%"]


def test_routes_survive_the_way_there_and_back(call):
    route = call("routes.js", "m.parse(m.href('group', {run: 'a b/c?', step: 3, group: -7}, {split: 'eval_x&y'}))")
    assert route == {
        "name": "group",
        "params": {"run": "a b/c?", "step": "3", "group": "-7"},
        "query": {"split": "eval_x&y"},
    }
