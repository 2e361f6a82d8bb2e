"""Shapes of networks from plain settings, fresh and pretrained."""

import json

import pytest

from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.models.hugging_face import PretrainedError
from ilql_jax.models.network_config import network_config
from ilql_jax.settings import SettingError

FRESH = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 32, "max_positions": 64}


@pytest.fixture
def pretrained(tmp_path):
    fields = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 128}
    fields |= {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return str(tmp_path)


def test_a_fresh_network_has_the_shape_that_is_set():
    config = network_config(FRESH | {"pretrained": "", "value_heads": "tied", "remat": True}, 31)
    decoder = DecoderConfig(31, 16, 2, 2, 32, 64, remat=True)
    assert config == ModelConfig(decoder, value_heads="tied")


@pytest.mark.parametrize(("tokens", "expected"), [(0, 50), (31, 50), (57, 57)])
def test_a_pretrained_network_keeps_its_shape_and_grows_for_new_tokens(
    pretrained, tokens, expected
):
    settings = FRESH | {"pretrained": pretrained, "scan_layers": True, "value_inner_size": 9}
    config = network_config(settings, tokens)
    decoder = config.decoder
    assert (decoder.hidden_size, decoder.num_layers, decoder.max_positions) == (8, 1, 128)
    assert decoder.scan_layers and decoder.vocab_size == expected
    assert config.value_inner_size == 9


def test_what_cannot_be_is_told(pretrained):
    with pytest.raises(PretrainedError, match=r"max_positions is 129, .* reads at most 128 tokens"):
        network_config(FRESH | {"pretrained": pretrained, "max_positions": 129}, 31)
    with pytest.raises(SettingError, match="width is 3, but there is no setting of this name"):
        network_config(FRESH | {"width": 3}, 31)
    with pytest.raises(SettingError, match="num_heads"):
        network_config(FRESH | {"num_heads": 0}, 31)
