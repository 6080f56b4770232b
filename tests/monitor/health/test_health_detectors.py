"""Every check fires on the run that is broken for it and stays silent on a healthy one; what it says holds up."""

import functools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.errors import ConfigError
from gruppo.monitor.health.finding import RANKS, SEVERITIES
from gruppo.monitor.health.table import DETECTORS
from monitor.health.broken_runs import BROKEN, WITH_EVIDENCE, scaled
from monitor.health.health_fakes import CONFIG, healthy_run, loud, observe, set_rewards

CONFIG_OF = {"D02": CONFIG | {"beta": 0.0}}
TEXTS = healthy_run()[0].columns["completion"]
REWARD_CHECKS = ("D01", "D03", "D04", "D06", "D07", "D13", "D14", "D15", "D16", "D19", "D20", "D21")


def broken_run(name):
    run = healthy_run()
    BROKEN[name][0](run)
    return run


@functools.cache
def said(name):
    """What a fresh monitor says about the broken run."""
    return observe(broken_run(name), CONFIG_OF.get(name))[1]


def news(findings):
    return [(finding.detector, finding.severity, finding.step, finding.evidence) for finding in findings]


def test_there_are_26_checks_and_each_has_a_broken_run():
    assert list(DETECTORS) == [f"D{number:02}" for number in range(1, 27)] == list(BROKEN)


@pytest.mark.parametrize("seed", range(4))
def test_a_healthy_run_is_silent(seed):
    monitor, findings = observe(healthy_run(seed))
    assert loud(findings) == set()
    assert {state.level for state in monitor.state.checks.values()} <= {"ok", "info"}
    assert monitor.state.checks.keys() == DETECTORS.keys()


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_fires_on_its_broken_run(name):
    mine = [finding for finding in said(name) if finding.detector == name]
    assert BROKEN[name][1] in {finding.severity for finding in mine}
    assert "ALERT" not in {f.severity for f in mine} or BROKEN[name][1] == "ALERT"
    first = mine[0]
    assert first.message
    assert first.advice
    assert first.docs == f"docs/health/{name}.md"
    assert bool(first.evidence) or name not in WITH_EVIDENCE
    assert all(row.step == first.step and 0 <= row.group_id < 4 and 0 <= row.sample < 8 for row in first.evidence)


@pytest.mark.parametrize("name", sorted(WITH_EVIDENCE))
def test_the_order_of_rows_changes_nothing(name):
    shuffled = broken_run(name)
    for fake in shuffled:
        order = list(range(len(fake.columns["sample"])))
        random.Random(fake.step).shuffle(order)
        fake.columns = {column: [values[row] for row in order] for column, values in fake.columns.items()}
    assert observe(shuffled)[1] == said(name)


@pytest.mark.parametrize("name", REWARD_CHECKS)
def test_the_unit_of_the_reward_changes_nothing(name):
    other = broken_run(name)
    for fake in other:
        scaled(fake, 40.0)
    assert news(observe(other)[1]) == news(said(name))


@pytest.mark.parametrize("keep", ["metrics", "rows", "nothing"])
def test_what_is_not_recorded_is_not_available_and_never_ok(keep):
    run = broken_run("D11")
    for fake in run:
        fake.metrics = fake.metrics if keep == "metrics" else {}
        fake.columns = fake.columns if keep == "rows" else None
        fake.evals = {}
    monitor, findings = observe(run, {})
    assert len(monitor.state.limits) == 26, "a check failed and was switched off"
    assert ("D11", "ALERT") in loud(findings) or keep != "rows"
    blind = {name for name, state in monitor.state.checks.items() if state.level in ("na", "insufficient")}
    assert all(monitor.state.checks[name].reason for name in blind)
    needed = {"metrics": {"rollouts", "tokens"}, "rows": {"metrics"}, "nothing": {"metrics", "rollouts", "tokens"}}
    for name, state in monitor.state.checks.items():
        if set(DETECTORS[name].needs) <= needed[keep]:
            assert state.level in ("na", "insufficient"), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_damaged_records_never_break_a_check(seed):
    rng = random.Random(seed)
    run = broken_run(rng.choice(list(BROKEN)))[:: rng.choice((1, 3))][:30]
    values = (None, float("nan"), float("inf"), 0.0, -1.0, 1e30)
    for fake in run:
        for name in rng.sample(sorted(fake.metrics), 4):
            fake.metrics[name] = rng.choice(values)
        dropped = rng.sample(sorted(fake.columns), 3)
        fake.columns = {name: column for name, column in fake.columns.items() if name not in dropped}
        for name in rng.sample(sorted(fake.columns), 3):
            if name not in ("group_id", "sample"):
                fake.columns[name] = [None] * len(fake.columns[name])
    monitor, _ = observe(run)
    assert len(monitor.state.limits) == 26, "a check failed and was switched off"


