"""`gruppo doctor`: what it says of made-up machines and packages, and that it runs on this one."""

import dataclasses
import json

import pytest

from gruppo.cli import doctor
from gruppo.cli.doctor import Diagnosis, Machine, Package
from gruppo.cli.main import main

GOOD = Machine(
    python="3.12.1",
    system="Linux",
    device="cuda",
    device_name="H200",
    num_devices=2,
    device_memory=80 * 2**30,
    bf16="yes",
    torch_build="CUDA 13.0",
    has_nvidia_driver=True,
    num_cores=8,
    num_threads=8,
    free_memory=None,
    free_disk=100 * 2**30,
)


def diagnosis(packages: list[Package], trl: str | None = None) -> Diagnosis:
    return Diagnosis("0.1.0", GOOD, packages, trl, "1.16.0", doctor.hub_settings({"HF_HOME": "/models"}))


def texts(findings: list[doctor.Finding]) -> list[str]:
    return [f"{finding.level}: {finding.text}" for finding in findings]


def test_it_runs_here_and_its_json_has_the_same_findings(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["has_problem"] else 0)
    assert found["has_problem"] == any(finding["level"] == "problem" for finding in found["findings"])
    torch = next(package for package in found["packages"] if package["name"] == "torch")
    assert (torch["extra"], torch["fits"]) == ("", True)
    assert found["machine"]["num_cores"] >= 1
    assert main(["doctor"]) == code
    assert f"torch {torch['version']}" in capsys.readouterr().out


def test_a_good_machine_has_no_findings() -> None:
    assert doctor.machine_findings(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "beginning"),
    [
        (
            {"device": "cpu", "torch_build": "CPU"},
            "problem: There is an NVIDIA driver, but torch is a CPU build; install one for CUDA",
        ),
        ({"device": "cpu"}, "problem: There is an NVIDIA driver, but torch (CUDA 13.0) cannot use it"),
        ({"num_threads": 64}, "problem: torch uses 64 threads on 8 cores, which is slow. Set OMP_NUM_THREADS=8."),
        ({"bf16": "emulated"}, "note: bfloat16 is emulated on this cuda and slow."),
        ({"free_disk": 2**30}, "problem: Only 1.0 GiB of disk are free here;"),
    ],
)
def test_each_clash_of_the_machine_is_named(changes: dict[str, object], beginning: str) -> None:
    (said,) = texts(doctor.machine_findings(dataclasses.replace(GOOD, **changes)))  # type: ignore[arg-type]
    assert said.startswith(beginning)


def test_a_cpu_without_a_gpu_is_fine() -> None:
    machine = dataclasses.replace(GOOD, device="cpu", torch_build="CPU", has_nvidia_driver=False)
    assert doctor.machine_findings(machine) == []


def test_missing_and_old_packages() -> None:
    packages = [
        Package("torch", ">=2.10", "", "2.9.1"),
        Package("datasets", ">=4.0", "", None),
        Package("numpy", ">=2.0", "", "2.1"),
        Package("peft", ">=0.17", "peft", "0.16"),
        Package("math-verify", ">=0.8", "math", None),
    ]
    found = diagnosis(packages)
    assert texts(doctor.package_findings(found)) == [
        "problem: torch is 2.9.1; gruppo needs >=2.10. Run: pip install 'torch>=2.10'",
        "problem: datasets is not installed; gruppo needs >=4.0. Run: pip install 'datasets>=4.0'",
        "problem: peft is 0.16; gruppo needs >=0.17. Run: pip install 'peft>=0.17'",
    ]
    assert "[math]      math-verify missing; pip install 'gruppo[math]'" in doctor.describe(found)


@pytest.mark.parametrize(("version", "age"), [("1.15.2", "older"), ("1.17.0", "newer")])
def test_another_trl_is_noted(version: str, age: str) -> None:
    (said,) = texts(doctor.package_findings(diagnosis([], version)))
    assert said.startswith(f"note: trl {version} is {age} than 1.16.0")


@pytest.mark.parametrize("version", [None, "1.16.0"])
def test_no_trl_or_the_compared_one_is_fine(version: str | None) -> None:
    assert doctor.package_findings(diagnosis([], version)) == []


def test_packages_are_those_of_the_metadata_without_the_developers_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", {"torch": "2.13.0+cpu"}.get)
    wanted = ["torch>=2.10", "peft>=0.17; extra == 'peft'", "ruff>=1; extra == 'dev'", "trl==1.16.0; extra == 'dev'"]
    packages, trl = doctor.wanted_packages(wanted)
    assert packages == [Package("torch", ">=2.10", "", "2.13.0+cpu"), Package("peft", ">=0.17", "peft", None)]
    assert [package.fits for package in packages] == [True, False]
    assert trl == "1.16.0"


def test_hub_settings_tell_offline_mode_and_the_cache_but_no_token() -> None:
    hub = doctor.hub_settings({"HF_HUB_OFFLINE": "1", "HF_HOME": "/models", "HF_TOKEN": "hf_secret"})
    assert hub["mode"].startswith("offline")
    assert hub["cache"] == "/models/hub"
    assert "hf_secret" not in str(hub)
    assert doctor.hub_settings({})["mode"].startswith("online (not contacted")


def test_the_text_names_devices_and_the_hub() -> None:
    lines = doctor.describe(diagnosis([]))
    assert "device      cuda: 2 x H200, 80.0 GiB; torch build: CUDA 13.0" in lines
    assert "free        memory unknown, disk 100.0 GiB" in lines
    assert lines[-1] == "result      nothing clashes"
