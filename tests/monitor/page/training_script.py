"""Run by test_page_training.py, which looks at the page meanwhile and then ends it. Not a test by itself."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import TrainerCallback

from fakes import DATA, trainer

FIELDS = {
    "max_steps": 100_000,  # it is ended from outside
    "learning_rate": 1e-4,  # slow: groups must stay mixed while somebody looks
    "beta": 0.05,
    "num_iterations": 2,  # the second pass has ratios other than 1
    "eval_strategy": "steps",
    "eval_steps": 10,
}


class Pace(TrainerCallback):
    """Leaves the processor to the browser."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.15)


trainer(Path(sys.argv[1]), FIELDS, eval_dataset=DATA[:2], callbacks=[Pace()]).train()
