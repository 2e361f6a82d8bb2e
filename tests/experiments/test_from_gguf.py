"""GGUF files as folders that training starts from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import real_model
from hugging_face import pack, torch_logits
from safetensors.numpy import load_file
from small_networks import logits

from experiments import from_gguf
from experiments.from_gguf import GgufError, convert
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.models import ModelConfig
from ilql_jax.models.hugging_face.read import find, read_config, start_params
from ilql_jax.policy import Policy
from imagination.dialogue import Turn
from imagination.tokenization import DialogueTokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer with a tokenizer of single bytes; returns its tensors."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<|im_start|>", "<|im_end|>"]
    words = [*special, *bytes_to_unicode().values(), "ab"]
    width, inner, numbers = 16, 32, np.random.default_rng(0)
    shapes = {
        "token_embd": (len(words), width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        **{f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (inner, width) for name in ("gate", "up")},
        "blk.0.ffn_down": (width, inner),
    }
    tensors = {name: numbers.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * len(special) + [1] * (len(words) - len(special)))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_weights_tokenizer_and_template_of_a_file_become_a_folder_to_start_from(tmp_path):
    for name in ("gguf", "accelerate", "torch"):
        pytest.importorskip(name, reason="GGUF files need the extra 'gguf'")
    tensors = write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "made" / "tiny"
    convert(tmp_path / "tiny.gguf", folder)
    config = read_config(find(str(folder), weights=False))
    assert (config.hidden_size, config.num_layers, config.max_positions) == (16, 1, 64)
    written = load_file(folder / "model.safetensors")
    embedded, up = (
        written["model.embed_tokens.weight"],
        written["model.layers.0.mlp.up_proj.weight"],
    )
    np.testing.assert_array_equal(embedded, tensors["token_embd"])
    np.testing.assert_array_equal(up, tensors["blk.0.ffn_up"])
    tokenizer = DialogueTokenizer.load(folder)
    context = tokenizer.context([Turn("human", "hi")])
    assert context[0] == context[-len("assistant\n") - 1] == 0 and tokenizer.end == 1
    with pytest.raises(GgufError, match="holds something already"):
        convert(tmp_path / "tiny.gguf", folder)


@pytest.fixture(params=[2, pytest.param(real_model.LAYERS, marks=pytest.mark.slow)])
def real(request, tmp_path):
    """Number of layers, and a folder with so many of SmolLM2's."""
    for name in ("gguf", "accelerate", "torch"):
        pytest.importorskip(name, reason="GGUF files need the extra 'gguf'")
    if not real_model.GGUF.exists():
        pytest.skip("no local model: FETCH_ONLY=1 experiments/local_llm.sh")
    file = real_model.GGUF
    if request.param < real_model.LAYERS:
        file = tmp_path / "first.gguf"
        real_model.write_first_layers(file, request.param)
    convert(file, tmp_path / "smollm2")
    return request.param, tmp_path / "smollm2"


def test_a_real_checkpoint_computes_what_torch_does_and_answers_in_bfloat16(real):
    from transformers import AutoModelForCausalLM

    layers, folder = real
    decoder = read_config(find(str(folder), weights=False))
    assert (decoder.num_layers, decoder.hidden_size) == (layers, 576)
    tokenizer = DialogueTokenizer.load(folder)
    context = tokenizer.context([Turn("human", "Which city is the capital of France?")])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    expected = torch_logits(model, context.astype(np.int64))

    scanned = ModelConfig(replace(decoder, scan_layers=True), 8, value_heads="tied")
    params = start_params(folder, scanned, seed=0)
    ours = logits(scanned, params, pack([context], 40))[0, : len(context)]
    assert np.abs(ours - expected).max() < 1e-5 * np.ptp(expected)
    np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))

    policy = Policy(
        ModelConfig(replace(scanned.decoder, compute_dtype="bfloat16"), 8, value_heads="tied"),
        params,
        DecodingConfig.parse("greedy"),
        stop_token=tokenizer.end,
        allowed=tokenizer.writable(decoder.vocab_size),
        max_utterance=12,
        batch_size=1,
        max_context=64,
    )
    answer = policy.respond([context], [0])[0]
    assert np.isfinite([answer.log_prob, answer.q, answer.v]).all()
    # Rounding decides between words that are as good as equal.
    assert ours[-1][answer.tokens[0]] > ours[-1].max() - 0.05 * np.ptp(ours[-1])
    assert any(map(str.isalpha, tokenizer.decode(answer.tokens)))


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(from_gguf, "require_extra", lambda: None)
    with pytest.raises(GgufError, match="there is no such file"):
        convert(tmp_path / "nothing.gguf", tmp_path / "made")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(GgufError, match=r"accelerate is not installed.*\[gguf\]"):
        convert(tmp_path / "nothing.gguf", tmp_path / "made")
    assert not (tmp_path / "made").exists()
