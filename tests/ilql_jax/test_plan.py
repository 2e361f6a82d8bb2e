"""Planning: what a compiled step moves and needs, and what cannot be planned is told."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from ilql_jax import PackingConfig, sharding
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.plan import __main__ as command
from ilql_jax.plan import compile as compiling
from ilql_jax.plan import hlo
from ilql_jax.plan.chips import PlanError, devices_of, memory_limit, out_of_memory
from ilql_jax.plan.compile import Compiled, Memory, PlannedTraining, guess_most_rows, make_plan
from ilql_jax.plan.text import describe
from ilql_jax.sharding import MeshConfig, make_mesh
from ilql_jax.train_step import TrainConfig, abstract_state

ROOT = Path(__file__).parents[2]
TRAINING = PlannedTraining(
    ModelConfig(DecoderConfig(64, 16, 1, 2, 32, 16, position_encoding="rotary"), 16),
    METHODS["bc"],
    TrainConfig(4, 1e-3, optimizer="adamw"),
    PackingConfig(batch_rows=4, row_length=16, actions_per_row=8, utterances_per_row=2),
)

# As XLA writes it for TPUs and GPUs, shortened: a loop of six rounds that gathers; a sum of which
# each device keeps a part; one collective in three fusions, of which one is in the loop.
HLO = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[512,8]) -> f32[256,8] {
  %input = f32[512,8]{1,0} parameter(0)
  %all-reduce.9 = f32[512,8]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[256,8]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={256,8}
}

%part.1 (p.1: bf16[4,16]) -> bf16[8,16] {
  %p.1 = bf16[4,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,16]{1,0} all-gather(%p.1), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
}

%part.2 (p.2: bf16[4,16]) -> bf16[8,16] {
  %p.2 = bf16[4,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,16]{1,0} all-gather(%p.2), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
}

%part.3 (p.5: bf16[4,16], p.6: bf16[8,16]) -> (f32[7], bf16[4,16], bf16[8,16]) {
  %p.5 = bf16[4,16]{1,0} parameter(0)
  %p.6 = bf16[8,16]{1,0} parameter(1)
  %all-gather.3 = bf16[8,16]{1,0} all-gather(%p.5), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, frontend_attributes={chain_id="7"}
  %own = f32[7]{0} iota(), iota_dimension=0
  ROOT %parts = (f32[7]{0}, bf16[4,16]{1,0}, bf16[8,16]{1,0}) tuple(%own, %p.5, %all-gather.3)
}

%sliced (p.3: f32[6,100], p.4: s32[]) -> f32[100] {
  %p.3 = f32[6,100]{1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  %dynamic-slice.2 = f32[1,100]{1,0} dynamic-slice(%p.3, %p.4), dynamic_slice_sizes={1,100}
  ROOT %bitcast.1 = f32[100]{0} bitcast(%dynamic-slice.2)
}

%condition (c: (s32[], f32[6,100])) -> pred[] {
  %c = (s32[], f32[6,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %bound = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (s: (s32[], f32[6,100])) -> (s32[], f32[6,100]) {
  %s = (s32[], f32[6,100]{1,0}) parameter(0)
  %j = s32[]{:S(6)} get-tuple-element(%s), index=0
  %stack = f32[6,100]{1,0} get-tuple-element(%s), index=1
  %layer = f32[100]{0} fusion(%stack, %j), kind=kLoop, calls=%sliced
  %gathered = f32[400]{0:T(256)S(1)} all-gather(%layer), channel_id=2, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %shard = bf16[4,16]{1,0} get-tuple-element(%s), index=2
  %whole = bf16[8,16]{1,0} get-tuple-element(%s), index=3
  %beside = (f32[7]{0}, bf16[4,16]{1,0}, bf16[8,16]{1,0}) fusion(%shard, %whole), kind=kOutput, calls=%part.3
  ROOT %out = (s32[], f32[6,100]{1,0}) tuple(%j, %stack)
}

ENTRY %main (x: f32[6,100], y: f32[512,8], z: bf16[4,16]) -> f32[] {
  %x = f32[6,100]{1,0} parameter(0)
  %y = f32[512,8]{1,0} parameter(1)
  %z = bf16[4,16]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], f32[6,100]{1,0}) tuple(%zero, /*index=1*/%x)
  %loop = (s32[], f32[6,100]{1,0}) while(%start), condition=%condition, body=%body
  %fusion.1 = f32[256,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.2 = bf16[8,16]{1,0} fusion(%z), kind=kCustom, calls=%part.1
  %fusion.3 = bf16[8,16]{1,0} fusion(%z), kind=kCustom, calls=%part.2
  %sum = f32[512,8]{1,0} all-reduce(%y), channel_id=4, to_apply=%add
  ROOT %all = f32[] constant(1)
}
"""  # noqa: E501


