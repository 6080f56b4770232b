"""Offsets cut a completion's text into the texts of its tokens, whatever a tokenizer does to characters and spaces."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gruppo.chat import decode_completions
from gruppo.demo.tokenizer import build_tokenizer
from gruppo.monitor.text_offsets import TextOffsets
from tiny_tokenizer import ids as word_ids
from tiny_tokenizer import tiny_tokenizer

CORPUS = ["the cat sat on the mat. It's déjà vu, naïve café", "你好 世界 😀 the end", "aa bb 12 + 34 = 46\n\n\tx"]


def learned_bytes():
    """Byte-level pairs, as GPT-2, Llama 3 and Qwen have them; too few merges to keep all characters whole."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


def fallback_bytes():
    """Pieces that begin with a mark for the space, and bytes for unknown characters, as Llama 2 and Gemma have them."""
    pieces = ["<eos>", "<unk>", "▁", "▁the", "▁cat", "at", "s", "c", "a", "t", "h", "e", ".", "▁s"]
    vocab = {piece: i for i, piece in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])}
    merges = [("▁", "s"), ("a", "t")]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


TOKENIZERS = {"bytes": build_tokenizer(), "learned": learned_bytes(), "fallback": fallback_bytes()}
OFFSETS = {
    name: TextOffsets(partial(tokenizer.decode, skip_special_tokens=True)) for name, tokenizer in TOKENIZERS.items()
}


def pieces(name, token_ids):
    """The texts of the tokens, which together must be the completion's text."""
    (text,) = decode_completions(TOKENIZERS[name], [token_ids])
    starts = OFFSETS[name].of(token_ids, text)
    assert starts is not None, text
    assert starts == sorted(starts)
    assert starts[:1] in ([], [0])
    cut = [text[a:b] for a, b in pairwise([*starts, len(text)])]
    assert "".join(cut) == text
    return cut


def encode(name, text):
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


def test_a_character_of_several_tokens_belongs_to_the_first():
    eos = TOKENIZERS["bytes"].eos_token_id
    assert pieces("bytes", [*encode("bytes", "aé 😀!"), eos]) == ["a", "é", "", " ", "😀", "", "", "", "!", ""]


@pytest.mark.parametrize("name", ["bytes", "learned"])
@given(text=st.text(alphabet=st.sampled_from("the cat .é你好😀👩‍👧\n\t 12"), max_size=40))
def test_any_text_is_cut(name, text):
    assert "".join(pieces(name, encode(name, text))) == text


def test_learned_pieces_are_the_tokens():
    token_ids = encode("learned", "the cat 😀 你好")
    alone = [TOKENIZERS["learned"].decode([token_id]) for token_id in token_ids]
    cut = pieces("learned", token_ids)
    assert any("\ufffd" in piece for piece in alone)  # else this shows nothing
    assert [c for c, a in zip(cut, alone, strict=True) if "\ufffd" not in a] == [a for a in alone if "\ufffd" not in a]


def test_spaces_that_a_decoder_strips_at_the_start():
    vocab = TOKENIZERS["fallback"].get_vocab()
    emoji = [vocab[f"<0x{byte:02X}>"] for byte in "é".encode()]
    token_ids = [vocab["▁the"], vocab["▁cat"], vocab["▁"], *emoji, vocab["."], vocab["▁the"], vocab["<eos>"]]
    assert pieces("fallback", token_ids) == ["the", " cat", " ", "é", "", ".", " the", ""]
    assert pieces("fallback", [vocab["at"], vocab["▁"], vocab["▁cat"]]) == ["at", " ", " cat"]


def test_words_that_a_decoder_joins_with_spaces():
    tokenizer = tiny_tokenizer()
    offsets = TextOffsets(partial(tokenizer.decode, skip_special_tokens=True))
    token_ids = word_ids("two three <eos>")
    assert offsets.of(token_ids, tokenizer.decode(token_ids, skip_special_tokens=True)) == [0, 3, 9]


@given(st.lists(st.integers(0, 260), max_size=40))
def test_bytes_that_are_no_text_are_cut_right_or_not_at_all(token_ids):
    text = TOKENIZERS["bytes"].decode(token_ids, skip_special_tokens=True)
    starts = OFFSETS["bytes"].of(token_ids, text)
    if starts is not None:
        assert len(starts) == len(token_ids)
        assert starts == sorted(starts)
        assert not starts or 0 <= starts[0] <= starts[-1] <= len(text)


def test_a_text_of_other_tokens_is_not_cut():
    assert OFFSETS["bytes"].of(encode("bytes", "abc"), "abd") is None
    assert OFFSETS["bytes"].of(encode("bytes", "abc"), "abcd") is None
    assert OFFSETS["bytes"].of([], "") == []


def test_each_id_is_decoded_once():
    calls = []
    tokenizer = TOKENIZERS["bytes"]

    def decode(token_ids):
        calls.append(token_ids)
        return tokenizer.decode(token_ids, skip_special_tokens=True)

    offsets = TextOffsets(decode)
    token_ids = encode("bytes", "aé" * 50)
    for _ in range(3):
        assert offsets.of(token_ids, "aé" * 50) is not None
    assert len(calls) <= 10
