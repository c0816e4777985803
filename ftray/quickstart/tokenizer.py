"""The base model's tokenizer: byte-level BPE trained on the corpus, with a chat template that marks the answers.

Every end of a text and of an answer is written with the same trained end token, so the model learns when to stop.
"""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftray.quickstart.corpus import Document, documents

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# The blank after "Bot:" belongs to the answer: a byte-level tokenizer joins blanks to the word that follows them, so
# "Bot:" is the same token with and without an answer, and every prompt is a prefix of its conversation.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Bot:' }}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Bot:' }}{% endif %}"
)
_NUM_DOCUMENTS = 4000


def train_tokenizer(*, seed: int, vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the corpus, with the chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(documents(seed), _NUM_DOCUMENTS)
    core.train_from_iterator((_plain(document) for document in sample), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def render(document: Document) -> str:
    """Return the document as the model reads it; chats look as the chat template writes them."""
    if not document.turns:
        return f"{BOS}{document.text}{EOS}"
    return BOS + "".join(f"User: {turn.question}\nBot: {turn.answer}{EOS}" for turn in document.turns)


def _plain(document: Document) -> str:
    return render(document).replace(BOS, "").replace(EOS, "\n")
