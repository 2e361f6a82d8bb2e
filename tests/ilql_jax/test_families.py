"""Each family against torch, and the ways of computing a network against each other."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face import FAMILIES, GEMMA, VOCAB, pack, random_model, torch_logits
from small_networks import logits

from ilql_jax.decode import sample
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models.attention import attend, packed_causal_mask
from ilql_jax.models.hugging_face.families import (
    PretrainedError,
    decoder_config,
    hugging_face_config,
)
from ilql_jax.models.hugging_face.read import read_config, start_params
from ilql_jax.models.kv_cache import KVCache, prefill
from ilql_jax.models.rotary import RotaryScaling, frequencies


@functools.cache
def torch_model(name):
    return random_model(name)


@pytest.fixture
def family(request, tmp_path):
    """A network in torch, and ours read from its files."""
    model = torch_model(request.param)
    model.save_pretrained(tmp_path)
    config = ModelConfig(read_config(tmp_path), 8)
    return model, config, start_params(tmp_path, config, seed=0)


def random_dialogues():
    rng = np.random.default_rng(0)
    return [rng.integers(VOCAB, size=length) for length in (23, 30, 4)]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_packed_logits_agree_with_torch(family):
    model, config, params = family
    dialogues = random_dialogues()
    expected = np.concatenate([torch_logits(model, dialogue) for dialogue in dialogues])
    assert expected.std() > 0.4
    ours = logits(config, params, pack(dialogues, 60))[0, : len(expected)]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


# The others differ from it in what packed logits show as well.
DECODED = ("gemma3",)


@pytest.mark.parametrize(
    "family",
    [name if name in DECODED else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
    indirect=True,
)
def test_greedy_generation_agrees_with_torch(family):
    model, config, params = family
    dialogues = random_dialogues()
    written = greedy(config, params, dialogues, max_length=20)
    for dialogue, ours in zip(dialogues, written, strict=True):
        assert ours.tolist() == greedy_in_torch(model, dialogue, 19)


def greedy(config, params, contexts, max_length):
    """Writes greedily after each context; without the last token, which is a forced stop token."""
    padded = np.zeros((len(contexts), 32), np.int32)
    for row, context in enumerate(contexts):
        padded[row, : len(context)] = context
    samples = sample(
        config,
        params,
        padded,
        np.int32([len(context) for context in contexts]),
        jax.vmap(jax.random.key)(jnp.arange(len(contexts))),
        jnp.arange(VOCAB) > 0,
        jnp.float32(0),
        jnp.float32(0),
        num_samples=1,
        max_length=max_length,
        stop_token=0,
        steer=None,
    )
    return np.asarray(samples.tokens)[:, 0, :-1]


def greedy_in_torch(model, context, new_tokens):
    import torch

    inputs = torch.tensor(context)[None]
    written = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new_tokens,
        do_sample=False,
        bad_words_ids=[[0]],
        pad_token_id=0,
    )
    return written[0, len(context) :].tolist()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_config_json_is_read_and_written_to_the_same_shape(name):
    transformers = pytest.importorskip("transformers")
    kind, fields = FAMILIES[name]
    config = decoder_config(transformers.AutoConfig.for_model(kind, **fields).to_diff_dict())
    family, written = hugging_face_config(config)
    assert decoder_config(written) == config
    assert family.model_type == kind


def test_config_json_of_older_releases_is_understood():
    old = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 1e6,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    }
    found = decoder_config(old)
    growth = 0.1 * math.log(4) + 1
    assert found.rotary_base == 1e6
    assert found.rotary_scaling == RotaryScaling("yarn", 4.0, 32768, 1.0, 32.0, growth)


@pytest.mark.parametrize(
    ("scaling", "base", "rope"),
    [
        (
            RotaryScaling("llama3", 8.0, 8192, 1.0, 4.0),
            500_000.0,
            {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
        (RotaryScaling("yarn", 4.0, 32768, 1.0, 32.0, 1.1386), 1e6, {}),
        (RotaryScaling("linear", 4.0), 10_000.0, {}),
    ],
    ids=["llama3", "yarn", "linear"],
)
def test_frequencies_of_full_size_agree_with_transformers(scaling, base, rope):
    pytest.importorskip("torch", reason="parity with torch needs the extra 'parity'")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope | {"rope_type": scaling.kind, "rope_theta": base, "factor": scaling.factor}
    if scaling.original_max_positions:
        rope["original_max_position_embeddings"] = scaling.original_max_positions
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope)
    theirs, growth = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu")
    np.testing.assert_allclose(frequencies(128, base, scaling), theirs.numpy(), rtol=2e-5)
    assert scaling.attention_factor == pytest.approx(growth, abs=1e-4)
    assert not np.allclose(theirs, np.asarray(frequencies(128, base, None)))


# --- ways of computing --------------------------------------------------------------------------

LLAMA = DecoderConfig(
    VOCAB,
    32,
    3,
    4,
    48,
    64,
    position_encoding="rotary",
    num_kv_heads=2,
    layers_without_rotary=(1,),
    norm="rms_norm",
    mlp="swiglu",
    fused_qkv=False,
    qk_norm=True,
    mlp_bias=False,
    tied_output=False,
    initializer_range=0.1,
)
GPT2 = DecoderConfig(VOCAB, 32, 3, 4, 48, 64, initializer_range=0.1)
ROW = pack([np.arange(20) % VOCAB, np.arange(7, 30) % VOCAB], 48)


def stacked(params):
    """The parameters of `scan_layers`, out of those of a block each."""
    blocks = params["trunk"]["blocks"]
    together = jax.tree.map(lambda *each: jnp.stack(each), *(blocks[i] for i in sorted(blocks)))
    return params | {"trunk": params["trunk"] | {"blocks": together}}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params):
    def loss(params):
        trunk = with_params(ModelConfig(config, 8), params).trunk
        log_prob = jax.nn.log_softmax(trunk.logits(trunk(*ROW)))
        return -jnp.mean(log_prob[..., 3])

    return jax.value_and_grad(loss)(params)


def assert_same(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance),
        found,
        expected,
    )


@pytest.mark.parametrize(
    "base", [LLAMA, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["llama", "gpt2"]
)
def test_scanned_and_rematerialized_layers_change_neither_loss_nor_gradient(base):
    params = init_params(ModelConfig(base, 8), 0)
    loss, gradient = loss_and_gradient(base, params)
    assert np.isfinite(loss) and jnp.abs(gradient["trunk"]["blocks"][1]["mlp_in"]["kernel"]).max()
    remat = dataclasses.replace(base, remat=True)
    assert_same(loss_and_gradient(remat, params), (loss, gradient), 1e-6)
    for config in (base, remat):
        scanned = dataclasses.replace(config, scan_layers=True)
        found = loss_and_gradient(scanned, stacked(params))
        assert_same(found, (loss, stacked(gradient)), 1e-6)


def test_scanned_layers_decode_to_the_same_tokens():
    params = init_params(ModelConfig(LLAMA, 8), 0)
    contexts = [np.arange(5), np.arange(3, 20)]
    scanned = dataclasses.replace(LLAMA, scan_layers=True)
    np.testing.assert_array_equal(
        greedy(ModelConfig(LLAMA, 8), params, contexts, 12),
        greedy(ModelConfig(scanned, 8), stacked(params), contexts, 12),
    )


def test_a_sliding_window_is_read_on_from_a_cache():
    decoder = dataclasses.replace(GEMMA.decoder, scan_layers=False)
    config = dataclasses.replace(GEMMA, decoder=decoder)
    row = pack([np.arange(30) * 7 % 300], 30)

    @jax.jit
    def read_both_ways(params):
        trunk = with_params(config, params).trunk
        cache, read = KVCache.zeros(decoder, (1,), 32), []
        for part in (slice(0, 12), slice(12, 30)):
            states, cache = prefill(trunk, cache, row[0][:, part], jnp.asarray([part.start]))
            read.append(states)
        return trunk(*row), jnp.concatenate(read, axis=1)

    at_once, in_parts = read_both_ways(init_params(config, 0))
    np.testing.assert_allclose(in_parts, at_once, atol=1e-5)


def test_what_is_compiled_for_scanned_layers_does_not_grow_with_depth():
    def size(layers):
        config = dataclasses.replace(LLAMA, num_layers=layers, scan_layers=True)
        params = jax.eval_shape(lambda: init_params(ModelConfig(config, 8), 0))
        return len(loss_and_gradient.lower(config, params).as_text())

    assert size(24) < 1.02 * size(3)


def test_fresh_scanned_layers_differ_from_each_other_and_have_the_spread_asked_for():
    config = ModelConfig(dataclasses.replace(LLAMA, scan_layers=True), 8)
    blocks = init_params(config, 0)["trunk"]["blocks"]
    kernel = np.asarray(blocks["mlp_in"]["kernel"])
    assert kernel.shape == (3, 32, 48)
    assert not np.allclose(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), 0.1, rtol=0.1)


@pytest.mark.parametrize(
    "base", [pytest.param(LLAMA, marks=pytest.mark.slow), GPT2], ids=["llama", "gpt2"]
)
def test_bfloat16_is_close_with_masters_and_gradients_in_float32(base):
    params = init_params(ModelConfig(base, 8), 0)
    config = dataclasses.replace(base, compute_dtype="bfloat16")
    exact = logits(ModelConfig(base, 8), params, ROW)
    rough = logits(ModelConfig(config, 8), params, ROW)
    assert rough.dtype == np.float32
    assert 1e-4 < np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()
    loss, gradient = loss_and_gradient(base, params)
    rough_loss, rough_gradient = loss_and_gradient(config, params)
    assert rough_loss == pytest.approx(float(loss), rel=1e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough_gradient)} == {np.dtype(np.float32)}
    a, b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each)])
        for each in (gradient, rough_gradient)
    )
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_agree_with_repeated_ones_in_value_and_gradient(kv_heads):
    rng = np.random.default_rng(kv_heads)

    def draw(heads):
        return jnp.asarray(rng.normal(size=(2, 7, heads, 4)), jnp.float32)

    q, k, v, weights = draw(6), draw(kv_heads), draw(kv_heads), draw(6)
    mask = packed_causal_mask(jnp.asarray(np.sort(rng.integers(1, 4, (2, 7)))))

    def repeated(q, k, v):
        k, v = (jnp.repeat(x, 6 // kv_heads, axis=2) for x in (k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    def ours(q, k, v):
        return attend(q, k, v, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, *x):
        gradients = jax.grad(lambda *x: (function(*x) * weights).sum(), (0, 1, 2))
        return function(*x), gradients(*x)

    assert_same(*(value_and_gradients(each, q, k, v) for each in (ours, repeated)), 1e-5)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_kv_heads": 3, "fused_qkv": False},
            "num_heads is 4, but must be a multiple of num_kv",
        ),
        ({"num_kv_heads": 2}, "fused_qkv is True, but needs as many heads of keys"),
        ({"head_dim": 5, "position_encoding": "rotary"}, "head_dim is 5, but must be even"),
        ({"norm": "batch_norm"}, "norm is 'batch_norm', but must be layer_norm or rms_norm"),
        (
            {"attention": "cudnn"},
            "attention is 'cudnn', but needs compute_dtype 'bfloat16', not 'float32'",
        ),
        (
            {"rotary_scaling": RotaryScaling("linear", 2.0)},
            "rotary_scaling is .* needs position_encoding 'rotary'",
        ),
        (
            {"position_encoding": "rotary", "layers_without_rotary": (3,)},
            "layers_without_rotary is .3,., but layers go from 0 to 2",
        ),
        ({"sliding_layers": (3,), "sliding_window": 4}, "sliding_layers is .3,., but layers go"),
        ({"sliding_layers": (1,)}, "sliding_window is 0, but must be above 0 exactly where"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GPT2, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
            "'?MistralForCausalLM'? is not supported; these are: GPT2LMHeadModel, LlamaForCausalLM",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
            "'sliding_attention' is not supported",
        ),
        (
            {"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
            "final_logit_softcapping is 30.0; only None is supported",
        ),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        (
            {"model_type": "gpt_neox", "hidden_act": "gelu_new"},
            "use_parallel_residual is True; only False is supported",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic' are not supported; default, linear, llama3 and yarn",
        ),
        (
            {"model_type": "llama", "hidden_size": "wide"},
            "config.json of a LlamaForCausalLM: .*int",
        ),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantized checkpoints"),
    ],
)
def test_what_is_not_supported_is_named(fields, message):
    pytest.importorskip("transformers")
    with pytest.raises(PretrainedError, match=message):
        decoder_config(fields)


def test_a_shape_that_no_family_has_is_not_written():
    with pytest.raises(PretrainedError, match=r"none of GPT2LMHeadModel, .* has the shape of"):
        hugging_face_config(dataclasses.replace(GPT2, norm="rms_norm"))
