"""Evaluation on held-out prompts, best models, and which checkpoints stay."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset

from fakes import DATA, EOS, count_twos, flat, lines, policy, scripted, trainer
from gruppo.errors import ConfigError, DataError
from tiny_tokenizer import ID

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}
GREEDY = {"eval_temperature": 0.0, "num_generations_eval": 1}


def by_step(rewards):
    """A reward that gives evaluations (of one completion each) these values in turn, and training 0 or 1."""
    given = iter(rewards)

    def reward(completions, **kwargs):
        return [next(given)] if len(completions) == 1 else [float(i % 2) for i in range(len(completions))]

    return reward


def texts_of(made):
    """The completions of one `evaluate()`."""
    texts = []
    generate = made.rollout.generate

    def note(*args):
        groups = generate(*args)
        texts.extend(completion.text for group in groups for completion in group.completions)
        return groups

    made.rollout.generate = note
    made.evaluate()
    made.rollout.generate = generate
    return texts


def test_evaluate_needs_no_training_and_changes_nothing(tmp_path):
    made = trainer(tmp_path, eval_dataset=DATA)
    before = flat(made.model)
    metrics = made.evaluate()
    assert torch.equal(flat(made.model), before)
    assert made.state.global_step == 0
    assert made.state.log_history[-1]["eval_reward"] == metrics["eval_reward"]
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["split"], line["eval_reward"]) == ("eval", metrics["eval_reward"])
    assert len(list((tmp_path / "rollouts").rglob("*.parquet"))) == 3


@pytest.mark.parametrize("run", ["train", "evaluate"])
def test_an_evaluation_that_raises_before_the_first_step_closes_the_records(tmp_path, run):
    def reward(completions, **kwargs):
        raise RuntimeError("broken")

    made = trainer(tmp_path, {"eval_on_start": True, **EVERY_STEP}, eval_dataset=DATA, reward_funcs=reward)
    with pytest.raises(ValueError, match="broken"):
        getattr(made, run)()
    assert json.loads((tmp_path / "run.json").read_text())["attempts"][0]["ended"] is not None
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (events[-1]["kind"], events[-1]["outcome"]) == ("attempt_stop", "interrupted")


def test_evaluation_does_not_change_training(tmp_path):
    plain = trainer(tmp_path / "plain", model=policy("gpt2"))
    plain.train()
    evaluated = trainer(tmp_path / "evaluated", EVERY_STEP, model=policy("gpt2"), eval_dataset=DATA)
    evaluated.train()
    assert torch.equal(flat(evaluated.model), flat(plain.model))


def test_greedy_evaluation_takes_the_likeliest_token(tmp_path):
    model = policy()
    made = trainer(tmp_path, GREEDY, model=model, eval_dataset=DATA[:2])
    texts = texts_of(made)
    assert texts_of(made) == texts
    prompt = made.processing_class(text=DATA[0]["prompt"])["input_ids"]
    for word in texts[0].split() or ["<eos>"]:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert logits.argmax() == ID[word]
        prompt = [*prompt, ID[word]]


def test_sampled_evaluation_is_the_same_at_the_same_step(tmp_path):
    made = trainer(tmp_path, {"num_generations_eval": 8}, eval_dataset=DATA[:2])
    texts = texts_of(made)
    assert len(set(texts)) > 1
    assert texts_of(made) == texts


def test_evaluation_has_settings_of_its_own(tmp_path):
    fields = {"eval_max_completion_length": 2, "num_generations_eval": 2, "eval_top_k": 1}
    made = trainer(tmp_path, fields, eval_dataset=DATA[:3])
    texts = texts_of(made)
    assert len(texts) == 6
    assert texts[0::2] == texts[1::2], "with top_k=1 both completions of a prompt are the same"
    assert made.evaluate()["eval_completions/max_length"] <= 2


def test_rewards_and_lengths_are_means_over_batches(tmp_path):
    rollout = scripted(lambda prompt, sample: [ID["two"]] * len(prompt.split()[0]) + [EOS])
    data = [{"prompt": "one"}, {"prompt": "three"}, {"prompt": "four"}]
    fields = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "eval_max_completion_length": 9}
    made = trainer(tmp_path, fields, rollout_func=rollout, eval_dataset=data)
    metrics = made.evaluate()
    # Batches of two prompts and of one: (3 + 5) / 2 and 4.
    assert metrics["eval_reward"] == 4.0
    assert metrics["eval_completions/mean_length"] == 5.0
    assert metrics["eval_completions/max_length"] == (6.0 + 5.0) / 2


def test_a_dict_of_sets_gives_a_line_and_names_for_each(tmp_path):
    made = trainer(
        tmp_path, {**EVERY_STEP, "max_steps": 1}, eval_dataset={"a": DATA[:1], "b": Dataset.from_list(DATA[1:3])}
    )
    made.train()
    a, b = [line for line in made.state.log_history if any("eval_" in name for name in line)]
    assert {"eval_a_loss", "eval_a_reward", "eval_a_runtime"} < set(a)
    assert {"eval_b_loss", "eval_b_reward"} < set(b)
    splits = [json.loads(line)["split"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert splits == ["train", "eval_a", "eval_b"]


def test_evaluate_takes_another_set_and_prefix(tmp_path):
    made = trainer(tmp_path)
    stream = IterableDataset.from_generator(DATA[:2].__iter__)
    assert "test_reward" in made.evaluate(stream, metric_key_prefix="test")
    assert "test_x_reward" in made.evaluate({"x": DATA[:1]}, metric_key_prefix="test")
    with pytest.raises(DataError, match="nothing to evaluate"):
        made.evaluate()


def test_eval_on_start_comes_before_the_first_step(tmp_path):
    made = trainer(tmp_path, {"eval_on_start": True, "max_steps": 1}, eval_dataset=DATA[:1])
    made.train()
    assert [line["step"] for line in lines(made, "eval_reward")] == [0]
    assert "eval_reward" in made.state.log_history[0]


def test_compute_metrics_sees_whole_groups_with_text_and_columns(tmp_path):
    def exact(groups):
        hits = [group.prompt.columns["answer"] in c.text for group in groups for c in group.completions]
        assert [len(group.completions) for group in groups] == [2, 2, 2]
        assert [group.prompt.columns["answer"] for group in groups] == ["one", "one", "two"]
        return {"accuracy": sum(hits) / len(hits)}

    rollout = scripted(lambda prompt, sample: [ID["one"], EOS])
    fields = {**EVERY_STEP, "max_steps": 1, "num_generations_eval": 2, "per_device_eval_batch_size": 4}
    fields |= {"metric_for_best_model": "accuracy", "save_strategy": "best"}
    made = trainer(tmp_path, fields, rollout_func=rollout, eval_dataset=DATA[:3], compute_metrics=exact)
    made.train()
    assert lines(made, "eval_reward")[0]["eval_accuracy"] == pytest.approx(2 / 3)
    assert made.state.best_metric == pytest.approx(2 / 3)


def test_the_loss_of_an_evaluation_is_that_of_its_rows(tmp_path):
    """On-policy every ratio is 1, so the loss is minus the weighted mean of advantages, which sum to 0."""
    made = trainer(tmp_path, {"num_generations_eval": 4, "loss_type": "grpo"}, eval_dataset=DATA)
    assert made.evaluate()["eval_loss"] == pytest.approx(0.0, abs=1e-6)


def test_beta_adds_the_kl_to_the_loss_of_an_evaluation(tmp_path):
    made = trainer(tmp_path, {"beta": 0.5, "num_generations_eval": 4, "loss_type": "grpo"}, eval_dataset=DATA)
    assert made.evaluate()["eval_kl"] == pytest.approx(0.0, abs=1e-6)
    made.train()
    metrics = made.evaluate()
    assert metrics["eval_kl"] > 1e-4
    assert metrics["eval_loss"] > 1e-5


# -- names


def documented_names():
    """Patterns for the names in docs/metrics.md: `<...>` stands for any word, `/x` goes on after the name before."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    patterns = []
    for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        stem = names[0].rpartition("/")[0]
        whole = [stem + name if name.startswith("/") else name for name in names]
        patterns += [re.sub(r"<[^>]+>|\\.\\.\\.", "[^/]+", re.escape(name)) for name in whole]
    return patterns


