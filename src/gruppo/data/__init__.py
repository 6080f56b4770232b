"""What the policy is asked, and when.

    prompts.py   a dataset of any accepted form as `Prompt`s
    checks.py    what a dataset and its prompts must look like
    load.py      datasets from the hub and from local files
    order.py     which prompts at which round, which rows on which rank: pure functions of the seed

Not here: tokens and templates (`gruppo.chat`), and completions (`gruppo.rollout`).
"""
