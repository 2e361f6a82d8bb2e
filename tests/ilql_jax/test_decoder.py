"""The network against Hugging Face's, and decoding against the uncached forward pass."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from flax import nnx

from ilql_jax import losses
from ilql_jax.decode import sample
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.models import DecoderConfig, ModelConfig, init_params, with_params
from ilql_jax.models.attention import _attend, attend, packed_causal_mask
from ilql_jax.models.blocks import Block, norm
from ilql_jax.models.decoder import Decoder, _embedding
from ilql_jax.models.hugging_face.families import GPT2, PretrainedError
from ilql_jax.models.hugging_face.read import params_from_gpt2
from ilql_jax.policy import ContextError, Policy

VOCAB, STOP, LONGEST = 13, 3, 6
MODEL = ModelConfig(DecoderConfig(VOCAB, 16, 2, 2, 32, 24, initializer_range=0.2), 16)
LAST = dataclasses.replace(MODEL, utterance_q="last")
EVERYTHING = np.ones(VOCAB, bool)


def random_params(seed=0, scale=0.3):
    """Random everywhere: fresh value heads are zero."""
    return small_networks.random_params(MODEL, scale, seed)


@pytest.fixture(scope="module")
def params():
    return random_params()


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        {},
        pytest.param({"mlp": "swiglu", "fused_qkv": False, "lora_rank": 2}, marks=pytest.mark.slow),
    ],
)
def test_unrolled_layers_draw_their_parameters_one_after_the_other(family):
    config = DecoderConfig(VOCAB, 16, 3, 2, 32, 24, tied_output=False, **family)

    @jax.jit
    def drawn():
        return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(5))))

    @jax.jit
    def in_turn():
        rngs = nnx.Rngs(5)
        embeddings = [nnx.to_pure_dict(nnx.state(_embedding(config, n, rngs))) for n in (VOCAB, 24)]
        blocks = [nnx.to_pure_dict(nnx.state(Block(config, rngs))) for _ in range(3)]
        norm(config, 16, rngs)
        return embeddings, blocks, nnx.to_pure_dict(nnx.state(_embedding(config, VOCAB, rngs)))

    params, (embeddings, blocks, output) = drawn(), in_turn()
    parts = [params["token_embedding"], params["position_embedding"]], [*params["blocks"].values()]
    jax.tree.map(
        np.testing.assert_array_equal,
        (*parts, params["output_embedding"]),
        (embeddings, blocks, output),
    )
    first, second = (blocks[i]["mlp_in"]["kernel"] for i in (0, 1))
    assert not np.array_equal(first, second)


# --- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_attention_agrees_with_jax_in_value_and_gradient(seed):
    rng = np.random.default_rng(seed)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(2, 7, 3, 4)), jnp.float32) for _ in range(4))
    mask = packed_causal_mask(jnp.asarray(np.sort(rng.integers(1, 4, (2, 7)))))

    def ours(q, k, v):
        # Called by name, so that it is also tried where `attend` would choose another way.
        swapped = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(_attend(*swapped, mask), 1, 2)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: (function(*x) * weights).sum(), (0, 1, 2)))(q, k, v)

    expected = theirs(q, k, v)
    np.testing.assert_allclose(ours(q, k, v), expected, atol=1e-5)
    np.testing.assert_allclose(attend(q, k, v, mask), expected, atol=1e-5)
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_row_with_nothing_to_attend_to_gives_no_nan():
    ones = jnp.ones((1, 2, 1, 4))
    assert np.isfinite(attend(ones, ones, ones, jnp.zeros((1, 2, 2), bool))).all()


def test_mask_lets_see_the_past_of_the_own_segment_only():
    mask = packed_causal_mask(jnp.array([[1, 1, 2, 2, 0]]))[0].astype(int)
    assert mask.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_q_of_the_action_taken_is_its_entry_of_all_q(params):
    heads = with_params(MODEL, params).q
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 16))
    action = jax.random.randint(jax.random.key(1), (3, 5), 0, VOCAB)
    every = losses.take_action(heads(hidden), action)
    np.testing.assert_allclose(heads.at_actions(hidden, action), every, atol=1e-5)
    assert not np.allclose(every[0], every[1])  # twins, not copies


def test_fresh_values_are_zero():
    model = with_params(MODEL, init_params(MODEL, 0))
    hidden = jax.random.normal(jax.random.key(0), (3, 16))
    assert not np.any(model.v(hidden)) and not np.any(model.q(hidden))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="hidden_size is 10, but must be a multiple of num_heads 4"
    ):
        DecoderConfig(VOCAB, 10, 1, 4, 16, 8)


# --- Hugging Face -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    """A small GPT-2 with random weights, biases and norms too."""
    torch = pytest.importorskip("torch", reason="parity with GPT-2 needs the extra 'parity'")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=24, n_embd=32, n_layer=3, n_head=4, n_inner=48
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


GPT2_SHAPE = DecoderConfig(50, 32, 3, 4, 48, 24)


def our_logits(tensors, tokens, segment_ids, positions):
    config = ModelConfig(GPT2_SHAPE, 8)
    params = init_params(config, 0) | {"trunk": params_from_gpt2(tensors, GPT2_SHAPE)}
    row = tokens, segment_ids, positions
    return np.asarray(small_networks.logits(config, params, row))


def torch_logits(gpt2, tokens):
    import torch

    with torch.no_grad():
        return gpt2(torch.tensor(tokens)[None]).logits[0].numpy()


def numpy_tensors(gpt2):
    return {name: tensor.detach().numpy() for name, tensor in gpt2.state_dict().items()}


def test_logits_agree_with_hugging_faces_gpt2(gpt2):
    tokens = np.random.default_rng(0).integers(50, size=(3, 24))
    positions = np.broadcast_to(np.arange(24), tokens.shape)
    ours = our_logits(numpy_tensors(gpt2), tokens, np.ones_like(tokens), positions)
    expected = np.stack([torch_logits(gpt2, row) for row in tokens])
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_logits_of_packed_dialogues_agree_with_gpt2_on_each_alone(gpt2):
    rng = np.random.default_rng(1)
    lengths = (7, 12, 4)
    dialogues = [rng.integers(50, size=length) for length in lengths]
    padding = np.zeros(3, int)
    tokens = np.concatenate([*dialogues, padding])[None]
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [padding])[None]
    positions = np.concatenate([*(np.arange(n) for n in lengths), padding])[None]
    ours = our_logits(numpy_tensors(gpt2), tokens, segments, positions)[0]
    expected = np.concatenate([torch_logits(gpt2, dialogue) for dialogue in dialogues])
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=1e-4)


def made_up_tensors():
    """Zeros under Hugging Face's names, in the shapes of GPT2_SHAPE."""
    sizes = {"wte.weight": (50, 32), "wpe.weight": (24, 32), "c_attn.weight": (32, 96)}
    sizes |= {"c_attn.bias": (96,), "attn.c_proj.weight": (32, 32), "c_fc.weight": (32, 48)}
    sizes |= {"c_fc.bias": (48,), "mlp.c_proj.weight": (48, 32)}

    def shape(name):
        return next((size for end, size in sizes.items() if name.endswith(end)), (32,))

    names = (name for name in GPT2 if name != "lm_head.weight")  # tied: not written
    return {name.format(i): np.zeros(shape(name)) for name, i in itertools.product(names, range(3))}