def test_every_logged_name_is_documented(tmp_path):
    def binary(completions, **kwargs):
        return [1.0] * len(completions)

    fields = {**EVERY_STEP, "beta": 0.1, "use_adaptive_entropy": True, "max_steps": 1}
    model = policy("mixtral", output_router_logits=True)
    made = trainer(tmp_path, fields, model=model, eval_dataset=DATA[:1], reward_funcs=binary)
    made.train()
    names = {name.removeprefix("eval_") for line in made.state.log_history for name in line} - {"step"}
    patterns = [*documented_names(), "runtime", "samples_per_second", "steps_per_second"]
    unknown = {name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)}
    assert unknown == set()
    assert not any(re.fullmatch(pattern, "reward/nonsense") for pattern in patterns)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss_type": "grpo"}, {"clip_ratio/region_mean", "clip_ratio/low_min", "ratio/mean", "entropy"}),
        (
            {"loss_type": "cispo", "epsilon_high": 5.0, "allow_unusual": ["learning_rate", "epsilon_high"]},
            {"cispo_clip_ratio"},
        ),
        ({"loss_type": "vespo"}, {"vespo/phi_seq_mean"}),
        ({"beta": 0.1}, {"kl"}),
        ({"entropy_coef": 0.1}, {"policy_loss", "entropy_coef"}),
        (
            {},
            {
                "num_tokens",
                "completions/mean_length",
                "completions/mean_terminated_length",
                "rewards/count_twos/std",
                "reward_std",
                "frac_reward_zero_std",
                "groups/frac_solved",
                "groups/frac_failed",
                "sampling/sampling_logp_difference/max",
                "sampling/importance_sampling_ratio/min",
                "step_time",
                "time/generate",
                "perf/tokens_per_second",
            },
        ),
    ],
    ids=["grpo", "cispo", "vespo", "kl", "entropy bonus", "always"],
)
def test_the_documented_names_are_there(tmp_path, fields, expected):
    made = trainer(tmp_path, {**fields, "max_steps": 1})
    made.train()
    assert expected <= set(made.state.log_history[0])


