"""Health: 26 checks (D01-D26) that read a run's records and say in plain words what looks wrong, and where to look.

    record.py, rows.py, window.py      what a check may look at: step values, completions, the last 120 steps
    groups.py ... timing.py            the checks: pure functions, each beside its thresholds and its prose
    table.py                           DETECTORS: id -> check
    state.py                           from one check's word per step to findings: hysteresis, one alarm per onset
    live.py, audit.py                  the same fold, fed by the trainer or by the files of a run

These are statistical hints, not proof: every finding names the rows to open. Nothing here writes a file, needs torch,
or may be used as a reward (a policy that is paid for silence of its monitor learns to be silent, arXiv 2503.11926).
"""