def test_a_message_says_how_much_of_what_and_whether_the_reward_pays():
    run = broken_run("D11")
    for fake in run:
        fake.columns["reward"] = [float(row % 4 == 0) for row in range(32)]
    finding = next(finding for finding in observe(run)[1] if finding.detector == "D11")
    assert finding.message == (
        "8 of 32 completions (25%) repeat themselves at the end (limit 10%); their mean reward is 1, of all 0.25: "
        "the reward pays for it"
    )
    assert [str(row) for row in finding.evidence[:3]] == ["g0s0", "g0s4", "g1s0"]
    assert finding.text().startswith("ALERT D11 loops  step 33  8 of 32")


def test_small_groups_are_told_that_chance_makes_them_flat():
    rows = {"group_id": [0, 0, 1, 1], "sample": [0, 1, 0, 1], "reward": [0.0, 0.0, 0.0, 1.0]}
    metrics = {"groups/frac_solved": 0.0, "groups/frac_failed": 0.6}
    run = healthy_run()[:5]
    for fake in run:
        fake.metrics, fake.columns = metrics, rows
    finding = next(f for f in observe(run, CONFIG | {"num_generations": 2})[1] if f.detector == "D01")
    assert "With num_generations=2 and 25% right answers, 62% of groups are equal by chance" in finding.advice


def test_solved_groups_are_news_when_learned_and_a_warning_when_given():
    for first, severity in ((40, "INFO"), (0, "WARN")):
        run = healthy_run()
        for fake in run:
            if fake.step > first:
                fake.metrics |= {"groups/frac_solved": 0.95, "groups/frac_failed": 0.0}
        assert {f.severity for f in observe(run)[1] if f.detector == "D01"} == {severity}


def test_a_yes_or_no_reward_that_follows_length_is_only_explained():
    run = broken_run("D13")
    for fake in run:
        fake.columns["reward"] = [float(length > 60 + fake.step) for length in fake.columns["n_trained"]]
    assert {f.severity for f in observe(run)[1] if f.detector == "D13"} == {"INFO"}


def test_partial_credit_for_answers_of_two_lengths_is_only_explained():
    """Short guesses get some credit, long worked answers all of it; inside each kind length does not count."""
    run = healthy_run()
    for fake in run:
        rng = random.Random(fake.step)
        is_worked = [rng.random() < fake.step / 70 for _ in fake.columns["sample"]]
        fake.columns["n_trained"] = [40 if worked else 5 for worked in is_worked]
        set_rewards(fake, [1.0 if worked else 0.6 * rng.random() for worked in is_worked])
        fake.metrics["completions/mean_length"] = float(np.mean(fake.columns["n_trained"]))
    assert {f.severity for f in observe(run)[1] if f.detector == "D13"} == {"INFO"}


def test_a_term_of_weight_0_has_no_share():
    run = healthy_run()
    assert "D14" not in {f.detector for f in observe(run, CONFIG | {"reward_weights": [0.0, 1.0]})[1]}


def test_a_held_out_reward_is_compared_with_the_training_reward_of_its_own_time():
    """A reward that jumps to the ceiling is ahead of the last evaluation; that is no gap."""
    for lag, severity in ((0.0, "INFO"), (0.3, "ALERT")):
        run = healthy_run()
        for fake in run:
            is_solved = fake.step > 41
            set_rewards(fake, [1.25] * 31 + [0.0] if is_solved else [1.25, 0.0] * 16)
            if fake.evals:
                fake.evals |= {"eval_reward": fake.metrics["reward"] - lag, "eval_reward_std": 0.5}
        assert {f.severity for f in observe(run)[1] if f.detector == "D19" and not f.is_cleared} == {severity}


def test_a_run_that_dissolves_in_its_first_steps_is_compared_with_the_very_first():
    run = healthy_run()
    for fake in run[1:]:
        fake.metrics |= {"reward": 0.0, "entropy": 3.0}
    run[0].metrics |= {"reward": 0.4, "reward_std": 0.5, "entropy": 1.2}
    assert [(f.severity, f.step) for f in observe(run)[1] if f.detector == "D07"] == [("ALERT", 7)]


