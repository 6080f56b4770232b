"""The guard of the numbers, in a process of its own: is what gruppo computed fast also right?

    python -m harness.guard TASK

Rollouts of one step come from gruppo's embedded engine; one loss on them is computed twice, by the packed
shared-prefix forward that gruppo trains with and by the padded oracle (`policy.logprobs`), both in float32. Handed back
are the largest difference of log-probs, the relative difference of the gradients (2-norm over all parameters), and
the largest difference between the sampler's own log-probs and the oracle's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from harness import models
from harness.lengths import impose_on_engine
from harness.measure import hand_back
from harness.step import ROWS_PER_SLICE, Cell, check_engine


def task(cell: Cell) -> dict[str, Any]:
    return {"cell": asdict(cell)}


def work(cell: Cell, threads: int) -> dict[str, float]:
    import torch

    from gruppo.policy.logprobs import token_logprobs
    from gruppo.policy.shared_prefix import packed_logprobs

    torch.set_num_threads(threads)
    model = models.make_model(cell.shape)
    batch = rollouts(model, cell)
    packed_NT, packed_gradient = one_pass(model, batch, packed_logprobs)
    oracle_NT, oracle_gradient = one_pass(model, batch, token_logprobs)
    known_NT = batch.trained_NT & ~batch.sampler_logprobs_NT.isnan()
    return {
        "max_logprob_difference": float((packed_NT - oracle_NT).abs().max()),
        "relative_gradient_difference": float((packed_gradient - oracle_gradient).norm() / oracle_gradient.norm()),
        "max_sampler_logprob_difference": float((batch.sampler_logprobs_NT - oracle_NT)[known_NT].abs().max()),
    }


def rollouts(model: Any, cell: Cell) -> Any:
    """One step's TrainBatch. Advantages are made up: they need only differ."""
    import torch

    from gruppo.rollout.engine import EmbeddedEngine
    from gruppo.types import Prompt, RolloutRequest, SamplingParams, TrainBatch

    impose_on_engine(cell.rule())
    prompts = [Prompt(number, "", ids) for number, ids in enumerate(cell.prompts())]
    sampling = SamplingParams(
        max_tokens=cell.num_completion_tokens, eos_token_ids=(models.EOS,), pad_token_id=models.PAD, seed=1
    )
    engine = EmbeddedEngine(model)
    groups = engine.generate([RolloutRequest(prompt, range(cell.group_size)) for prompt in prompts], sampling)
    check_engine(engine.health())
    rows = [(group, completion) for group in groups for completion in group.completions]
    ids = [torch.tensor(completion.token_ids) for _, completion in rows]
    logprobs = [torch.tensor(completion.sampler_logprobs) for _, completion in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return TrainBatch(
        prompt_ids=[group.prompt.token_ids for group, _ in rows],
        completion_ids=[completion.token_ids for _, completion in rows],
        trained_NT=pad([torch.ones_like(x, dtype=torch.bool) for x in ids], batch_first=True),
        advantages_N=torch.linspace(-1.0, 1.0, len(rows)),
        group_ids=[group.prompt.id for group, _ in rows],
        slice_ids=[0] * len(rows),
        sampler_logprobs_NT=pad(logprobs, batch_first=True, padding_value=torch.nan),
    )


def one_pass(model: Any, batch: Any, logprobs: Callable[..., Any]) -> tuple[Any, Any]:
    """Log-probs (N, T) and the gradient of the sum of advantage times log-prob, some groups at a time."""
    import torch

    model.train()
    model.zero_grad(set_to_none=True)
    found_NT = torch.zeros(batch.trained_NT.shape)
    for start in range(0, len(batch), ROWS_PER_SLICE):
        rows = list(range(start, min(start + ROWS_PER_SLICE, len(batch))))
        part = batch.rows(rows)
        part_NT = logprobs(model, part, temperature=1.0, pad_token_id=models.PAD, with_entropy=True).logprobs_NT
        (part_NT * part.advantages_N[:, None]).sum().backward()
        found_NT[rows, : part_NT.shape[1]] = part_NT.detach()
    return found_NT, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    hand_back(work(Cell(**given["cell"]), given["threads"]))
