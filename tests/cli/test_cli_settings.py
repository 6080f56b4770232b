"""Files and flags to settings: precedence, origins, TRL's recipe names, every mistake at once, resolved.toml."""

import tomllib
from pathlib import Path

import pytest

from gruppo.cli.flags import parse_flags
from gruppo.cli.resolved import resolved_text, toml_value, write_resolved
from gruppo.cli.settings import read_settings
from gruppo.errors import ConfigError

RUN = """
model = "tiny"
dataset = "prompts.jsonl"
reward_funcs = ["think_format_reward"]
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_override_files_and_later_files_earlier_ones(tmp_path: Path) -> None:
    first = write(tmp_path / "a.toml", RUN + "seed = 1\n[loss]\nbeta = 0.1\nepsilon = 0.3\n")
    second = write(tmp_path / "b.yaml", "beta: 0.2\nlearning_rate: 2e-6\neval_strategy: no\n")
    settings = read_settings([first, second, "--epsilon", "0.1"], "train")
    config = settings.config
    assert (config.seed, config.beta, config.epsilon, config.learning_rate) == (1, 0.2, 0.1, 2e-6)
    assert config.eval_strategy == "no"
    assert (settings.origins["seed"], settings.origins["beta"], settings.origins["epsilon"]) == (first, second, "flag")


def test_flags_alone_are_enough() -> None:
    settings = read_settings(["--model", "tiny", "--dataset", "p.jsonl", "--reward_funcs", "a:b", "c:d"], "train")
    assert settings.options.reward_funcs == ["a:b", "c:d"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--num_generations", "4"], {"num_generations": 4}),
        (["--num-generations=4"], {"num_generations": 4}),
        (["--log-completions"], {"log_completions": True}),
        (["--log_completions", "false"], {"log_completions": False}),
        (["--no-gradient-checkpointing"], {"gradient_checkpointing": False}),
        (["--bf16", "false"], {"bf16": False}),
        (["--bf16", "1"], {"bf16": True}),
        (["--bf16=no"], {"bf16": False}),
        (["--log-completions=true"], {"log_completions": True}),
        (["--log_completions=False"], {"log_completions": False}),
        (["--log_completions", "0", "a.toml"], {"log_completions": False}),
        (["--log_completions", "yes"], {"log_completions": True}),
        (["--scale_rewards=batch"], {"scale_rewards": "batch"}),
        (["--report_to", "wandb", "tensorboard"], {"report_to": ["wandb", "tensorboard"]}),
        (["--model_init_kwargs", '{"a": 1}'], {"model_init_kwargs": '{"a": 1}'}),
        (["--max-prompt-length", "None"], {"max_prompt_length": None}),
        (["--model_name_or_path", "tiny"], {"model": "tiny"}),
        (["--evaluation_strategy=steps"], {"eval_strategy": "steps"}),
        (["--use_vllm", "false"], {"use_vllm": "false"}),
        (["--do_train", "run.toml"], {"do_train": True}),
    ],
)
def test_spellings_of_flags(argv: list[str], expected: dict[str, object]) -> None:
    assert parse_flags(argv, "train")[1] == expected


def test_positional_arguments_are_files() -> None:
    assert parse_flags(["a.toml", "b.yaml", "--seed", "1"], "train")[0] == [Path("a.toml"), Path("b.yaml")]


@pytest.mark.parametrize(
    "argv",
    [
        ["--reward-funcs", "think_format_reward", "run.toml", "more.yaml"],
        ["run.toml", "--reward-funcs", "think_format_reward", "more.yaml"],
        ["run.toml", "--reward-funcs=think_format_reward", "--report_to", "none", "more.yaml"],
        ["--reward-funcs", "think_format_reward", "run.toml", "--bf16=true", "more.yaml"],
        ["--log_completions", "run.toml", "--reward-funcs", "think_format_reward", "more.yaml"],
        ["--no-push_to_hub", "run.toml", "--reward-funcs", "think_format_reward", "more.yaml"],
    ],
)
def test_files_after_a_list_of_values_are_files(argv: list[str]) -> None:
    files, given = parse_flags(argv, "train")
    assert files == [Path("run.toml"), Path("more.yaml")]
    assert given["reward_funcs"] == ["think_format_reward"]


def test_a_file_right_after_an_option_with_one_value_is_its_value() -> None:
    files, given = parse_flags(["--reward_funcs", "a:b", "--dataset", "odd.yaml", "run.toml"], "train")
    assert (files, given) == ([Path("run.toml")], {"reward_funcs": ["a:b"], "dataset": "odd.yaml"})


def test_one_reward_may_be_text(tmp_path: Path) -> None:
    text = "model: tiny\ndataset: prompts.jsonl\nreward_funcs: think_format_reward\n"
    alone = read_settings([write(tmp_path / "a.yaml", text)], "train")
    beside = read_settings([write(tmp_path / "b.yaml", text + "reward_model_name_or_path: some/model\n")], "train")
    assert alone.options.reward_funcs == ["think_format_reward"]
    assert beside.options.reward_funcs == ["some/model", "think_format_reward"]


def test_a_reward_that_is_no_text_is_a_mistake_beside_a_reward_model(tmp_path: Path) -> None:
    text = "model: tiny\ndataset: p.jsonl\nreward_funcs: 5\nreward_model_name_or_path: some/model\n"
    with pytest.raises(ConfigError, match="reward_funcs"):
        read_settings([write(tmp_path / "a.yaml", text)], "train")


def test_the_home_folder_of_a_model_may_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = read_settings(["--model", "~/tiny", "--dataset", "p.jsonl", "--reward_funcs", "a:b"], "train")
    assert settings.options.model == "/home/someone/tiny"


def test_a_mistyped_flag_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_flags(["--learning-rat", "1e-6"], "train")
    assert exit_.value.code == 2
    assert "--learning-rate FLOAT" in capsys.readouterr().err


def test_help_is_short_and_help_all_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for argv in (["--help"], ["--help-all"], ["--help", "hub"]):
        with pytest.raises(SystemExit) as exit_:
            parse_flags(argv, "train")
        assert exit_.value.code == 0
        texts.append(capsys.readouterr().out)
    common, everything, hub = texts
    assert "--learning-rate" in common
    assert "--vespo-k-pos" not in common
    assert "--vespo-k-pos" in everything
    assert "--hub-model-id" in hub
    assert "--learning-rate" not in hub


def test_a_recipe_of_trl_is_read(tmp_path: Path) -> None:
    recipe = """