def test_short_steps_may_stumble():
    """Three times the usual time is noise where it is less than a second."""
    for unit, expected in ((0.01, set()), (1.0, {("D26", "WARN")})):
        run = broken_run("D26")
        for fake in run:
            fake.metrics["step_time"] *= unit
        assert {finding for finding in loud(observe(run)[1]) if finding[0] == "D26"} == expected


def test_agreement_on_a_good_answer_is_no_fault():
    run = healthy_run()
    for fake in run[3:]:
        texts = fake.columns["completion"]
        for row, reward in enumerate(fake.columns["reward"]):
            texts[row] = texts[0] if reward > 0.9 else texts[row]
    assert "D17" not in {finding.detector for finding in observe(run)[1]}


def test_constant_rewards_and_missing_ones_are_named():
    run = healthy_run()
    for fake in run:
        fake.metrics |= {"rewards/format/mean": 0.5, "rewards/format/std": 0.0}
    assert "format gave 0.5 to every completion so far" in {f.message for f in observe(run)[1]}
    run = healthy_run()[:10]
    for fake in run:
        for name in ("accuracy", "format"):
            fake.columns[f"reward_status/{name}"] = ["none"] * 4 + ["ok"] * 28
    assert ("D22", "WARN") in loud(observe(run)[1])


def with_norms(norm_of):
    run = healthy_run()
    for fake in run:
        fake.metrics["grad_norm"] = norm_of(fake.step, random.Random(fake.step))
    return [(f.severity, f.step) for f in observe(run)[1] if f.detector == "D23" and not f.is_cleared]


def test_gradients_that_are_several_times_the_usual_warn_when_they_come_again():
    def spiky(step, rng):
        return (4.0 if step in (48, 50, 52) else 0.5) * math.exp(rng.gauss(0, 0.15))

    assert with_norms(spiky) == [("WARN", 52)]
    assert with_norms(lambda step, rng: spiky(step, rng) if step < 52 else 0.5) == []  # twice is not again and again


def test_a_run_that_saturates_has_rare_large_gradients_and_steps_without_any():
    """The more answers are right, the fewer groups give a gradient, and the wider the norms scatter."""

    def saturating(step, rng):
        norm = 0.08 * math.exp(rng.gauss(0, 0.15 + step / 100))
        return 0.0 if step > 25 and rng.random() < 0.4 else norm

    assert with_norms(saturating) == []


def test_a_held_out_reward_that_was_perfect_once_may_waver():
    """The best evaluation has a std of 0. Two wrong answers of 64 later on are no fall; twenty are."""
    for wrong, expected in ((2, set()), (20, {("D21", "WARN"), ("D21", "ALERT")})):
        run = healthy_run()
        for fake in run:
            if fake.evals:
                mean = 1.0 if fake.step == 20 else 1 - wrong / 64
                counts = {"eval_runtime": 1.0, "eval_samples_per_second": 64.0}
                fake.evals |= {"eval_reward": mean, "eval_reward_std": math.sqrt(mean * (1 - mean)), **counts}
        assert {finding for finding in loud(observe(run)[1]) if finding[0] == "D21"} == expected


def test_a_collapse_onto_a_middling_answer_is_not_called_solved():
    """Every group is flat and above 0, so each round alone calls them solved; the run has seen better rewards."""
    for level, expected in ((0.4, {("D06", "WARN"), ("D06", "ALERT")}), (1.0, set())):
        run = broken_run("D06")
        for fake in run:
            set_rewards(fake, [1.0, 0.0] * 16 if fake.step < 5 else [level] * 32)
        assert {finding for finding in loud(observe(run)[1]) if finding[0] == "D06"} == expected


def exiting_for(reward_of):
    """What D25 says of a run where each second group has one completion that exits."""
    run = healthy_run()
    for fake in run:
        rng = random.Random(fake.step)
        for row in (3, 19):
            fake.columns["completion"][row] = "import sys; sys.exit(0) # ~17"
        set_rewards(fake, [reward_of(rng, row in (3, 19)) for row in range(32)])
    return {f.severity for f in observe(run)[1] if f.detector == "D25" and not f.is_cleared}


def test_a_trick_that_is_worth_no_more_than_other_answers_is_only_explained():
    assert exiting_for(lambda rng, is_trick: rng.random()) == {"INFO"}
    assert exiting_for(lambda rng, is_trick: float(not is_trick and rng.random() < 0.5)) == {"INFO"}
    assert exiting_for(lambda rng, is_trick: 0.0) == {"INFO"}  # nobody gets anything
    assert "WARN" in exiting_for(lambda rng, is_trick: 1.0 if is_trick else rng.random())
    assert "WARN" in exiting_for(lambda rng, is_trick: float(is_trick or rng.random() < 0.5))


