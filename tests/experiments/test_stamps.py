"""Stamps: which settings a run folder is bound to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from coffee import coffee_file

from experiments import fingerprints
from experiments.build import build
from experiments.checks import checked
from experiments.config import base_config
from experiments.run_folder import RunError, RunFolder
from experiments.stamps import begin_stage, check_stage, stamp_file


def experiment(**changes):
    config = base_config()
    config.task.world = "teaching"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return checked(config)


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    begin_stage(folder, "train", experiment())
    folder.tokenizer.mkdir()
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"method__ilql__action_chunk": 64},
        {"train__gradient_accumulation": 2},
        {"train__log_every": 1, "train__checkpoint_every": 7},
        {"model__remat": True},
        {"mesh__data": -1},
        {"workers": 1},
        {"decoding__batch_size": 3},  # the next stage's
        {"seeds": 3},
        {"methods": ("bc", "fbc", "ilql", "mc")},
        {"methods": ("bc",)},
        {"method__dpo__kl_weight": 5.0},  # not trained here
        {"evaluation__average_episodes": 5},
        {"logging__backends": ()},
    ],
)
def test_what_changes_no_result_may_change_when_a_run_goes_on(changes, trained: RunFolder):
    check_stage(trained, "train", experiment(**changes))


def test_a_run_from_before_the_scale_was_a_setting_goes_on(tmp_path: Path):
    folder = RunFolder(tmp_path)
    begin_stage(folder, "imagine", experiment())
    folder.dialogues.touch()
    stamp = stamp_file(folder, "imagine")
    values = json.loads(stamp.read_text())
    scale = [f"task.{name}" for name in ("reward_range", "success_reward", "reward_unit")]
    stamp.write_text(json.dumps({k: v for k, v in values.items() if k not in scale}))
    assert values.keys() >= set(scale)
    check_stage(folder, "imagine", experiment())
    llm = {"imagination__engine": "anthropic", "llm__model": "m", "imagination__dialogues": 9}
    with pytest.raises(RunError, match=r"config\.task\.success_reward was None, now 0\.5"):
        check_stage(folder, "imagine", experiment(task__success_reward=0.5, **llm))


def test_whom_to_imagine_holds_for_the_data_that_is_there(tmp_path: Path):
    folder = RunFolder(tmp_path)
    begin_stage(folder, "imagine", experiment())
    folder.dialogues.touch()
    check_stage(folder, "imagine", experiment(imagination__difficult_share=0.3))  # of no use
    balanced = experiment(imagination__personas="balanced", imagination__difficult_share=0.3)
    message = r"config\.imagination\.personas was 'prior', now 'balanced'"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "imagine", balanced)
    with pytest.raises(RunError, match=r"config\.imagination\.planted_flaws was 0\.0, now 0\.5"):
        check_stage(folder, "imagine", experiment(imagination__planted_flaws=0.5))
    begin_stage(RunFolder(tmp_path / "other"), "imagine", balanced)
    other = RunFolder(tmp_path / "other")
    other.dialogues.touch()
    with pytest.raises(RunError, match=r"config\.imagination\.difficult_share was 0\.3, now 0\.5"):
        check_stage(other, "imagine", experiment(imagination__personas="balanced"))


def test_a_file_may_be_named_by_another_path_to_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    folder = RunFolder(tmp_path / "run")

    def own_data(path: str):
        return experiment(task__world="", data__source="jsonl", data__path=path)

    begin_stage(folder, "imagine", own_data("a.jsonl"))
    folder.dialogues.touch()
    for same in ("a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl"), "link/a.jsonl"):
        check_stage(folder, "imagine", own_data(same))
    for other in ("b.jsonl", "run/a.jsonl", "\0"):
        with pytest.raises(RunError, match=r"config\.data\.path was 'a\.jsonl', now"):
            check_stage(folder, "imagine", own_data(other))


def started_from(checkpoint: Path, tokenizer: Path | str = ""):
    config = base_config()
    config.task.world = "teaching"
    config.model.pretrained, config.tokenizer.pretrained = str(checkpoint), str(tokenizer)
    return build(config)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "SmolLM2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    return folder


def test_a_pretrained_checkpoint_that_was_moved_is_known_by_its_content(
    checkpoint: Path, tmp_path: Path
):
    folder = RunFolder(tmp_path / "run")
    begin_stage(folder, "train", started_from(checkpoint, checkpoint))
    folder.tokenizer.mkdir()
    moved = checkpoint.rename(tmp_path / "elsewhere")
    check_stage(folder, "train", started_from(checkpoint, checkpoint))  # a run that is done
    begin_stage(folder, "train", started_from(checkpoint, checkpoint))
    begin_stage(folder, "train", started_from(moved, moved))
    begin_stage(folder, "evaluate", started_from(moved, moved))
    folder.evaluation.touch()
    copied = shutil.copytree(moved, tmp_path / "copied")
    (copied / "README.md").write_text("A copy.")
    check_stage(folder, "evaluate", started_from(copied, moved))
    with pytest.raises(RunError, match=r"model\.pretrained was '.*elsewhere', now 'org/SmolLM2'\."):
        check_stage(folder, "train", started_from(Path("org/SmolLM2"), moved))
    (copied / "tokenizer.json").write_text('{"added": 1}')
    check_stage(folder, "train", started_from(copied, moved))
    message = r"config\.tokenizer\.pretrained was '.*elsewhere', now '.*copied', which holds some"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "train", started_from(copied, copied))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_another_checkpoint_in_the_place_of_the_one_before_is_told(
    file: str, checkpoint: Path, tmp_path: Path
):
    folder = RunFolder(tmp_path / "run")
    begin_stage(folder, "train", started_from(checkpoint))
    folder.tokenizer.mkdir()
    other = shutil.copytree(checkpoint, tmp_path / "other")
    for place in (checkpoint, other):
        (place / file).write_bytes((place / file).read_bytes()[:-1] + b"x")
    message = r"model\.pretrained was '.*SmolLM2', which holds something else now"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "train", started_from(checkpoint))
    message = r"was '.*SmolLM2', now '.*other', which holds something else now"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "train", started_from(other))


def test_stamps_of_before_compare_the_paths_of_checkpoints(checkpoint: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    begin_stage(folder, "train", started_from(checkpoint))
    folder.tokenizer.mkdir()
    stamp = stamp_file(folder, "train")
    values = json.loads(stamp.read_text())
    assert values.pop("model.pretrained:content")
    stamp.write_text(json.dumps(values))
    check_stage(folder, "train", started_from(checkpoint))
    moved = checkpoint.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"model\.pretrained was '.*SmolLM2', now '.*elsewhere'\."):
        check_stage(folder, "train", started_from(moved))
    checkpoint.symlink_to(moved)
    begin_stage(folder, "train", started_from(checkpoint))  # stamps the content
    checkpoint.unlink()
    check_stage(folder, "train", started_from(moved))


def test_data_of_ones_own_may_be_moved_and_edited_in_its_place(tmp_path: Path):
    def own_data(path: Path):
        return experiment(task__world="", data__source="jsonl", data__path=str(path))

    folder, data = RunFolder(tmp_path / "run"), tmp_path / "a.jsonl"
    data.write_text("{}\n")
    begin_stage(folder, "imagine", own_data(data))
    folder.dialogues.touch()
    moved = data.rename(tmp_path / "b.jsonl")
    check_stage(folder, "imagine", own_data(moved))
    begin_stage(folder, "imagine", own_data(moved))
    moved.write_text("{} \n")
    check_stage(folder, "imagine", own_data(moved))
    other = shutil.copy(moved, tmp_path / "c.jsonl")
    message = r"data\.path was '.*b\.jsonl', now '.*c\.jsonl', which holds something else now"
    with pytest.raises(RunError, match=message):
        check_stage(folder, "imagine", own_data(other))


def test_a_world_of_ones_own_may_be_moved(tmp_path: Path):
    folder, world = RunFolder(tmp_path / "run"), coffee_file(tmp_path)
    begin_stage(folder, "imagine", experiment(task__world=str(world)))
    folder.dialogues.touch()
    moved = world.rename(tmp_path / "moved.py")
    check_stage(folder, "imagine", experiment(task__world=str(moved)))
    moved.write_text(moved.read_text() + "\n")
    with pytest.raises(RunError, match=r"task\.world was .*, which holds something else now"):
        check_stage(folder, "imagine", experiment(task__world=str(moved)))


def test_of_large_weights_parts_are_read_that_a_training_changes(checkpoint: Path):
    weights = checkpoint / "model.safetensors"
    size = 40 << 20
    found = set()
    # None, one in the header, some of the middle, one at the end; and another size.
    middle = (size // 2, size // 200, size)
    for start, length, whole in (
        *((0, 0, size), (9, 1, size), middle, (size - 1, 1, size)),
        (0, 0, size + 1),
    ):
        with weights.open("wb") as file:
            file.truncate(whole)
            file.seek(start)
            file.write(b"x" * length)
        fingerprints._digest.cache_clear()
        found.add(fingerprints.of_checkpoint(str(checkpoint)))
    assert len(found) == 5


def test_a_folder_without_a_whole_checkpoint_has_no_fingerprint(checkpoint: Path):
    assert fingerprints.of_checkpoint(str(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    assert not fingerprints.of_checkpoint(str(checkpoint))
    assert not fingerprints.of_checkpoint("org/name") and not fingerprints.of_tokenizer("")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__learning_rate": 0.1}, r"config\.train\.learning_rate was 0\.003, now 0\.1"),
        ({"train__batch_rows": 8}, r"config\.train\.batch_rows was 4, now 8"),
        ({"method__ilql__expectile": 0.9}, r"config\.method\.ilql\.expectile was 0\.8, now 0\.9"),
        ({"model__compute_dtype": "bfloat16"}, r"config\.model\.compute_dtype"),
        ({"seed": 5}, r"config\.seed was 0, now 5"),
        ({"data__loss_on": "agent_last"}, r"config\.data\.loss_on"),
        ({"data__importance_weights": True}, r"config\.data\.importance_weights"),
        ({"task__world": "travel"}, r"config\.task\.world was 'teaching', now 'travel'"),
    ],
)
def test_what_shapes_results_is_told(changes, message: str, trained: RunFolder):
    with pytest.raises(RunError, match=message):
        check_stage(trained, "train", experiment(**changes))


def test_settings_of_a_method_hold_once_it_was_trained(trained: RunFolder):
    added = {"methods": ("bc", "fbc", "ilql", "mc")}
    begin_stage(trained, "train", experiment(**added, method__mc__awac_temperature=0.1))
    begin_stage(trained, "train", experiment())  # left out for a while
    with pytest.raises(RunError, match=r"config\.method\.mc\.awac_temperature was 0\.1, now 0\.5"):
        check_stage(trained, "train", experiment(**added))


def test_settings_that_were_added_to_the_program_since_had_their_defaults(trained: RunFolder):
    rounds = {"methods": ("bc", "fbc", "ilql", "ilql_imagination1")}
    begin_stage(trained, "train", experiment(**rounds))
    path = trained.path / "stages" / "train.json"
    stamp = json.loads(path.read_text())
    # Of a stage, of a method, and of rounds, whose other settings are there.
    for key in ("train.polyak_rate", "method.ilql.expectile", "imagination.round_start"):
        del stamp[key]
    path.write_text(json.dumps(stamp))
    check_stage(trained, "train", experiment(**rounds))
    check_stage(trained, "train", experiment())
    for change, message in (
        ({"train__polyak_rate": 0.1}, r"polyak_rate was 0\.005, now 0\.1"),
        ({"method__ilql__expectile": 0.9}, r"expectile was 0\.8, now 0\.9"),
        ({"imagination__round_start": "agent"}, r"round_start was 'fresh', now 'agent'"),
    ):
        with pytest.raises(RunError, match=message):
            check_stage(trained, "train", experiment(**rounds, **change))


def test_rounds_of_before_their_setting_were_cloned(trained: RunFolder):
    """Whatever is its default: they hold where it is asked for, and else are refused."""
    rounds = {"methods": ("bc", "fbc", "ilql", "ilql_imagination1")}
    begin_stage(trained, "train", experiment(**rounds))
    path = trained.path / "stages" / "train.json"
    stamp = json.loads(path.read_text())
    assert stamp.pop("imagination.round_clone") is False
    path.write_text(json.dumps(stamp))
    check_stage(trained, "train", experiment())
    check_stage(trained, "train", experiment(**rounds, imagination__round_clone=True))
    with pytest.raises(RunError, match="round_clone was True, now False"):
        check_stage(trained, "train", experiment(**rounds))


def test_so_had_those_of_hindsight(tmp_path: Path):
    folder = RunFolder(tmp_path)
    rounds = {"methods": ("bc", "ilql", "ilql_hindsight1")}
    begin_stage(folder, "regenerate", experiment(**rounds))
    folder.hindsight.mkdir()
    path = folder.path / "stages" / "regenerate.json"
    stamp = json.loads(path.read_text())
    del stamp["hindsight.max_changes"]
    path.write_text(json.dumps(stamp))
    check_stage(folder, "regenerate", experiment(**rounds))
    with pytest.raises(RunError, match=r"max_changes was 2, now 1"):
        check_stage(folder, "regenerate", experiment(**rounds, hindsight__max_changes=1))


def test_so_had_those_of_models_that_speak_in_the_evaluation(tmp_path: Path):
    folder = RunFolder(tmp_path)
    speaks = {"evaluation__human": "prompted", "evaluation__player__model": "p"}
    speaks |= {"llm__model": "m", "llm__api": "chat_completions"}
    begin_stage(folder, "evaluate", experiment(**speaks))
    folder.evaluation.write_text("{}")
    path = folder.path / "stages" / "evaluate.json"
    stamp = json.loads(path.read_text())
    for section in ("evaluation", "evaluation.player"):
        for name in ("top_k", "presence_penalty", "frequency_penalty", "seed", "extra_body"):
            del stamp[f"{section}.llm.{name}"]
    path.write_text(json.dumps(stamp))
    check_stage(folder, "evaluate", experiment(**speaks))
    with pytest.raises(RunError, match=r"config\.llm\.top_k was 0, now 5"):
        check_stage(folder, "evaluate", experiment(**speaks, llm__top_k=5))


def test_a_temperature_of_ones_own_is_named_as_such_though_it_is_zero(tmp_path: Path):
    folder = RunFolder(tmp_path)
    speaks = {"evaluation__human": "prompted", "llm__model": "m", "llm__temperature": 0.8}
    begin_stage(folder, "evaluate", experiment(**speaks))
    folder.evaluation.write_text("{}")
    with pytest.raises(RunError, match=r"config\.evaluation\.temperature was 0\.8, now 0\.0"):
        check_stage(folder, "evaluate", experiment(**speaks, evaluation__temperature=0.0))


def test_without_files_nothing_is_bound(tmp_path: Path):
    folder = RunFolder(tmp_path)
    begin_stage(folder, "train", experiment())
    check_stage(folder, "train", experiment(train__learning_rate=0.1))


def test_another_model_is_told_by_the_section_that_names_it(tmp_path: Path):
    imagines = {"imagination__engine": "anthropic", "imagination__dialogues": 10}
    folder = RunFolder(tmp_path)
    begin_stage(folder, "imagine", experiment(**imagines, llm__model="m"))
    folder.dialogues.write_text("{}\n")
    with pytest.raises(RunError, match=r"config\.llm\.model was 'm', now 'n'"):
        check_stage(folder, "imagine", experiment(**imagines, llm__model="n"))
    with pytest.raises(RunError, match=r"config\.imagination\.model was 'm', now 'n'"):
        other = experiment(**imagines, llm__model="m", imagination__model="n")
        check_stage(folder, "imagine", other)


def test_models_of_purposes_are_told_once_and_by_the_section_that_names_them(tmp_path: Path):
    imagines = {"imagination__engine": "anthropic", "imagination__dialogues": 10}
    imagines |= {"llm__model": "m", "llm__temperature": 0.5}
    folder = RunFolder(tmp_path)
    critic = {"imagination__critic__model": "c"}
    begin_stage(folder, "imagine", experiment(**imagines, **critic))
    folder.dialogues.write_text("{}\n")
    check_stage(folder, "imagine", experiment(**imagines, **critic))
    for changes, told in (
        ({**critic, "llm__temperature": 0.7}, ["config.llm.temperature was 0.5, now 0.7"]),
        ({}, ["config.imagination.critic.model was 'c', now 'm'"]),
        (
            {**critic, "imagination__human__model": "h"},
            ["config.imagination.human.model was 'm', now 'h'"],
        ),
    ):
        with pytest.raises(RunError) as refused:
            check_stage(folder, "imagine", experiment(**imagines | changes))
        listed = str(refused.value).split("(imagine): ")[1].split(". Give a new folder")[0]
        assert listed.split("; ") == told
