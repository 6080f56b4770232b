"""`gruppo train` and `gruppo demo`: what reaches the trainer, and one real run."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from gruppo.cli import objects
from gruppo.cli.main import main
from gruppo.cli.settings import read_settings
from gruppo.errors import DataError, GruppoError


def test_a_run_from_a_file(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.toml", "--seed", "3", "--disable-tqdm", "True"]) == 0
    out = workspace / "out"
    assert "are in out" in capsys.readouterr().out
    assert "seed = 3  # flag" in (out / "resolved.toml").read_text().splitlines()
    assert "max_steps = 2  # run.toml" in (out / "resolved.toml").read_text().splitlines()
    assert (out / "model.safetensors").is_file()
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) >= 2


def test_a_mistake_ends_with_code_2_and_leaves_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.toml", "--reward-funcs", "my_rewards:narrow"]) == 2
    error = capsys.readouterr().err
    assert "Add `**kwargs` to `narrow`" in error
    assert "Traceback" not in error
    assert not (workspace / "out" / "resolved.toml").exists()


def test_model_options_join_model_init_kwargs(workspace: Path) -> None:
    argv = ["run.toml", "--dtype", "bfloat16", "--model_init_kwargs", '{"attn_implementation": "eager"}']
    config = objects.training_config(read_settings(argv, "train"))
    assert config.model_init_kwargs == {"dtype": "bfloat16", "attn_implementation": "eager"}


def test_evaluation_data_only_if_asked_for(workspace: Path) -> None:
    assert objects.load_eval_dataset(read_settings(["run.toml"], "train")) is None
    argv = ["run.toml", "--eval-strategy", "steps", "--eval-dataset", "prompts.jsonl"]
    assert len(objects.load_eval_dataset(read_settings(argv, "train"))) == 12


@pytest.mark.parametrize("name", ["prompts.jsonl", "saved"])
def test_evaluation_on_the_rows_of_training_is_refused(workspace: Path, name: str) -> None:
    Dataset.from_list([{"prompt": "one"}] * 10).save_to_disk(workspace / "saved")
    argv = ["run.toml", "--dataset", name, "--eval-strategy", "steps"]
    for split in ([], ["--eval-split", "train"], ["--eval-split", "train[:2]"], ["--dataset-split", "train[:2]"]):
        with pytest.raises(DataError, match=r"evaluated on the rows it is trained on. Set eval_dataset to another"):
            objects.load_eval_dataset(read_settings([*argv, *split], "train"))


@pytest.mark.parametrize("name", ["prompts.jsonl", "saved"])
def test_one_set_may_be_cut_into_training_and_evaluation(workspace: Path, name: str) -> None:
    Dataset.from_list([{"prompt": "one"}] * 12).save_to_disk(workspace / "saved")
    argv = ["run.toml", "--dataset", name, "--eval-strategy", "steps"]
    settings = read_settings([*argv, "--dataset-split", "train[:75%]", "--eval-split", "train[75%:]"], "train")
    assert len(objects.load_train_dataset(settings.options)) == 9
    assert len(objects.load_eval_dataset(settings)) == 3


def test_a_saved_dataset_for_evaluation_is_taken_whole(workspace: Path) -> None:
    Dataset.from_list([{"prompt": "one"}] * 3).save_to_disk(workspace / "held_out")
    argv = ["run.toml", "--eval-strategy", "steps", "--eval-dataset", "held_out"]
    assert len(objects.load_eval_dataset(read_settings(argv, "train"))) == 3
    with pytest.raises(DataError, match="has no split 'validation'"):
        objects.load_eval_dataset(read_settings([*argv, "--eval-split", "validation"], "train"))


def test_adapter_options(workspace: Path) -> None:
    assert objects.adapter(read_settings(["run.toml"], "train").options) is None
    lora = objects.adapter(read_settings(["run.toml", "--lora-r", "4"], "train").options)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (4, 8, "all-linear")
    argv = ["run.toml", "--use-peft", "True", "--lora_target_modules", "q_proj", "v_proj"]
    lora = objects.adapter(read_settings(argv, "train").options)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (16, 32, {"q_proj", "v_proj"})
    assert objects.adapter(read_settings(["run.toml", "--lora-r", "4", "--use-peft", "false"], "train").options) is None


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("all-linear", "all-linear"),
        ("[all-linear]", "all-linear"),
        ("q_proj", {"q_proj"}),
        ("[q_proj]", {"q_proj"}),
        ("[q_proj, v_proj]", {"q_proj", "v_proj"}),
        (".*[qv]_proj", ".*[qv]_proj"),
    ],
)
def test_adapter_modules_of_a_file(workspace: Path, text: str, modules: object) -> None:
    (workspace / "lora.yaml").write_text(f"lora_r: 4\nlora_target_modules: {text}\n")
    lora = objects.adapter(read_settings(["run.toml", "lora.yaml"], "train").options)
    assert lora.target_modules == modules


def test_all_linear_is_a_flag_too(workspace: Path) -> None:
    argv = ["run.toml", "--lora_r", "4", "--lora_target_modules", "all-linear"]
    assert objects.adapter(read_settings(argv, "train").options).target_modules == "all-linear"


@pytest.mark.parametrize("word", ["True", "true"])
def test_going_on_from_the_newest_checkpoint(workspace: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.toml", "--save-steps", "1"]) == 0
    assert main(["train", "run.toml", "--max-steps", "3", "--resume-from-checkpoint", word]) == 0
    assert "resumed     from out/checkpoint-2 at step 2\n" in capsys.readouterr().out
    assert "resume_from_checkpoint = true  # flag" in (workspace / "out" / "resolved.toml").read_text()


def test_the_card_names_a_dataset_of_the_hub_alone(workspace: Path) -> None:
    assert objects.hub_dataset(read_settings(["run.toml"], "train").options) is None
    named = read_settings(["run.toml", "--dataset", "trl-lib/tldr"], "train")
    assert objects.hub_dataset(named.options) == "trl-lib/tldr"


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    calls = []
    fake = types.ModuleType("gruppo.demo.run")
    fake.main = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gruppo.demo.run", fake)
    assert main(["demo"]) == 0
    assert main(["demo", "--seed", "7", "--steps", "5", "--output-dir", "x"]) == 0
    assert calls == [{"output_dir": "runs/demo", "seed": 0}, {"output_dir": "x", "seed": 7, "steps": 5}]


def test_settings_errors_are_gruppo_errors() -> None:
    with pytest.raises(GruppoError):
        read_settings([], "train")
