"""GRPO's mathematics as functions of tensors: advantages, ratios, masks, KL, losses, reducers, entropy control.

Read in the order of a step:

    advantages.py   rewards of a generation round  ->  one advantage per completion
    masks.py        which tokens and rows take part
    ratios.py       how far the policy has moved (policy / old), and sampler / trainer mismatch (old / sampler)
    kl.py           distance to the reference
    reduce.py       counts of tokens  ->  the weight of each row, known before the first forward
    losses.py       THE table of losses, and `policy_loss`, which turns one forward into a scalar and row sums
    entropy.py      the adaptive entropy coefficient

Every loss here is  sum over rows of  weight * sum over trained tokens of (token loss).  So rows may be cut into
forwards in any way and the gradient stays the same.

Nothing here knows about ranks, devices, models, files or logging. Shape suffixes: the legend in `gruppo.types`.
"""
