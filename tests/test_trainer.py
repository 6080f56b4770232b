"""GRPOTrainer as a user meets it: what goes in, that it learns, what comes out."""

import json
from contextlib import contextmanager
from inspect import signature

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from fakes import DATA, EOS, count_twos, flat, lines, policy, scripted, timeless, trainer
from gruppo import GRPOTrainer
from gruppo.errors import RolloutError
from tiny_tokenizer import ID


def test_the_reward_rises_on_a_toy_task(tmp_path):
    made = trainer(
        tmp_path, {"max_steps": 30, "max_completion_length": 8, "learning_rate": 2e-2, "lr_scheduler_type": "constant"}
    )
    output = made.train()
    rewards = [line["reward"] for line in lines(made)]
    assert output.global_step == 30
    assert rewards[0] < 1.0
    assert sum(rewards[-3:]) / 3 > 6.0


def test_training_is_the_same_twice(tmp_path):
    runs = []
    for name in ("a", "b"):
        made = trainer(tmp_path / name)
        made.train()
        runs.append((flat(made.model), lines(made)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_constructor_is_trls():
    names = list(signature(GRPOTrainer.__init__).parameters)
    assert names[1:15] == [
        "model",
        "reward_funcs",
        "args",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "reward_processing_classes",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
        "tools",
        "rollout_func",
        "environment_factory",
    ]


@pytest.mark.parity
def test_constructor_is_trls_as_installed():
    import trl

    theirs = list(signature(trl.GRPOTrainer.__init__).parameters)
    assert list(signature(GRPOTrainer.__init__).parameters)[: len(theirs)] == theirs


def test_attributes_are_trls(tmp_path):
    made = trainer(tmp_path, {"beta": 0.1, "reward_weights": [0.5]})
    assert made.reward_funcs == [count_twos]
    assert made.reward_func_names == ["count_twos"]
    assert made.reward_weights.tolist() == [0.5]
    assert made.args.beta == 0.1
    assert isinstance(made.model, Qwen2ForCausalLM)
    assert made.ref_model is not made.model
    assert torch.equal(flat(made.ref_model), flat(made.model))
    assert made.processing_class.pad_token_id == 0
    assert made.accelerator.num_processes == 1
    assert made.state.global_step == 0
    assert (made.is_world_process_zero(), made.is_local_process_zero()) == (True, True)
    assert trainer(tmp_path).ref_model is None


@pytest.mark.parametrize(
    "make",
    [list, Dataset.from_list, lambda rows: IterableDataset.from_generator(rows.__iter__)],
    ids=["list", "map", "stream"],
)
def test_every_kind_of_dataset_trains_and_its_columns_reach_the_reward(tmp_path, make):
    seen = []

    def reward(prompts, completions, completion_ids, answer, trainer_state, **kwargs):
        assert set(kwargs) == {"log_extra", "log_metric"}
        seen.extend(zip(prompts, answer, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    made = trainer(tmp_path, {"max_steps": 2}, train_dataset=make(DATA), reward_funcs=reward)
    made.train()
    assert len(seen) == 16
    assert all(prompt.split()[0] == answer for prompt, answer in seen)


def test_conversational_prompts_go_through_the_chat_template(tmp_path):
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.append((prompts[0], completions[0]))
        return [float(len(messages[0]["content"])) for messages in completions]

    data = [{"prompt": [{"role": "user", "content": word}]} for word in ("one", "two")]
    made = trainer(tmp_path, {"max_steps": 1}, train_dataset=data, reward_funcs=reward)
    groups = []
    made.rollout.generate = _spying(made.rollout.generate, groups)
    made.train()
    prompt, completion = seen[0]
    assert prompt in [row["prompt"] for row in data]
    assert [message["role"] for message in completion] == ["assistant"]
    word = groups[0].prompt.content[0]["content"]
    assert groups[0].prompt.token_ids == [ID[w] for w in f"user {word} <eos> assistant".split()]


def _spying(function, found):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        found.extend(result)
        return result

    return call


def test_rewards_weights_and_abstentions_reach_the_metrics(tmp_path):
    def first(completion_ids, log_metric, **kwargs):
        log_metric("calls", 1.0)
        return [float(i) for i in range(len(completion_ids))]

    async def second(completion_ids, **kwargs):
        return [None if i % 2 else 1.0 for i in range(len(completion_ids))]

    made = trainer(tmp_path, {"max_steps": 1, "reward_weights": [1.0, 10.0]}, reward_funcs=[first, second])
    made.train()
    (line,) = lines(made)
    assert line["rewards/first/mean"] == 3.5
    assert line["rewards/second/mean"] == 1.0
    # 0..7, and 10 for every other row.
    assert line["reward"] == 3.5 + 5.0
    assert line["calls"] == 1.0


# -- rollout_func, by TRL's contract


def test_rollout_func_gets_repeated_prompts_and_the_trainer(tmp_path):
    calls = []
    inner = scripted(lambda prompt, sample: [ID["two"]] * (sample + 1) + [EOS])

    def rollout(prompts, trainer):
        calls.append((prompts, trainer, trainer.model.training))
        return inner(prompts, trainer)

    made = trainer(tmp_path, {"max_steps": 1}, rollout_func=rollout)
    made.train()
    ((prompts, given, is_training),) = calls
    assert given is made
    assert is_training
    assert len(prompts) == 8
    assert len(set(prompts[:4])) == len(set(prompts[4:])) == 1
    (line,) = lines(made)
    assert line["rewards/count_twos/mean"] == 2.5
    assert line["completions/mean_length"] == 3.5
    assert line["completions/clipped_ratio"] == 0.0
    assert "sampling/sampling_logp_difference/mean" not in line


def test_rollout_func_says_evaluation_by_the_models_mode(tmp_path):
    modes = []
    inner = scripted(lambda prompt, sample: [ID["two"], EOS])

    def rollout(prompts, trainer):
        modes.append(trainer.model.training)
        return inner(prompts, trainer)

    made = trainer(
        tmp_path,
        {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
        rollout_func=rollout,
        eval_dataset=DATA[:1],
    )
    made.train()
    assert modes == [True, False]


def alternating(completion_ids, **kwargs):
    return [float(i % 2) for i in range(len(completion_ids))]


def test_tokens_of_the_environment_get_no_gradient(tmp_path):
    def after_a_step(tail, mask):
        def rollout(prompts, trainer):
            output = scripted(lambda prompt, sample: [ID["two"] if sample % 2 else ID["three"], *tail])(
                prompts, trainer
            )
            return {**output, "env_mask": [[1, *mask] for _ in prompts]}

        made = trainer(tmp_path, {"max_steps": 1, "optim": "sgd"}, rollout_func=rollout, reward_funcs=alternating)
        made.train()
        return flat(made.model)

    tool = [ID["five"], ID["four"]]
    alone = after_a_step([], [])
    assert torch.allclose(after_a_step(tool, [0, 0]), alone, rtol=0, atol=1e-7)
    assert not torch.allclose(after_a_step(tool, [1, 1]), alone, rtol=0, atol=1e-4)


def test_tokens_of_the_environment_are_seen_but_not_counted(tmp_path):
    seen = []

    def rollout(prompts, trainer):
        output = scripted(lambda prompt, sample: [ID["two"], ID["five"], ID["one"], EOS])(prompts, trainer)
        return {**output, "env_mask": [[1, 0, 1, 1] for _ in prompts]}

    made = trainer(
        tmp_path, {"max_steps": 1, "policy_forward": "padded"}, rollout_func=rollout, reward_funcs=alternating
    )
    made.model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0]))
    made.train()
    (line,) = lines(made)
    assert line["completions/mean_length"] == 3.0
    assert line["num_tokens"] == 8 * (3 + 3)
    assert seen[-1].shape == (4, 7)
    assert (seen[-1][:, 4] == ID["five"]).all()


def test_further_fields_of_rollout_func_reach_the_rewards(tmp_path):
    seen = {}

    def rollout(prompts, trainer):
        output = scripted(lambda prompt, sample: [ID["two"], EOS])(prompts, trainer)
        return {**output, "score": [float(i) for i in range(len(prompts))], "level": 7}

    def reward(completion_ids, score, level, **kwargs):
        seen["score"], seen["level"] = score, level
        return score

    trainer(tmp_path, {"max_steps": 1}, rollout_func=rollout, reward_funcs=reward).train()
    assert seen == {"score": [float(i) for i in range(8)], "level": [7] * 8}


def test_rollout_func_that_forgets_a_key_is_an_error(tmp_path):
    def rollout(prompts, trainer):
        return {"prompt_ids": [[1]] * len(prompts), "completion_ids": [[2]] * len(prompts)}

    with pytest.raises(RolloutError, match=r"must return keys \['logprobs'\]"):
        trainer(tmp_path, rollout_func=rollout).train()


def test_log_probs_of_a_rollout_func_are_compared_with_the_trainers(tmp_path):
    model = policy()
    made = trainer(
        tmp_path,
        {"max_steps": 1},
        model=model,
        rollout_func=scripted(lambda prompt, sample: [ID["two"], EOS], logprob=-3.0),
    )
    made.train()
    (line,) = lines(made)
    assert 0.0 < line["sampling/sampling_logp_difference/mean"] <= line["sampling/sampling_logp_difference/max"]


# -- the reference


def test_the_reference_of_a_model_changed_in_memory_is_that_model(tmp_path):
    model = policy()
    with torch.no_grad():
        model.lm_head.weight.add_(0.05 * torch.randn(model.lm_head.weight.shape, generator=torch.manual_seed(1)))
    made = trainer(tmp_path, {"beta": 0.1, "max_steps": 3, "learning_rate": 5e-2}, model=model)
    made.train()
    kls = [line["kl"] for line in lines(made)]
    assert kls[0] == 0.0
    assert kls[1] > 0.0


def test_sync_ref_model_moves_the_reference_towards_the_policy(tmp_path):
    fields = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.25}
    made = trainer(tmp_path, {**fields, "max_steps": 2})
    start = flat(made.ref_model)
    made.train()
    torch.testing.assert_close(flat(made.ref_model), 0.75 * start + 0.25 * flat(made.model))
    assert not torch.equal(flat(made.ref_model), start)


# -- what comes out


def test_the_last_line_and_the_output_say_how_it_went(tmp_path):
    made = trainer(tmp_path, {"max_steps": 4, "logging_steps": 2})
    output = made.train()
    losses = [line["loss"] for line in lines(made)]
    assert output.training_loss == pytest.approx(sum(losses) / 2)
    last = made.state.log_history[-1]
    assert {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"} < set(last)
    assert last["step"] == 4
    assert output.metrics["train_loss"] == last["train_loss"]


def test_steps_that_no_line_reported_join_the_last_one(tmp_path):
    made = trainer(tmp_path, {"max_steps": 3, "logging_steps": 2})
    made.train()
    assert [line["step"] for line in lines(made)] == [2]
    last = made.state.log_history[-1]
    assert last["reward"] >= 0.0
    assert "loss" not in last


def test_log_adds_a_line(tmp_path):
    made = trainer(tmp_path)
    made.log({"mine": 0.5})
    assert made.state.log_history == [{"mine": 0.5, "epoch": made.state.epoch, "step": 0}]


def test_a_saved_model_loads_with_from_pretrained_and_trains_on(tmp_path):
    made = trainer(tmp_path / "first", {"max_steps": 2})
    made.train()
    made.save_model(str(tmp_path / "model"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(flat(loaded), flat(made.model))
    again = trainer(tmp_path / "second", {"max_steps": 1}, model=str(tmp_path / "model"))
    assert torch.equal(flat(again.model), flat(made.model))
    again.train()
    assert not torch.equal(flat(again.model), flat(made.model))


def test_the_home_folder_may_be_short_wherever_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fields = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer("~/run", fields).train()
    resumed = trainer("~/run", fields)
    resumed.train(resume_from_checkpoint="~/run/checkpoint-1")
    assert [line["step"] for line in lines(resumed)] == [1, 2]
    resumed.save_model("~/model")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), flat(resumed.model))


def test_nothing_is_written_outside_output_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "log_completions": True}
    made = trainer(tmp_path / "run", fields)
    made.train()
    made.save_model()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.json", "metrics.jsonl", "events.jsonl", "rollouts", "completions", "checkpoint-1"} <= found
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [timeless(step)["step"] for step in steps] == [1, 2]
    assert steps[0]["reward"] == lines(made)[0]["reward"]


def test_a_second_train_begins_its_schedule_anew(tmp_path):
    made = trainer(tmp_path, {"max_steps": 2})
    made.train()
    first = [line["learning_rate"] for line in lines(made)]
    before = flat(made.model)
    made.train()
    assert [line["learning_rate"] for line in lines(made)] == first == [1e-2, 5e-3]
    assert not torch.equal(flat(made.model), before)


def test_a_second_train_over_a_stream_begins_it_anew(tmp_path):
    def prompts_of(made):
        seen = []
        made.rollout.generate = _spying(type(made.rollout).generate.__get__(made.rollout), seen)
        made.train()
        return [group.prompt.id for group in seen]

    stream = IterableDataset.from_generator(DATA.__iter__)
    made = trainer(tmp_path, {"max_steps": 2}, train_dataset=stream)
    first = prompts_of(made)
    assert prompts_of(made) == first == [0, 1, 2, 3]


def test_mask_truncated_completions_drops_rows(tmp_path):
    def answers(prompt, sample):
        return [ID["two"]] * 5 if sample % 2 else [ID["three"], EOS]

    made = trainer(
        tmp_path,
        {"max_steps": 1, "mask_truncated_completions": True},
        rollout_func=scripted(answers),
        reward_funcs=alternating,
    )
    batches = []
    made.learner.begin_round = _noting_batch(made.learner.begin_round, batches)
    made.train()
    assert [row.sum().item() for row in batches[0].trained_NT] == [2, 0] * 4


def _noting_batch(function, found):
    def call(batch, segments):
        found.append(batch)
        return function(batch, segments)

    return call


def test_training_keeps_the_memory_that_it_frees(tmp_path, monkeypatch):
    entered, left = [], []

    @contextmanager
    def spy():
        entered.append(made.state.global_step)
        yield
        left.append(made.state.global_step)

    monkeypatch.setattr("gruppo.trainer.freed_memory_kept", spy)
    made = trainer(tmp_path, {"max_steps": 2})
    made.train()
    assert (entered, left) == ([0], [2])


@pytest.mark.parametrize("engine", ["embedded", "hf"])
def test_generation_kwargs_have_the_last_word(tmp_path, engine):
    kwargs = {"max_new_tokens": 2, "top_k": 1}
    made = trainer(tmp_path, {"max_steps": 1, "rollout_engine": engine, "generation_kwargs": kwargs})
    groups = []
    made.rollout.generate = _spying(made.rollout.generate, groups)
    made.train()
    assert {len(completion.token_ids) for group in groups for completion in group.completions} <= {1, 2}
    assert all(len({tuple(one.token_ids) for one in group.completions}) == 1 for group in groups)