def test_reading_gpt2_needs_no_torch_and_ignores_what_is_derived():
    tensors = {f"transformer.{name}": x for name, x in made_up_tensors().items()}
    tied = tensors["transformer.wte.weight"].copy()
    tensors |= {"lm_head.weight": tied, "transformer.h.0.attn.bias": np.zeros(3)}
    params = params_from_gpt2(tensors, GPT2_SHAPE)
    expected = jax.tree.map(jnp.shape, init_params(ModelConfig(GPT2_SHAPE, 8), 0)["trunk"])
    assert jax.tree.map(jnp.shape, params) == expected


def test_every_wrong_tensor_is_named_at_once():
    tensors = made_up_tensors()
    del tensors["h.2.ln_1.bias"], tensors["wpe.weight"]
    tensors |= {"h.1.ln_3.bias": np.zeros(32), "h.0.mlp.c_fc.weight": np.zeros((48, 32))}
    with pytest.raises(PretrainedError) as caught:
        params_from_gpt2(tensors, GPT2_SHAPE)
    for problem in (
        "h.2.ln_1.bias is missing",
        "wpe.weight is missing",
        "h.1.ln_3.bias is not part of it",
        "h.0.mlp.c_fc.weight gives (48, 32), but (32, 48) is needed",
    ):
        assert problem in str(caught.value)


# --- decoding -----------------------------------------------------------------------------------

CONTEXTS = [np.int32([1, 2, 5, 7]), np.int32([4]), np.int32([9, 9, 1, 0, 2, 12, 6])]


