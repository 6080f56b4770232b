"""The built-in demo: a tiny policy, a task it can learn on a CPU, and the run that shows GRPO at work.

    task.py         the questions, the right answers, the reward
    tokenizer.py    one token per byte, and a chat template
    make_policy.py  makes `policy/`: a tiny model that was taught a good habit and a bad one
    exam.py         held-out accuracy of a policy
    run.py          `make demo`: exam, GRPO, exam again
    plot.py         the reward curve as a picture

Nothing else in gruppo imports this folder, and it uses only gruppo's public names.
"""
