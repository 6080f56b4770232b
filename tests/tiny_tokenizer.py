"""A word-level tokenizer of a few words for tests: BOS on text, a chat template, unknown words become <unk>."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", "system", "one", "two", "three", "four", "five"]
ID = {word: i for i, word in enumerate(WORDS)}

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ message['role'] + ' ' + message['content'] + ' <eos> ' }}"
    "{% if message.name is defined %}{{ 'five ' }}{% endif %}"
    "{% endfor %}"
    "{% if shout is defined and shout %}{{ 'four ' }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def tiny_tokenizer(*, bos: bool = True, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(vocab=ID, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ID["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]
