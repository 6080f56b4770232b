"""A rollout engine in a process of its own, asked for one rollout after another by lines on its standard input.

    gruppo's Python  -m harness.serve gruppo TASK
    vLLM's Python    serve.py vllm TASK

The second way means that this file imports nothing of the benchmarks and nothing of gruppo before it must: vLLM has an
environment of its own. Each line asks for one rollout: {"prompts": [[ids]], "group_size": G, "max_tokens": T,
"seed": s}. Each answer is a line that begins with RESULT: seconds, tokens, peak memory. Both engines ignore EOS, sample
at temperature 1 without truncation, and hand back token ids.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rollout = Callable[[dict[str, Any]], list[list[int]]]
"""From a request to the completions' token ids."""


def vllm_engine(task: dict[str, Any]) -> Rollout:
    """vLLM in this process, compiled as it comes, with its prefix cache."""
    cpus = sorted(os.sched_getaffinity(0))[: task["threads"]]
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=task["model"],
        skip_tokenizer_init=True,
        dtype=task["dtype"],
        max_model_len=task["max_model_len"],
        max_num_seqs=task["max_num_rows"],
        enforce_eager=task["is_eager"],
    )

    def rollout(request: dict[str, Any]) -> list[list[int]]:
        sampling = SamplingParams(
            n=request["group_size"],
            max_tokens=request["max_tokens"],
            seed=None,
            temperature=1.0,
            ignore_eos=True,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        return [list(row.token_ids) for output in outputs for row in output.outputs]

    return rollout


def gruppo_engine(task: dict[str, Any]) -> Rollout:
    """The embedded engine over the trainer's float32 weights; preparing them for each rollout is part of its time."""
    import torch
    from transformers import AutoModelForCausalLM

    from gruppo.rollout.engine import EmbeddedEngine
    from gruppo.types import Prompt, RolloutRequest, SamplingParams

    torch.set_num_threads(task["threads"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    engine = EmbeddedEngine(model, rollout_dtype=None if task["dtype"] == "float32" else torch.bfloat16)

    def rollout(request: dict[str, Any]) -> list[list[int]]:
        prompts = [Prompt(number, "", ids) for number, ids in enumerate(request["prompts"])]
        requests = [RolloutRequest(prompt, range(request["group_size"])) for prompt in prompts]
        groups = engine.generate(requests, SamplingParams(max_tokens=request["max_tokens"], seed=request["seed"]))
        assert engine.health()["forward"] != "hf", engine.health()
        return [completion.token_ids for group in groups for completion in group.completions]

    return rollout


ENGINES: dict[str, Callable[[dict[str, Any]], Rollout]] = {"vllm": vllm_engine, "gruppo": gruppo_engine}


def main() -> None:
    rollout = ENGINES[sys.argv[1]](json.loads(sys.argv[2]))
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        start, cpu = time.perf_counter(), time.process_time()
        completions = rollout(request)
        seconds = time.perf_counter() - start
        wanted = len(request["prompts"]) * request["group_size"]
        assert [len(ids) for ids in completions] == [request["max_tokens"]] * wanted, (
            "not the rollout that was asked for"
        )
        answer(
            {
                "seconds": seconds,
                "cpu_seconds": time.process_time() - cpu,
                "tokens": sum(map(len, completions)),
                "peak_mib": peak_mib(),
            }
        )


def answer(result: dict[str, Any]) -> None:
    print("RESULT " + json.dumps(result), flush=True)


def peak_mib() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