def test_collectives_are_counted_by_kind_group_and_rounds():
    assert hlo.interconnect_traffic(hlo.parse(HLO)) == {
        # Six rounds with 3 of 4 parts of 400 bytes each; and once, though in three fusions, 128.
        "all-gather": 6 * 3 * 400 + 4 * 16 * 2,
        "reduce-scatter": 512 * 8 * 4 // 2,
        "all-reduce": 2 * 512 * 8 * 4 * 7 // 8,  # no groups: all eight
    }


def test_memory_traffic_counts_slices_and_rounds_but_not_what_stays_on_the_chip():
    body = 2 * 400 + 400  # a layer read and written, read by the gather; its result is in S(1)
    body += 7 * 4  # what is done beside a part of the chain; the counter in S(6) does not count
    chain = (4 + 8) * 16 * 2  # once, though three kernels hand it on
    rest = (512 + 256) * 8 * 4 + chain + 2 * 512 * 8 * 4
    assert hlo.memory_traffic(hlo.parse(HLO)) == 6 * body + rest


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=2,'b'=8] {'a','b'}", 16),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", 4),
        ("channel_id=1", 8),
    ],
)
def test_groups_are_read_in_every_notation(attributes, expected):
    assert hlo.group_size(attributes, 8) == expected


def test_traffic_and_products_of_a_real_program_are_those_that_can_be_worked_out():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x, w = jnp.zeros((32, 64)), jnp.zeros((5, 64, 64))
    assert compiling.matrix_flops(jax.make_jaxpr(layers)(x, w).jaxpr) == 5 * 2 * 32 * 64 * 64
    product = jax.jit(jnp.matmul).lower(x, w[0]).compile()
    traffic = hlo.memory_traffic(hlo.parse(product.as_text()))
    assert traffic == 4 * (32 * 64 + 64 * 64 + 32 * 64)
    assert compiling.matrix_flops(jax.make_jaxpr(jnp.matmul)(x, w[0]).jaxpr) == pytest.approx(
        product.cost_analysis()["flops"], rel=0.01
    )


def test_the_step_on_this_machine_is_planned_from_its_own_compilation():
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    found = make_plan(TRAINING, mesh)
    assert (found.step.rows, [each.rows for each in found.others]) == (4, [2])
    state = abstract_state(TRAINING.model, TRAINING.method, TRAINING.train)
    sizes = [4 * math.prod(x.shape) for x in jax.tree.leaves((state.params, state.targets))]
    assert found.step.memory.parameters == sum(sizes)
    assert found.interconnect == {} and found.memory_traffic > sum(sizes)
    # Forward and backward: at least thrice the products of the trunk's matrices with the tokens.
    assert found.flops > 3 * 2 * 4 * 16 * (16 * 64 + 2 * 16 * 32)
    text = describe(found, "local")
    assert "fits: " in text and "no peak figures of 'cpu'" in text and "what grows with" in text
    same = dataclasses.replace(found.others[0], memory=found.step.memory)
    flat = dataclasses.replace(found, others=(same,))  # more rows that need no more
    text = describe(flat, "local")
    assert flat.activations is None and "grows with" not in text and "activations, gradi" in text


def of_size(rows, total, limit=10_000):
    return Compiled(rows, Memory(0, 0, 0, 0, total), total <= limit, None, 0.0)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([(8, 2000), (16, 3000)], 72),  # 1000 and 125 a row
        ([(8, 2000), (16, 2050)], 128),  # not farther than eight times what fits
        ([(16, 3000), (128, 17000)], 72),  # between what fits and what does not
        ([(64, 9500), (72, 10500)], 64),  # nothing lies between
        ([(8, 12000), (16, 23000)], 0),
        ([(16, 12000), (32, 23000)], 8),
    ],
)
def test_the_largest_batch_is_guessed_by_a_line(tried, expected):
    assert guess_most_rows([of_size(*each) for each in tried], parts=8, limit=10_000) == expected


