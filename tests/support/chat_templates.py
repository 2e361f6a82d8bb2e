"""Chat templates of several kinds, a small tokenizer that carries them, and a dialogue."""

from __future__ import annotations

import functools

import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerFast

from imagination.dialogue import Dialogue, Turn

WORDS = "Hello there, what do you know about plants? Not much. Then let us begin! <|im_end|>"

ALL = "{% for m in messages %}"
INVITE = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = ALL + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + INVITE
MARKED = (
    ALL + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}" + INVITE
)
# Like Qwen 3: the last answer is laid out in another way than those before it.
THINKS_LAST = (
    ALL + "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n" + INVITE
)
COUNTS = (
    ALL + "{{ messages | length }} <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>" + INVITE
)
ENDLESS = ALL + "{{ m.role }}: {{ m.content }}\n" + INVITE
ALTERNATES = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}"
    + CHATML
)


@functools.cache
def trained():
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS, WORDS], trainer)
    return bpe.to_str()


def raw_tokenizer(template):
    """Pads with what ends a turn, as many do."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(trained()),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


TURNS = (
    Turn("human", "Hello there"),
    Turn("agent", "what do you know about plants?", reward=0.5),
    Turn("human", "Not much."),
    Turn("agent", "Then let us begin!"),
)
DIALOGUE = Dialogue("d", "t", TURNS, reward=1.0)


def said(tokenizer, trajectory):
    """Each stretch of the agent's tokens, as text with the special tokens."""
    raw = tokenizer._tokenizer
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trajectory.is_action, [0]])))
    return [
        raw.decode(trajectory.tokens[start:stop])
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]
