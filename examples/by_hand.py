# /// script
# requires-python = ">=3.11"
# dependencies = ["gruppo"]
# ///
"""All of GRPO by hand, on the pure functions of `gruppo.algorithm`. Read from top to bottom.

A tiny transformer with random weights learns to count down: asked "7", it shall say "6 5 4 3 2 1 0" and stop.
It never sees a right answer, only a score for each of its own. One CPU, about a minute, nothing to download:

    python examples/by_hand.py

What `GRPOTrainer` adds to this: real models and tokenizers, data, several processes, evaluation, logs, checkpoints.
"""

import argparse

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gruppo.algorithm.advantages import group_relative
from gruppo.algorithm.losses import LossInputs, LossSettings, policy_loss, row_weights
from gruppo.algorithm.reduce import RowCounts

# The vocabulary: the digits 0-9 are the tokens 0-9; a prompt is <ask> and a digit; an answer ends with <eos>.
ASK, EOS = 10, 11
VOCAB_SIZE = 12

P = 10  # prompts per step: all ten digits
G = 16  # completions per prompt: the group that an advantage is relative to
T = 11  # tokens of a completion, at most
NUM_ITERATIONS = 2  # optimizer steps on the same completions
SETTINGS = LossSettings(loss_type="dapo", epsilon_low=0.2, epsilon_high=0.2)


def tiny_policy() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config)


def completion_logprobs(policy: LlamaForCausalLM, prompts_N2: Tensor, completions_NT: Tensor) -> Tensor:
    """log pi(token | what came before), for every token of every completion."""
    rows = torch.cat([prompts_N2, completions_NT], dim=1)
    logits_NTV = policy(rows).logits[:, prompts_N2.shape[1] - 1 : -1]  # the logits at t-1 speak about token t
    return logits_NTV.log_softmax(dim=-1).gather(-1, completions_NT.unsqueeze(-1)).squeeze(-1)


# Step 1: generate. G completions for each prompt, sampled from the policy itself.
@torch.no_grad()
def generate(policy: LlamaForCausalLM, prompts_N2: Tensor) -> tuple[Tensor, Tensor]:
    """-> (tokens, mask), both (N, T). The mask is True up to and including <eos>: the tokens to train on."""
    tokens, seen, sampled = prompts_N2, None, []
    for _ in range(T):
        output = policy(tokens, past_key_values=seen, use_cache=True)
        seen = output.past_key_values  # what was computed for earlier tokens is not computed again
        tokens = torch.multinomial(output.logits[:, -1].softmax(dim=-1), 1)
        sampled.append(tokens)
    completions_NT = torch.cat(sampled, dim=1)
    num_eos_before_NT = (completions_NT == EOS).cumsum(dim=1) - (completions_NT == EOS).long()
    return completions_NT, num_eos_before_NT == 0


# Step 2: score. The share of the right answer that the completion gets right before its first mistake.
def countdown_reward(digit: int, completion: list[int]) -> float:
    target = [*range(digit - 1, -1, -1), EOS]
    num_right = 0
    for said, wanted in zip(completion, target, strict=False):
        if said != wanted:
            break
        num_right += 1
    return num_right / len(target)


def score(prompts_N2: Tensor, completions_NT: Tensor) -> Tensor:
    rewards = [countdown_reward(d, c) for (_, d), c in zip(prompts_N2.tolist(), completions_NT.tolist(), strict=True)]
    return torch.tensor(rewards).unsqueeze(1)  # (N, F), with F = 1 reward function


# Step 3: advantage. How much better than its siblings was each completion? No value network: the group is the baseline.
def advantage(rewards_NF: Tensor) -> Tensor:
    weights_F = torch.ones(rewards_NF.shape[1])
    table = group_relative(rewards_NF, weights_F, group_size=G, scale="group", aggregation="sum_then_normalize")
    return table.advantages_N


# Step 4: loss. Raise the probability of tokens with positive advantage, lower it for negative ones, in small steps.
def loss(logprobs_NT: Tensor, old_logprobs_NT: Tensor, trained_NT: Tensor, advantages_N: Tensor) -> Tensor:
    num_tokens_N = trained_NT.sum(dim=1)
    counts = RowCounts(
        num_tokens_N=num_tokens_N,
        slice_ids_N=torch.zeros_like(num_tokens_N),  # everything in one forward
        num_rows_per_slice=P * G,
        num_slices_in_window=1,
        num_slices_per_generation=1,
        num_generation_tokens=int(num_tokens_N.sum()),
        world_size=1,
        max_completion_length=T,
        is_training=True,
    )
    inputs = LossInputs(
        logprobs_NT=logprobs_NT,
        entropy_NT=torch.zeros(trained_NT.shape),  # only a statistic here, and left out
        advantages_N=advantages_N,
        trained_NT=trained_NT,
        row_weights_N=row_weights(SETTINGS.loss_type, counts),
        old_logprobs_NT=old_logprobs_NT,
    )
    return policy_loss(inputs, SETTINGS).loss


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO by hand: a tiny policy learns to count down.")
    parser.add_argument("--steps", type=int, default=120, help="generation rounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    policy = tiny_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
    prompts_N2 = torch.tensor([[ASK, digit] for digit in range(P)]).repeat_interleave(G, dim=0)  # N = P * G rows

    for step in range(1, options.steps + 1):
        completions_NT, trained_NT = generate(policy, prompts_N2)  # 1
        rewards_NF = score(prompts_N2, completions_NT)  # 2
        advantages_N = advantage(rewards_NF)  # 3
        with torch.no_grad():
            old_logprobs_NT = completion_logprobs(policy, prompts_N2, completions_NT)
        for _ in range(NUM_ITERATIONS):
            logprobs_NT = completion_logprobs(policy, prompts_N2, completions_NT)
            optimizer.zero_grad()
            loss(logprobs_NT, old_logprobs_NT, trained_NT, advantages_N).backward()  # 4
            optimizer.step()
        if step == 1 or step % 10 == 0:
            said = " ".join(map(str, completions_NT[7 * G][trained_NT[7 * G]].tolist())).replace(str(EOS), "<eos>")
            print(f"step {step:3}   mean reward {rewards_NF.mean():.3f}   asked 7, said: {said}")


if __name__ == "__main__":
    main()
