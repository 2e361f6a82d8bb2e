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


def raw_tokenizer(template, special=("<|im_end|>", "<|im_start|>")):
    """Pads with what ends a turn, as many do.

    Args:
        template: Chat template.
        special: Special tokens: the one that ends turns, the one that begins texts, and others.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(trained()),
        eos_token=special[0],
        pad_token=special[0],
        bos_token=special[1],
        additional_special_tokens=list(special[1:]),
        chat_template=template,
    )


# The chat templates of published models, as far as they lay out plain conversations: name ->
# special tokens (see `raw_tokenizer`) and template.
_RAISES = "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}"
_ALTERNATES = (
    "{% for m in msgs %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    + _RAISES
    + "{% endif %}"
)
_LLAMA_3_TURN = (
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
    "'<|eot_id|>' }}"
)
_LLAMA_3_INVITE = (
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_LLAMA_3_SYSTEM = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: ' + date_string + '\n\n' + system_message + '<|eot_id|>' }}"
    "{%- for m in messages %}" + _LLAMA_3_TURN + "{%- endfor %}" + _LLAMA_3_INVITE
)
_LLAMA_3_SPECIAL = (
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
# The position of the last question decides which answers keep their thoughts.
_QWEN_3_TURNS = (
    "{%- set ns = namespace(last=messages | length - 1, seeking=true) %}"
    "{%- for m in messages[::-1] %}{%- if ns.seeking and m.role == 'user' %}"
    "{%- set ns.seeking = false %}{%- set ns.last = messages | length - 1 - loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set content = m.content.split('</think>')[-1] %}"
    "{%- if loop.index0 > ns.last and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
)
_QWEN_3_SYSTEM = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
)
_CHATML_SPECIAL = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
_CHATML_INVITE = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
_GEMMA_TURNS = (
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "(first if loop.first and first is defined else '') + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA_SPECIAL = ("<end_of_turn>", "<bos>", "<start_of_turn>")
_DEEPSEEK_SPECIAL = (
    "<｜end▁of▁sentence｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
REAL = {
    "qwen 2.5": (
        _CHATML_SPECIAL,
        "{%- if messages[0]['role'] == 'system' %}"
        "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
        "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
        "assistant.<|im_end|>\n' }}{%- endif %}{%- for m in messages %}"
        "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or "
        "m.role == 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content + "
        "'<|im_end|>\n' }}{%- endif %}{%- endfor %}" + _CHATML_INVITE,
    ),
    "qwen 3": (
        _CHATML_SPECIAL,
        _QWEN_3_SYSTEM
        + _QWEN_3_TURNS
        + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and not enable_thinking %}"
        "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
    ),
    "qwen 3-2507 instruct": (
        _CHATML_SPECIAL,
        _QWEN_3_SYSTEM
        + "{%- for m in messages %}{%- if m.content is string %}{%- set content = m.content %}"
        "{%- endif %}{%- if m.role == 'user' or m.role == 'assistant' %}"
        "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}"
        "{%- endfor %}" + _CHATML_INVITE,
    ),
    "qwen 3-2507 thinking": (
        _CHATML_SPECIAL,
        _QWEN_3_SYSTEM
        + _QWEN_3_TURNS
        + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}",
    ),
    # Newer ones look for the question that they answer.
    "qwen 3.5": (
        _CHATML_SPECIAL,
        _QWEN_3_SYSTEM + "{%- if not messages | selectattr('role', 'equalto', 'user') | list %}"
        "{{- raise_exception('No user query found in messages.') }}{%- endif %}"
        + _QWEN_3_TURNS
        + _CHATML_INVITE,
    ),
    "llama 2": (
        ("</s>", "<s>"),
        "{% if messages[0]['role'] == 'system' %}{% set msgs = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set msgs = messages %}"
        "{% set system_message = false %}{% endif %}"
        + _ALTERNATES
        + "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + m['content'] %}"
        "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    "llama 3": (
        _LLAMA_3_SPECIAL,
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + "
        "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}" + _LLAMA_3_INVITE,
    ),
    "llama 3.1": (
        _LLAMA_3_SPECIAL,
        "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        + _LLAMA_3_SYSTEM,
    ),
    "llama 3.2": (
        _LLAMA_3_SPECIAL,
        "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}" + _LLAMA_3_SYSTEM,
    ),
    "mistral v0.1": (
        ("</s>", "<s>"),
        "{{ bos_token }}{% set msgs = messages %}"
        + _ALTERNATES
        + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}",
    ),
    # The system message stands in the last question, wherever that is.
    "mistral v0.3": (
        ("</s>", "<s>", "[INST]", "[/INST]"),
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] "
        "%}{%- set msgs = messages[1:] %}{%- else %}{%- set msgs = messages %}{%- endif %}"
        "{{- bos_token }}"
        + _ALTERNATES
        + "{%- if m['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
        "{{- '[INST] ' + system_message + '\n\n' + m['content'] + '[/INST]' }}{%- else %}"
        "{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}{%- else %}"
        "{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}",
    ),
    "gemma 2": (
        _GEMMA_SPECIAL,
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% set msgs = messages %}"
        + _ALTERNATES
        + _GEMMA_TURNS,
    ),
    "gemma 3": (
        _GEMMA_SPECIAL,
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
        "{%- set first = messages[0]['content'] + '\n\n' -%}{%- set msgs = messages[1:] -%}"
        "{%- else -%}{%- set first = '' -%}{%- set msgs = messages -%}{%- endif -%}"
        + _ALTERNATES
        + _GEMMA_TURNS,
    ),
    "phi-3": (
        ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}",
    ),
    "phi-4": (
        ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|im_sep|>"),
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + "
        "'<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    ),
    "smollm 2": (
        _CHATML_SPECIAL,
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}" + _CHATML_INVITE,
    ),
    # Marks what is generated, with the header of the turn and the line's end behind it.
    "smollm 3": (
        _CHATML_SPECIAL,
        "{%- if messages[0].role == 'system' -%}{%- set own = messages[0].content -%}"
        "{%- set rest = messages[1:] -%}{%- else -%}{%- set own = 'You are a helpful AI assistant "
        "named SmolLM.' -%}{%- set rest = messages -%}{%- endif -%}"
        "{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + "
        "'\n\n## Custom Instructions\n\n' + own + '<|im_end|>\n' -}}{%- for m in rest -%}"
        "{%- if m.role == 'user' -%}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{%- elif m.role == 'assistant' -%}{% generation %}"
        "{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}"
        "{% endgeneration %}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    ),
    "zephyr": (
        ("</s>", "<s>"),
        "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}\n"
        "{% endfor %}",
    ),
    "deepseek v3": (
        _DEEPSEEK_SPECIAL,
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}"
        "{{ bos_token }}{{ ns.system }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
    ),
    # Invites with the beginning of thoughts, which it takes out of what was said before.
    "deepseek r1": (
        _DEEPSEEK_SPECIAL,
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
        "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    ),
    "falcon 3": (
        ("<|endoftext|>", "<|begin|>"),
        "{% for m in messages %}{% if m['role'] != 'assistant' %}"
        "{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% elif not loop.last %}"
        "{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}{% else %}"
        "{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
    ),
    "vicuna": (
        ("</s>", "<s>"),
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        "{% set msgs = messages[1:] %}{% else %}{{ 'A chat between a curious user and an "
        "artificial intelligence assistant. ' }}{% set msgs = messages %}{% endif %}"
        + _ALTERNATES
        + "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'].strip() + ' ' }}{% else %}"
        "{{ 'ASSISTANT: ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
    # Answers begin with special tokens that the invitation lacks.
    "gpt-oss": (
        ("<|end|>", "<|startoftext|>", "<|start|>", "<|message|>", "<|channel|>"),
        "{{- '<|start|>system<|message|>You are ChatGPT.\nCurrent date: ' + "
        "strftime_now('%Y-%m-%d') + '<|end|>' }}{%- for m in messages %}"
        "{%- if m.role == 'system' %}"
        "{{- '<|start|>developer<|message|># Instructions\n\n' + m.content + '<|end|>' }}"
        "{%- elif m.role == 'assistant' %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
        "{%- else %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}",
    ),
    "granite 3": (
        ("<|end_of_text|>", "<|bos|>", "<|start_of_role|>", "<|end_of_role|>"),
        "{%- for m in messages %}{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + "
        "m['content'] + '<|end_of_text|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}"
        "{%- endif %}",
    ),
}


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
