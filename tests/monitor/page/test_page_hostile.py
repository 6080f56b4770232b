"""Hostile text in every field of a run: no script runs, nothing is asked for elsewhere, nothing hides."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from gruppo.monitor.files import write_parquet
from gruppo.types import Completion, Group, Prompt, RewardTable

CORPUS = (
    "<script>pwned(1)</script>",
    "<img src=x onerror=pwned(2)>",
    "<svg onload=pwned(3)><animate onbegin=pwned(4) attributeName=x>",
    "\"><iframe srcdoc='<script>parent.pwned(5)</script>'></iframe>",
    "javascript:pwned(6)",
    "<a href='javascript:pwned(7)' autofocus onfocus=pwned(8)>click</a>",
    "</title></textarea></style></script><script>pwned(9)</script>",
    "${pwned(10)} {{constructor.constructor('pwned(11)')()}} <%= pwned(12) %>",
    "<link rel=stylesheet href=//example.org/x.css><meta http-equiv=refresh content='0;url=//example.org'>",
    "<base href=//example.org/><form action=//example.org><input name=innerHTML>",
    "![x](http://example.org/x.png) [x](javascript:pwned(13)) http://example.org",
    "user\u202etxt.exe\u202c \u2066hidden\u2069 \u200bzero\u200dwidth\ufeff \u00ad",
    "\x00\x07\x08\x1b[31mred\x1b[0m\x7f\x9b\r\nline",
    "\u2028\u2029\ufff9note\ufffa\ufffb \U000e0041\U000e007f",
    "Z\u0361\u035c\u0321a\u0334\u0335l\u0300\u0301\u0302\u0303\u0304\u0305g\u0306\u0307o" * 3,
    "مرحبا שלום mixed 123 العربية",
    "__proto__ constructor toString hasOwnProperty",
)
ALL = " | ".join(CORPUS)

HIDDEN = (
    r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)

FIND_HIDDEN = """(pattern) => {
  const found = [], hidden = new RegExp(pattern, 'u');
  const walker = document.createTreeWalker(document, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.nodeType === 3 && hidden.test(node.data)) found.push(node.data);
    for (const { name, value } of node.attributes ?? []) {
      if (name !== 'value' && hidden.test(value)) found.push(name + '=' + value);
    }
  }
  return found.slice(0, 5);
}"""

FOREIGN = (
    "img:not([src='page/icon.svg']), script:not([src^='page/']), iframe, object, embed, base, form[action],"
    " meta[http-equiv]"
)

VIEWS = {
    "runs": "/",
    "overview": "/run/{a}",
    "health": "/run/{a}/health",
    "rewards": "/run/{a}/rewards",
    "step": "/run/{a}/step/1",
    "group": "/run/{a}/step/1/group/3",
    "completion": "/run/{a}/sample/1.3.0.train",
    "tokens": "/run/{a}/sample/1.3.0.train/tokens",
    "prompts": "/run/{a}/prompt",
    "prompt": "/run/{a}/prompt/3",
    "evals": "/run/{a}/evals",
    "timeline": "/run/{a}/timeline",
    "discarded": "/run/{a}/discarded",
    "discarded-dropped": "/run/{a}/discarded?reason=cut",
    "compare": "/compare/{a}/{b}?prompt=3",
    "settings": "/run/{a}/settings",
}


@pytest.fixture(scope="module")
def hostile(served_site, golden):
    """A run whose every text is the corpus; its folder has a hostile name too."""
    folder = served_site.folder / "<img src=x onerror=pwned(0)>\u202eevil"
    story = replace(golden.STORIES[0], name=ALL)
    writer = golden.RunWriter(folder, story)
    record(writer)
    rewrite_run_json(folder)
    page = served_site.page()
    link = page.locator("a.run-name", has_text="evil")
    link.wait_for()
    ids = {"a": link.get_attribute("href").removeprefix("#/run/"), "b": served_site.run("sums")}
    served_site.close_pages(is_checked=True)
    yield ids
    writer.close(ALL)


def record(writer):
    names = [CORPUS[1], "f\u202e\x1b[31m", "__proto__"]
    messages = [{"role": text, "content": text} for text in CORPUS]
    prompts = [Prompt(3, messages, [1], {text: text for text in CORPUS}), Prompt(4, ALL, [1], {})]
    groups = [
        Group(
            prompt, [Completion(i, [5] * 9, "length" if i else "stop", [-0.5] * 9, text=ALL + str(i)) for i in range(4)]
        )
        for prompt in prompts
    ]
    statuses = [["ok", ALL, "error"] for _ in range(8)]
    values = torch.tensor([[float(i % 2), 0.1, float("nan")] for i in range(8)])
    table = RewardTable(names, values, statuses, extras={text: [text] * 8 for text in CORPUS})
    rewards = values[:, 0]
    rows = type("Rows", (), {})()
    rows.advantages_N, rows.rewards_N = rewards - 0.5, rewards
    rows.group_mean_N, rows.group_std_N = torch.full((8,), 0.5), torch.full((8,), 0.5)
    recorder = writer.recorder
    for split in ("train", "eval", "eval_<b>\u202e"):
        recorder.record_rollouts(1, split, groups, table, rows, policy_version=0)
    metrics = {f"rewards/{name}/{part}": 0.5 for name in names for part in ("mean", "std")}
    metrics |= {f"time/{text}": 0.1 for text in CORPUS} | {"reward": 0.5, "entropy": 1.0, "grad_norm": 0.1}
    recorder.record_step(1, metrics)
    recorder.record_step(1, {f"eval_{text}": 0.5 for text in CORPUS} | {"eval_reward": 0.5}, split="eval")
    recorder.record_step(1, {"eval_<b>\u202e_reward": 0.5}, split="eval_<b>\u202e")
    evidence = [{"step": 1, "group_id": 3, "sample": 0}]
    for text in CORPUS:
        recorder.record_event(
            "finding", detector=text, name=text, severity="WARN", step=1, value=1.0, threshold=0.5, message=text,
            advice=text, evidence=evidence, docs="javascript:pwned(20)", is_cleared=False, action=text,
        )  # fmt: skip
        recorder.record_event(text, step=1, **{text: text})
    write_tokens(writer.folder, ALL + "0")


def write_tokens(folder, text):
    size = len(text)
    columns = {"step": [1], "group_id": [3], "sample": [0], "split": ["train"], "mask": [[1] * size]}
    columns |= {"completion_ids": [[1] * size], "text_offsets": [list(range(size))]}
    columns |= {"logp_infer": [np.full(size, -0.5).tolist()], "delta": [np.zeros(size).tolist()]}
    write_parquet(folder / "tokens" / "step-000001" / "part-r0-a1.parquet", pa.table(columns))


def rewrite_run_json(folder):
    path = folder / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    run["run_id"] = run["created"] = ALL
    attempt = run["attempts"][-1]
    attempt["config"] |= {"model": ALL, "loss_type": ALL, "scale_rewards": ALL} | {text: text for text in CORPUS}
    attempt["plan"] = list(CORPUS)
    attempt["versions"] |= {text: text for text in CORPUS}
    attempt["seeds"] = {text: 1 for text in CORPUS}
    attempt["device"] = {"type": ALL, "name": ALL, "count": 2}
    path.write_text(json.dumps(run), encoding="utf-8")


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_text_is_only_text(site, hostile, view):
    page = site.page(VIEWS[view].format(**hostile))
    page.locator("main h1").first.wait_for()
    page.wait_for_timeout(400)
    assert "could not be loaded" not in page.locator("main").inner_text()
    page.locator("details").evaluate_all("all => all.forEach((details) => { details.open = true; })")
    for button in page.locator(".figure-head button:visible").all():
        button.click()
    page.wait_for_timeout(200)
    assert page.evaluate(FIND_HIDDEN, HIDDEN) == []
    assert page.locator(FOREIGN).count() == 0
    assert page.locator("[onerror], [onload], [onfocus], [style*=url]").count() == 0
    hrefs = page.locator("a[href]").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert [href for href in hrefs if not href.startswith("#")] == []


def test_the_answer_reads_as_it_was_written(site, hostile):
    page = site.page(VIEWS["completion"].format(**hostile))
    page.locator(".long-text").wait_for()
    shown = page.locator(".long-text").text_content()
    for text in CORPUS[:11]:
        assert text in shown
    labels = page.locator(".long-text .ctl").all_text_contents()
    assert labels[:3] == ["RLO", "PDF", "LRI"]
    assert page.locator(".long-text .ctl").first.get_attribute("title") == "U+202E right-to-left override"
    assert "مرحبا שלום" in shown
    page.get_by_role("button", name="every character").click()
    assert "↵" in page.locator(".long-text").text_content()


def test_tokens_of_hostile_text_join_to_it(site, hostile):
    page = site.page(VIEWS["tokens"].format(**hostile))
    page.locator(".token-text").wait_for()
    tokens = page.locator(".token-text > .tok")
    assert tokens.count() == len(ALL) + 1
    assert tokens.nth(0).text_content() == "<"
    assert tokens.nth(ALL.index("\u202e")).text_content() == "RLO"


def test_the_title_of_the_tab_is_harmless(site, hostile):
    page = site.page(VIEWS["overview"].format(**hostile))
    page.get_by_text("Curves").wait_for()
    assert page.title() == "<img src=x onerror=pwned(0)>⟦RLO⟧evil · gruppo"


@pytest.mark.may_complain
def test_a_long_answer_comes_in_pieces(site, golden):
    """Ten million characters: the first piece is shown at once, the next on request."""
    writer = golden.RunWriter(site.folder / "long", replace(golden.STORIES[0], name="long"))
    group = Group(Prompt(3, "p", [1], {}), [Completion(0, [5], "stop", [-0.5], text="word " * 2_000_000)])
    table = RewardTable(["exact"], torch.ones(1, 1), [["ok"]])
    writer.recorder.record_rollouts(1, "train", [group], table, None, policy_version=0)
    writer.recorder.record_step(1, {"reward": 1.0})
    writer.close()
    page = site.page(f"/run/{site.run('long')}/sample/1.3.0.train")
    text = page.locator(".long-text")
    text.wait_for()
    assert len(text.text_content()) == 20_000
    more = page.get_by_role("button", name="Show more")
    refusal = {"status": 503, "json": {"error": {"code": "busy", "message": "Too busy."}}}
    page.route("**/text?*", lambda call: call.fulfill(**refusal))
    more.click()
    page.get_by_role("alert").get_by_text("Too busy.").wait_for()
    page.unroute("**/text?*")
    more.click()
    page.locator(".piece").nth(1).wait_for()
    assert len(text.text_content()) == 120_000
    assert page.get_by_role("alert").count() == 0
    held = []

    def hold(call):
        held.append(call)

    page.route("**/text?*", hold)
    with page.expect_request("**/text?*"):
        more.dblclick()
    page.evaluate("0")  # whatever the second click asked has been asked by now
    for call in held:
        call.continue_()
    page.locator(".piece").nth(2).wait_for()
    assert len(held) == 1, "a double click asks for the piece once"
    assert len(text.text_content()) == 220_000
    page.unroute("**/text?*")
    more.click()
    page.locator(".piece").nth(3).wait_for()
    assert len(text.text_content()) == 320_000
