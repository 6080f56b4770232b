"""Reward models: a tiny random Llama classifier with a word tokenizer, made here."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from gruppo.errors import RewardError
from gruppo.rewards import Scorer, prepare_rewards
from rewards.reward_rows import chat, group

WORDS = ["<pad>", "<s>", "user", "assistant", ":", *"abcdefgh"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
TEXTS = [" a b", " c", " d e f g h", "", " a a a", " b", " c d", " e", " f g", " h h", " a h"]


def make_tokenizer(template: str | None = None, **special) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = Whitespace()
    special = special or {"pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", chat_template=template, **special)


def make_model() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
        attention_dropout=0.5,
    )
    return LlamaForSequenceClassification(config)


def score_by_hand(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """One text at a time: no padding can go wrong."""
    ids = [tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"] for text in texts]
    with torch.no_grad():
        return torch.cat([model.eval()(input_ids=row).logits[:, 0] for row in ids])


def score(sources, groups):
    with Scorer(sources) as scorer:
        return scorer.score(groups)


def test_standard_prompts_in_any_number_of_forwards():
    model, tokenizer = make_model().train(), make_tokenizer()
    sources = prepare_rewards(model, reward_processing_classes=tokenizer, is_conversational=False)
    rewards = score(sources, [group("g h", TEXTS[:6]), group("a", TEXTS[6:], id=1)])
    texts = ["g h" + text for text in TEXTS[:6]] + ["a" + text for text in TEXTS[6:]]
    torch.testing.assert_close(rewards.rewards_NF[:, 0], score_by_hand(model, tokenizer, texts), rtol=1e-5, atol=1e-6)
    assert rewards.names == ["LlamaForSequenceClassification"]
    assert rewards.rewards_NF.std() > 0.01
    assert not rewards.rewards_NF.requires_grad
    assert not model.training


def test_conversations_go_through_the_chat_template():
    model, tokenizer = make_model(), make_tokenizer(TEMPLATE)
    sources = prepare_rewards([model], reward_processing_classes=[tokenizer], is_conversational=True)
    rewards = score(sources, [group(chat("a b"), ["c", "d e"])])
    texts = ["user : a b assistant : c", "user : a b assistant : d e"]
    torch.testing.assert_close(rewards.rewards_NF[:, 0], score_by_hand(model, tokenizer, texts), rtol=1e-5, atol=1e-6)


def test_chat_template_kwargs_reach_the_template():
    tokenizer = make_tokenizer("{{ extra }} {{ messages[-1]['content'] }}")
    model = make_model()
    sources = prepare_rewards(
        model, reward_processing_classes=tokenizer, is_conversational=True, chat_template_kwargs={"extra": "h h"}
    )
    rewards = score(sources, [group(chat("a"), ["c"])])
    expected = score_by_hand(model, tokenizer, ["h h c"])
    torch.testing.assert_close(rewards.rewards_NF[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_pad_token_falls_back_to_eos_and_reaches_the_model():
    model, tokenizer = make_model(), make_tokenizer(padding_side="left")
    assert tokenizer.pad_token_id is None
    source = prepare_rewards(model, reward_processing_classes=tokenizer)[0]
    assert source.processing_class.pad_token == "<s>"
    assert model.config.pad_token_id == WORDS.index("<s>")


def test_a_tokenizer_without_chat_template_is_refused_for_conversations():
    with pytest.raises(RewardError, match="without a chat template"):
        prepare_rewards(make_model(), reward_processing_classes=make_tokenizer(), is_conversational=True)


def test_loading_by_path(tmp_path):
    path = tmp_path / "judge"
    model, tokenizer = make_model(), make_tokenizer()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)

    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    given = [f"{path}/", length]
    # A revision means something only for the policy: were it passed on, the tokenizer or model could not be the same.
    policy_kwargs = {"revision": "policy-branch", "dtype": "float64", "device_map": "nowhere"}
    sources = prepare_rewards(given, model_init_kwargs=policy_kwargs)
    assert given == [f"{path}/", length]
    assert policy_kwargs == {"revision": "policy-branch", "dtype": "float64", "device_map": "nowhere"}
    rewards = score(sources, [group("g h", TEXTS)])
    assert rewards.names == ["judge", "length"]
    assert sources[0].function.dtype == torch.float64
    expected = score_by_hand(model, tokenizer, ["g h" + text for text in TEXTS])
    torch.testing.assert_close(rewards.rewards_NF[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_two_models_of_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("one", "two"):
        make_model().save_pretrained(tmp_path / folder / "judge")
        make_tokenizer().save_pretrained(tmp_path / folder / "judge")
    sources = prepare_rewards([str(tmp_path / "one" / "judge"), "~/two/judge"])
    assert [source.name for source in sources] == ["judge", "judge_2"]


def test_a_model_that_does_not_load(tmp_path):
    with pytest.raises(RewardError, match=r"^There is no folder '.*nothing' here, and loading the reward model"):
        prepare_rewards(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match=r"^Loading the reward model '.*empty' as a sequence classifier"):
        prepare_rewards(str(tmp_path / "empty"))


def test_a_causal_lm_is_no_reward_model(tmp_path):
    """transformers gives it a random head, and says so in a table that scrolls by."""
    LlamaForCausalLM(make_model().config).save_pretrained(tmp_path / "chat")
    make_tokenizer().save_pretrained(tmp_path / "chat")
    with pytest.raises(RewardError) as raised:
        prepare_rewards(str(tmp_path / "chat"))
    assert "no trained classifier: its files do not hold score.weight, so transformers drew" in str(raised.value)
