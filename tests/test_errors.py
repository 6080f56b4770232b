"""The family of errors, and the boundary where foreign ones are named."""

import pytest

from gruppo import errors
from gruppo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GruppoError,
    ModelError,
    PlanError,
    RewardError,
    RolloutError,
    boundary,
)


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (ConfigError, ValueError),
        (PlanError, ConfigError),
        (DataError, ValueError),
        (ModelError, ValueError),
        (RewardError, ValueError),
        (RolloutError, RuntimeError),
        (CheckpointError, RuntimeError),
    ],
)
def test_each_is_also_a_standard_error(kind, standard):
    assert issubclass(kind, GruppoError)
    assert issubclass(kind, standard)


def test_the_tree_of_the_docstring_is_complete():
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, GruppoError)]
    assert len(kinds) == 8
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)


def test_one_problem_reads_as_a_sentence_and_several_as_a_list():
    assert str(ConfigError("a is wrong.")) == "a is wrong."
    error = ConfigError(["a is wrong.", "b too."])
    assert error.problems == ["a is wrong.", "b too."]
    assert str(error) == "2 problems:\n  1. a is wrong.\n  2. b too."


def test_a_boundary_names_what_was_done_and_keeps_the_cause():
    with (
        pytest.raises(DataError, match=r"^reading x failed: KeyError: 'y'$") as caught,
        boundary(DataError, "reading x"),
    ):
        raise KeyError("y")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_boundary_lets_our_own_errors_and_interrupts_pass():
    with pytest.raises(RewardError, match=r"^mine$"), boundary(DataError, "reading x"):
        raise RewardError("mine")
    with pytest.raises(KeyboardInterrupt), boundary(DataError, "reading x"):
        raise KeyboardInterrupt
    with boundary(DataError, "reading x"):
        pass