def test_the_compilers_complaint_is_read():
    new = "total memory required for HLO temporaries (2.00T) exceeds available HBM (15.75G)."
    old = "Ran out of memory in memory space hbm. Used 18.5G of 15.75G hbm. Exceeded by 2.75G."
    assert out_of_memory(new) == (2 * 2**40, int(15.75 * 2**30))
    assert out_of_memory(old) == (int(18.5 * 2**30), int(15.75 * 2**30))
    assert out_of_memory("INTERNAL: something else") is None


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:2x", "gpu"])
def test_an_unknown_topology_is_told_with_the_known_ones(name):
    with pytest.raises(PlanError, match=rf"no topology '{name}'; there are local, v5e:2x2, .*v5p"):
        devices_of(name)


TEACHING = f"--config={ROOT}/experiments/teaching.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=local"], "--config is missing"),
        (["--config=nowhere.py"], r"--config: .*No such file or directory: 'nowhere.py'"),
        ([TEACHING, "--config.model.nosuch=3"], "there is no setting 'nosuch'"),
        ([TEACHING, "more"], "unexpected argument 'more'"),
        ([TEACHING, "--config.model.lora_rank=4"], "lora_rank is 4, but adapters need"),
        ([TEACHING, "--method=sarsa"], "there is no method 'sarsa'; there are bc, fbc"),
        ([TEACHING, "--method=sarsa.py"], r"sarsa\.py: no such file"),
    ],
)
def test_a_wrong_command_line_is_told(arguments, message, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ValueError, match=message):
        command.main(["plan", *arguments])


def test_help_is_given(capsys):
    command.main(["plan", "--help"])
    assert "--compilations" in capsys.readouterr().out


def test_a_plan_is_not_longer_than_what_a_pretrained_model_reads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    fields = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 128}
    fields |= {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"max_positions is 240, but .* reads at most 128 tokens"):
        command.main(["plan", TEACHING, f"--config.model.pretrained={tmp_path}"])


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'ilql-jax[tpu]'",
)


@needs_libtpu
def test_a_slice_of_a_size_that_does_not_exist_is_told():
    with pytest.raises(PlanError, match=r"no topology 'v5e:3x5' \(.*\); there are"):
        devices_of("v5e:3x5")


@needs_libtpu
def test_a_step_is_compiled_for_a_tpu_that_is_not_there():
    mesh = make_mesh(MeshConfig(1, 2, 2), devices_of("v5e:2x2"))
    limit = memory_limit(mesh.devices.flat[0])
    assert limit == int(15.75 * 2**30)
    compiled = compiling.compile_step(TRAINING, mesh, 4, limit)
    assert compiled.fits and compiled.memory.temporary > 0
    whole = (
        abstract_state(TRAINING.model, TRAINING.method, TRAINING.train)
        .params["q"]["out_kernel"]
        .shape
    )
    part = sharding.shardings({"q/out_kernel": jnp.zeros(whole)}, mesh)["q/out_kernel"]
    assert part.shard_shape(whole) == (2, whole[1] // 2, whole[2] // 2)
    assert {"all-gather", "all-reduce"} <= hlo.interconnect_traffic(compiled.program).keys()


def test_the_command_reads_an_experiments_config(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    arguments = [
        *("plan", f"--config={ROOT}/experiments/teaching.py", "--method=bc"),
        *("--config.model.hidden_size=16", "--config.model.num_layers=1"),
        *("--config.train.batch_rows=2", "--config.train.optimizer=adamw"),
    ]
    command.main(arguments)
    text = capsys.readouterr().out
    assert "2 rows of 240 tokens, 112 of them the agent's" in text
    assert "compiled for 1 rows" in text


def test_a_method_of_a_file_is_planned_with_the_settings_of_the_config(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom ilql_jax.methods import METHODS\n"
        'METHOD = dataclasses.replace(METHODS["mc"], name="mine")\n'
    )
    file = str(tmp_path / "mine.py")
    monkeypatch.syspath_prepend(str(ROOT))
    config = command._parse(["plan", TEACHING]).config
    plain = command.planned_training(config, file, 0.5, 16)
    assert plain.method.name == "mine" and plain.method.config == METHODS["mc"].config
    with config.unlocked():
        config.method.mine = ConfigDict({"value_loss_weight": 0.5})
    planned = command.planned_training(config, file, 0.5, 16)
    assert planned.method.config.value_loss_weight == 0.5


def test_a_program_for_a_tpu_is_read_as_the_compiler_wrote_it_down():
    class Lowered:
        def compile(self, compiler_options):
            name = "module_0002.jit_step.after_optimizations.txt"
            Path(compiler_options["xla_dump_to"], name).write_text(HLO)
            return self

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: newer than JAX's reader")

    _, program = compiling._compile(Lowered(), is_for_tpu=True)
    assert program == hlo.parse(HLO)