model_name_or_path: tiny
model_revision: main
torch_dtype: bfloat16
dataset_name: prompts.jsonl
dataset_test_split: validation
reward_model_name_or_path: some/model
reward_funcs: [think_format_reward]
use_peft: true
lora_target_modules: [q_proj]
load_in_4bit: false
use_vllm: false
warmup_ratio: 0.1
max_prompt_length: 512
gradient_checkpointing_kwargs: {use_reentrant: false}
"""
    settings = read_settings([write(tmp_path / "r.yaml", recipe)], "train")
    options = settings.options
    assert (options.model, options.dtype, options.dataset) == ("tiny", "bfloat16", "prompts.jsonl")
    assert (options.eval_split, options.reward_funcs) == ("validation", ["some/model", "think_format_reward"])
    assert (options.has_adapter, options.adapter_rank) == (True, 16)
    assert (settings.config.warmup_steps, settings.config.max_prompt_length) == (0.1, 512)
    assert settings.config.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_every_mistake_of_options_and_config_at_once(tmp_path: Path) -> None:
    text = "num_generatons = 4\nlora_r = 0\nload_in_4bit = true\n[loss]\nbeta = -1\nlos_type = 'grpo'\n"
    with pytest.raises(ConfigError) as error:
        read_settings([write(tmp_path / "bad.toml", text)], "train")
    assert error.value.problems == [
        "there is no setting 'num_generatons'. Did you mean 'num_generations'?",
        "there is no setting 'los_type'. Did you mean 'loss_type'?",
        "load_in_4bit=True is not supported: quantised loading from the command line is not there yet. Instead, pass "
        "quantization_config to GRPOTrainer in a script.",
        "lora_r=0 must be at least 1.",
        "model is missing. Set it to a hub id or a folder.",
        "dataset is missing. Set it to a hub id, a folder or a file.",
        "reward_funcs is missing. Set it to at least one reward, as in ['think_format_reward'].",
        "beta=-1 must be at least 0.0. A negative weight would drive the policy away from the reference. Set 0 for no "
        "KL term.",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "beta = = 1", r"reading .*a\.toml' failed: TOMLDecodeError"),
        ("a.yaml", "beta: [", r"reading .*a\.yaml' failed: ParserError"),
        ("a.yaml", "- 1", r"holds a list; it must hold name = value pairs"),
        ("a.json", "{}", r"must end in \.toml, \.yaml or \.yml"),
        ("a.toml", "[a]\nbeta = 1\n[b]\nbeta = 2", r"sets beta twice, in two sections"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings([write(tmp_path / name, text)], "train")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"There is no settings file 'nowhere\.toml'"):
        read_settings(["nowhere.toml"], "train")


def test_resolved_toml_says_where_values_come_from_and_reads_back(tmp_path: Path) -> None:
    text = RUN + (
        f'output_dir = "{tmp_path / "out"}"\nhub_token = "hf_secret"\nrun_name = "tab\\t\\"quoted\\" \\u007f"\n'
        'vllm_importance_sampling_clip_max = "none"\n'
        '[generation_kwargs]\nstop_strings = ["a", "b"]\n[chat_template_kwargs]\nnested = {x = [1, {y = true}]}\n'
    )
    source = write(tmp_path / "a.toml", text)
    settings = read_settings([source, "--epsilon", "0.1"], "train")
    assert settings.config.vllm_importance_sampling_clip_max is None
    path = write_resolved(settings)
    lines = path.read_text().splitlines()
    assert "epsilon = 0.1  # flag" in lines
    assert f'model = "tiny"  # {source}' in lines
    assert "beta = 0.0  # default" in lines
    assert '# epsilon_high = "none"  # default' in lines
    assert "hf_secret" not in path.read_text()
    again = read_settings([str(path)], "train")
    assert again.options == settings.options
    settings.config.hub_token = None
    assert again.config == settings.config
    assert resolved_text(again).splitlines()[0] == resolved_text(settings).splitlines()[0]
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("value", [True, 3, -1.5, 1e-08, 1e22, "a'b\"\\\n\x7f é", ["x", 1], {"a b": {"c": []}}])
def test_toml_values_read_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


def test_resolved_toml_of_a_folder_that_cannot_be(tmp_path: Path) -> None:
    taken = write(tmp_path / "taken", "x")
    flags = ["--model", "m", "--dataset", "d", "--reward_funcs", "a:b", "--output_dir", taken]
    settings = read_settings(flags, "train")
    with pytest.raises(ConfigError, match=r"output_dir='.*taken' is a file"):
        write_resolved(settings)
