"""Run by test_recorder_ranks.py on two ranks, which hold one group each. Not a test by itself."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))

from gruppo.distributed.world import World
from gruppo.monitor.completions_table import CompletionsTable
from monitor import monitor_fakes as fakes


def main(out_dir: Path) -> None:
    world = World(Accelerator(cpu=True))
    run = out_dir / "run"
    recorder = fakes.make_recorder(run, world=world, completions=CompletionsTable(num_to_print=0))
    mine = range(2 * world.rank, 2 * world.rank + 2)
    groups = fakes.two_groups()[world.rank : world.rank + 1]
    tables = (fakes.rewards(note=["a", "b", "c", "d"]), fakes.advantages())
    recorder.record_rollouts(1, "train", groups, *tables, policy_version=0, rows=mine)
    recorder.record_step(1, {"rank": world.rank})
    recorder.record_event("reward_fault", rank=world.rank)
    recorder.log_completions(1)
    recorder.close()
    world.barrier()
    result = {"run_id": recorder.attempt.run_id, "failed": recorder.num_failed_writes}
    (out_dir / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
