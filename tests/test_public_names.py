"""What `from gruppo import ...` offers, and that it costs nothing until it is used."""

import subprocess
import sys

import pytest

import gruppo

NAMES = ["Completion", "GRPOConfig", "GRPOTrainer", "Group", "Prompt", "load_prompts"]


def test_the_public_names_are_these():
    assert sorted(gruppo.__all__) == NAMES
    for name in NAMES:
        assert getattr(gruppo, name).__name__ == name
        assert name in dir(gruppo)
    assert gruppo.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        _ = gruppo.DPOTrainer


def test_importing_gruppo_and_its_config_imports_no_torch():
    code = (
        "import sys, gruppo; gruppo.GRPOConfig(output_dir='x'); "
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'datasets', 'accelerate'}))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