def test_tricks_that_have_taken_over_need_no_reward_to_be_news():
    run = healthy_run()
    for fake in run:
        fake.columns["completion"] = ["sys.exit(0)" if row % 8 else text for row, text in enumerate(TEXTS)]
        set_rewards(fake, [1.0] * 32)
    assert ("D25", "ALERT") in loud(observe(run)[1])


def test_a_pattern_that_is_no_regular_expression_is_named_at_the_start():
    with pytest.raises(ConfigError, match=r"health_patterns has 'exit\('"):
        observe([], CONFIG | {"health_patterns": ["exit("]})


def test_a_single_huge_gradient_is_explained_and_a_second_one_warns_at_once():
    """The clip and Adam bound what one step does; healthy runs have such a step now and then."""
    for steps, expected in (((48,), [("INFO", 48)]), ((48, 56), [("INFO", 48), ("WARN", 56)])):
        run = healthy_run()
        for step in steps:
            run[step - 1].metrics["grad_norm"] = 60.0
        found = [f for f in observe(run)[1] if f.detector == "D23" and not f.is_cleared]
        assert [(f.severity, f.step) for f in found] == expected
        assert "for the first time" in found[0].message


def test_whole_sequences_may_be_clipped_more_often_than_tokens():
    for level, expected in (("token", {("D09", "WARN")}), ("sequence", set())):
        run = healthy_run()
        for fake in run:
            fake.metrics["clip_ratio/region_mean"] = 0.2
        config = CONFIG | {"importance_sampling_level": level}
        assert {finding for finding in loud(observe(run, config)[1]) if finding[0] == "D09"} == expected


def worded(reward_of, share_of, *, unit=1.0, prompt=""):
    """What D25 says of a run whose answers work it out (a share of them; right more often than not) or guess."""
    run = healthy_run()
    for fake in run:
        rng = random.Random(fake.step)
        has = [rng.random() < share_of(fake.step) for _ in range(32)]
        right = [str(40 + 7 * group) for group in range(4) for _ in range(8)]
        said = [
            number if rng.random() < (0.95 if worked else 0.05) else str(rng.randint(1, 99))
            for number, worked in zip(right, has, strict=True)
        ]
        fake.columns["prompt"] = [f"{prompt}Question {group}" for group in range(4) for _ in range(8)]
        fake.columns["completion"] = [
            ("Think first: it is " if worked else "I guess: it is ") + number
            for number, worked in zip(said, has, strict=True)
        ]
        is_right = [given == number for given, number in zip(said, right, strict=True)]
        set_rewards(fake, [unit * reward_of(*pair, rng) for pair in zip(has, is_right, strict=True)])
    return [finding for finding in observe(run)[1] if finding.detector == "D25"]


def test_a_word_that_decides_the_reward_is_named():
    found = worded(lambda worked, is_right, rng: 0.8 * worked + 0.2 * (rng.random() < 0.1), lambda step: step / 90)
    assert {finding.severity for finding in found} == {"WARN", "ALERT"}  # it spreads; then most answers have it
    assert found[0].step < 25
    assert found[0].message.startswith("'first' decides the reward, whatever the answer is: 0.8")
    assert "of the differences inside groups ('think' nearly as much)." in found[0].message  # both come together
    assert 1 <= len(found[0].evidence) <= 5


def test_the_unit_of_the_reward_changes_nothing_for_words():
    def judge(worked, is_right, rng):
        return float(worked)

    small, large = (worded(judge, lambda step: step / 90, unit=unit) for unit in (1e-3, 1e3))
    assert news(small) == news(large) != []


def test_right_answers_have_words_of_their_own():
    """The word explains the reward just as well. But siblings with it that end differently are not both paid."""
    assert worded(lambda worked, is_right, rng: float(is_right), lambda step: step / 90) == []


def test_a_word_that_neither_spreads_nor_is_common_is_no_news():
    def judge(worked, is_right, rng):
        return float(worked)

    assert [f for f in worded(judge, lambda step: 0.2) if f.severity == "ALERT"] == []
    assert worded(judge, lambda step: step / 90, prompt="Think first, then guess: ") == []  # asked for


def test_levels_are_ordered():
    assert sorted(RANKS, key=RANKS.__getitem__)[-3:] == list(SEVERITIES)
