"""The monitor's server: answers over HTTP, made from the files of runs. docs/monitor-api.md is its contract.

    folders.py lines.py status.py           which runs there are, whole lines of growing files, how a run is doing
    metric_table.py metric_log.py buckets.py    metrics.jsonl in columns, followed by byte offset, thinned for charts
    parts.py rounds.py                      Parquet parts, and the rounds they make up
    groups.py rollouts.py filters.py completion.py tokens.py prompts.py reward_rows.py    asked about completions
    events.py findings.py checks.py summary.py verdict.py compare.py    asked about a run
    query.py refusal.py                     parameters, and answers that say no
    store.py lru.py routes.py               the caches (all bounded), and the table of routes
    gate.py app.py stream.py serve.py       HTTP: who may ask, Starlette, server-sent events, the process
    attached.py lifetime.py                 the process that a trainer starts, and when that ends

It reads and never writes. It does not import torch, and it is no part of the trainer's process.
"""