def test_binary_rewards_give_pass_at_k(tmp_path):
    rollout = scripted(lambda prompt, sample: [ID["two"] if sample == 0 else ID["three"], EOS])
    made = trainer(tmp_path, {"max_steps": 1}, rollout_func=rollout)
    made.train()
    (line,) = lines(made)
    # One of four is right: 1 - C(3,2)/C(4,2) = 1/2.
    assert line["pass@2/count_twos"] == pytest.approx(0.5)
    assert line["pass@4/count_twos"] == 1.0


# -- best models, and which checkpoints stay


def best_run(tmp_path, rewards, **fields):
    fields = {**EVERY_STEP, **GREEDY, "save_strategy": "steps", "save_steps": 1, "max_steps": len(rewards), **fields}
    made = trainer(tmp_path, fields, reward_funcs=by_step(rewards), eval_dataset=DATA[:1])
    made.train()
    return made, {path.name for path in tmp_path.glob("checkpoint-*")}


def test_save_total_limit_keeps_the_newest(tmp_path):
    made = trainer(tmp_path, {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2})
    made.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_save_total_limit_keeps_the_best_too(tmp_path):
    made, kept = best_run(tmp_path, [1.0, 5.0, 2.0, 3.0], save_total_limit=2)
    assert kept == {"checkpoint-2", "checkpoint-4"}
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert (made.state.best_global_step, made.state.best_metric) == (2, 5.0)


def test_load_best_model_at_end(tmp_path):
    made, _ = best_run(tmp_path, [1.0, 5.0, 2.0], load_best_model_at_end=True, metric_for_best_model="eval_reward")
    best = trainer(tmp_path / "x", model=str(tmp_path / "checkpoint-2")).model
    assert torch.equal(flat(made.model), flat(best))
    last = trainer(tmp_path / "x", model=str(tmp_path / "checkpoint-3")).model
    assert not torch.equal(flat(made.model), flat(last))


def test_without_it_the_last_model_stays(tmp_path):
    made, _ = best_run(tmp_path, [1.0, 5.0, 2.0])
    assert torch.equal(flat(made.model), flat(trainer(tmp_path / "x", model=str(tmp_path / "checkpoint-3")).model))


def test_save_strategy_best_saves_at_every_new_best(tmp_path):
    _, kept = best_run(tmp_path, [1.0, 5.0, 2.0, 6.0], save_strategy="best", save_total_limit=4)
    assert kept == {"checkpoint-1", "checkpoint-2", "checkpoint-4"}


def test_greater_is_better_can_be_turned(tmp_path):
    made, _ = best_run(tmp_path, [3.0, 1.0, 2.0], metric_for_best_model="reward", greater_is_better=False)
    assert made.state.best_global_step == 2


def test_a_metric_that_no_evaluation_gives_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"metric_for_best_model='accuracy' means eval_accuracy.*eval_reward"):
        best_run(tmp_path, [1.0], metric_for_best_model="accuracy", load_best_model_at_end=True)


def test_time_of_an_evaluation_belongs_to_no_step(tmp_path):
    made = trainer(tmp_path, {**EVERY_STEP, "max_steps": 2}, eval_dataset=DATA, reward_funcs=count_twos)
    made.train()
    second = [line for line in made.state.log_history if "loss" in line][1]
    assert "time/evaluate" not in second
    phases = sum(value for name, value in second.items() if name.startswith("time/"))
    assert phases <= second["step_time"]