def write(params, contexts=CONTEXTS, *, temperature=1.0, strength=0.0, allowed=EVERYTHING,
          samples=32, seeds=(0, 1, 2), width=8, steered=False, config=MODEL):  # fmt: skip
    padded = np.zeros((len(contexts), width), np.int32)
    for row, context in enumerate(contexts):
        padded[row, : len(context)] = context
    result = sample(
        config,
        params,
        padded,
        np.int32([len(context) for context in contexts]),
        jax.vmap(jax.random.key)(jnp.asarray(seeds[: len(contexts)])),
        jnp.asarray(allowed),
        jnp.float32(temperature),
        jnp.float32(strength),
        num_samples=samples,
        max_length=LONGEST,
        stop_token=STOP,
        steer=losses.steer_logits if strength or steered else None,
    )
    return jax.tree.map(np.asarray, result)


def utterances(result):
    for row, n in np.ndindex(result.length.shape):
        yield row, n, result.tokens[row, n, : result.length[row, n]]


@jax.jit
def _forward(params, tokens):
    model = with_params(MODEL, params)
    hidden = model.trunk(tokens[None], jnp.ones_like(tokens)[None], jnp.arange(len(tokens))[None])
    log_prob = jax.nn.log_softmax(model.trunk.logits(hidden[0]))
    return log_prob, jnp.moveaxis(model.q(hidden[0]), 0, 1), model.v(hidden[0])


def read_uncached(params, context, utterance):
    """log π_β, twin Q and V at each of the utterance's tokens, from one forward pass over it."""
    tokens = np.concatenate([context, utterance])
    padded = np.pad(tokens, (0, 24 - len(tokens)))  # what comes later is not seen
    states = slice(len(context) - 1, len(tokens) - 1)
    return tuple(np.asarray(x)[states] for x in _forward(params, padded))


def value_uncached(params, context, utterance, how):
    """Q of the utterance: the twins' sums over its tokens, or their last token's, the lower one."""
    q = read_uncached(params, context, utterance)[1]
    shares = q[np.arange(len(utterance)), :, utterance]
    return float((shares.sum(axis=0) if how == "sum" else shares[-1]).min())


@pytest.mark.parametrize("config", [MODEL, LAST], ids=["sum", "last"])
@pytest.mark.parametrize(
    ("temperature", "strength"),
    [(0.0, 0.0), pytest.param(1.0, 0.0, marks=pytest.mark.slow), (0.7, 2.0), (0.0, 2.0)],
)
def test_cached_decoding_agrees_with_the_uncached_forward(params, temperature, strength, config):
    result = write(params, temperature=temperature, strength=strength, config=config)
    lengths = set()
    for row, n, written in utterances(result):
        log_prob, q, v = read_uncached(params, CONTEXTS[row], written)
        at = np.arange(len(written)), written
        assert result.log_prob[row, n] == pytest.approx(float(log_prob[at].sum()), abs=1e-4)
        value = value_uncached(params, CONTEXTS[row], written, config.utterance_q)
        assert result.q[row, n] == pytest.approx(value, abs=1e-4)
        assert result.v[row] == pytest.approx(float(v[0]), abs=1e-4)
        if temperature == 0:
            best = np.argmax(log_prob + strength * (q.min(axis=1) - v[:, None]), axis=-1)
            np.testing.assert_array_equal(written[: LONGEST - 1], best[: LONGEST - 1])
        lengths.add(len(written))
    assert temperature == 0 or len(lengths) > 1  # ended by choice as well as by force


def test_utterances_end_with_the_first_stop_token_forced_at_the_longest(params):
    result = write(params)
    for row, n, written in utterances(result):
        assert written[-1] == STOP
        assert STOP not in written[:-1]
        assert not result.tokens[row, n, len(written) :].any()
    assert result.length.max() == LONGEST and result.length.min() < LONGEST


def test_samples_differ_from_each_other_and_follow_the_policy(params):
    first = write(params, CONTEXTS[:1], samples=4000).tokens[0, :, 0]
    log_prob, *_ = read_uncached(params, CONTEXTS[0], [STOP])
    observed = np.bincount(first, minlength=VOCAB) / len(first)
    np.testing.assert_allclose(observed, np.exp(log_prob[0]), atol=0.035)


def test_steering_by_nothing_changes_nothing(params):
    plain = write(params)
    steered = write(params, strength=0.0, steered=True)
    np.testing.assert_array_equal(plain.tokens, steered.tokens)
    np.testing.assert_allclose(plain.log_prob, steered.log_prob, atol=1e-5)


def test_strong_steering_takes_the_highest_q_of_the_allowed_tokens(params):
    allowed = np.isin(np.arange(VOCAB), [STOP, 5, 8, 10])
    result = write(params, strength=1e4, allowed=allowed)
    for row, _, written in utterances(result):
        _, q, _ = read_uncached(params, CONTEXTS[row], written)
        best = np.argmax(np.where(allowed, q.min(axis=1), -np.inf), axis=-1)
        np.testing.assert_array_equal(written[: LONGEST - 1], best[: LONGEST - 1])


def test_tokens_that_are_not_allowed_are_never_written(params):
    allowed = np.isin(np.arange(VOCAB), [STOP, 5, 8])
    for strength in (0.0, 5.0):
        result = write(params, allowed=allowed, strength=strength)
        written = np.concatenate([tokens for *_, tokens in utterances(result)])
        assert set(written) == {STOP, 5, 8}
        assert np.isfinite(result.log_prob).all()


def policy(params, decoding, **fields):
    options = {"stop_token": STOP, "allowed": EVERYTHING, "max_utterance": LONGEST, "batch_size": 4}
    how = DecodingConfig.parse(decoding)
    config = LAST if how.steering_strength else MODEL  # only values of tokens can steer
    return Policy(config, params, how, **(options | fields))


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param("sampled", marks=pytest.mark.slow),
        "sampled at 0.8, steered by 2, best of 3",
    ],
)
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(params, decoding):
    many = [*CONTEXTS, *CONTEXTS[::-1], CONTEXTS[0]]
    seeds = [11, 12, 13, 14, 15, 16, 17]
    answers = policy(params, decoding).respond(many, seeds)
    for context, seed, answer in zip(many, seeds, answers, strict=True):
        (alone,) = policy(params, decoding).respond([context], [seed])
        np.testing.assert_array_equal(alone.tokens, answer.tokens)
        assert alone.q == pytest.approx(answer.q, abs=1e-5)
        assert alone.v == pytest.approx(answer.v, abs=1e-5)
        assert alone.log_prob == pytest.approx(answer.log_prob, abs=1e-5)


def test_seeds_decide_what_is_sampled(params):
    sampled = policy(params, "sampled")
    answers = sampled.respond([CONTEXTS[0]] * 20, list(range(20)))
    assert len({tuple(answer.tokens) for answer in answers}) > 5
    again = sampled.respond([CONTEXTS[0]], [7])[0]
    np.testing.assert_array_equal(again.tokens, answers[7].tokens)


def test_reranking_returns_the_utterance_of_highest_value(params):
    answers = policy(params, "sampled, best of 8").respond(CONTEXTS, [0, 1, 2])
    for context, answer in zip(CONTEXTS, answers, strict=True):
        values = []
        for tokens, q, _ in answer.candidates:
            assert q == pytest.approx(value_uncached(params, context, tokens, "sum"), abs=1e-4)
            values.append(q)
        assert len(values) == 8
        assert values == sorted(values, reverse=True) and values[0] > values[-1]
        assert answer.q == values[0]
        np.testing.assert_array_equal(answer.tokens, answer.candidates[0].tokens)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 19, 30])
def test_a_context_that_cannot_be_read_is_named_with_its_length(params, length):
    sampled = policy(params, "sampled")
    assert sampled.max_context == 18
    contexts = [CONTEXTS[0], np.zeros(length, np.int32)]
    with pytest.raises(ContextError, match=f"context 1 has {length} tokens; between 1 and 18"):
        sampled.respond(contexts, [0, 1])


def test_the_longest_context_can_be_answered(params):
    (answer,) = policy(params, "sampled").respond([np.ones(18, np.int32)], [0])
    assert answer.tokens[-1] == STOP


def test_an_utterance_longer_than_the_context_is_refused(params):
    with pytest.raises(ContextError, match=r"24 tokens does not fit .* context of 24"):
        policy(params, "sampled", max_utterance=24)


@pytest.mark.parametrize("temperature", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("strength", [0.0, 0.5, 16.0])
@pytest.mark.parametrize("candidates", [1, 16])
def test_parse_is_the_inverse_of_str(temperature, strength, candidates):
    candidates = candidates if temperature else 1  # the rest is refused
    config = DecodingConfig(temperature, strength, candidates)
    assert DecodingConfig.parse(str(config)) == config


@pytest.mark.parametrize(
    ("text", "part"),
    [("fast", "fast"), ("sampled at", "sampled at"), ("greedy, steered by x", "steered by x"),
     ("best of 2.5", "best of 2.5"), ("", ""), ("sampled, ,greedy", "")],
)  # fmt: skip
def test_a_decoding_that_is_not_understood_is_quoted(text, part):
    with pytest.raises(ValueError, match=f"decoding '{text}': '{part}' is not understood"):
        DecodingConfig.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, "candidates is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        (
            {"temperature": 0.0, "candidates": 2},
            "candidates is 2, but must be 1 with",
        ),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"steering_strength": float("inf")}, "steering_strength is inf"),
    ],
)
def test_decodings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DecodingConfig(**fields)
