"""`gruppo doctor`: what is installed, what this machine can do, and what clashes. Exit code 1 if something does.

Nothing is contacted and nothing is written: of the hub only the settings are told.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from packaging.requirements import Requirement
from packaging.version import Version

OK, HAS_PROBLEM = 0, 1

DEVELOPERS = "dev"
"""The extra that users do not need. It pins the TRL that gruppo is compared with."""

LITTLE_DISK = 2 * 2**30
"""Bytes; one checkpoint of a small model with its optimizer."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that gruppo asks for."""

    name: str
    wanted: str
    """Version specifier, as ">=2.10"."""
    extra: str
    """Empty for what gruppo cannot do without."""
    version: str | None
    """None if it is not installed."""

    @property
    def fits(self) -> bool:
        """Is it installed, in a version that will do?"""
        return self.version is not None and Requirement(self.name + self.wanted).specifier.contains(
            self.version, prereleases=True
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that a run would use, and what there is of everything else."""

    python: str
    system: str
    device: Literal["cuda", "mps", "cpu"]
    device_name: str
    num_devices: int
    device_memory: int | None
    """Bytes in all on the first device; None on a CPU."""
    bf16: Literal["yes", "emulated", "unknown"]
    torch_build: str
    """What this torch was built for: "CUDA 13.0", "ROCm 7.0" or "CPU"."""
    has_nvidia_driver: bool
    num_cores: int
    """Cores that this process may use."""
    num_threads: int
    """Threads that torch uses for one operation."""
    free_memory: int | None
    """Bytes; None if the system does not tell."""
    free_disk: int
    """Bytes, in the working directory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem breaks runs or wastes the machine; a note is worth knowing."""

    level: Literal["problem", "note"]
    text: str


@dataclass(slots=True)
class Diagnosis:
    """Everything that `gruppo doctor` says."""

    gruppo: str
    machine: Machine
    packages: list[Package]
    trl: str | None
    trl_compared: str
    """The version of TRL that gruppo's tests compare with."""
    hub: dict[str, str]
    findings: list[Finding] = field(default_factory=list)

    @property
    def has_problem(self) -> bool:
        return any(finding.level == "problem" for finding in self.findings)


def run(argv: list[str]) -> int:
    """Examine this machine. Returns the exit code."""
    return tyro.cli(doctor, args=argv, prog="gruppo doctor")


def doctor(
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")] = False,
) -> int:
    """Say what is installed, what this machine can do, and what clashes. Contacts nothing."""
    found = diagnose()
    if as_json:
        data = {**asdict(found), "has_problem": found.has_problem}
        data["packages"] = [{**asdict(package), "fits": package.fits} for package in found.packages]
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print("\n".join(describe(found)))
    return HAS_PROBLEM if found.has_problem else OK


def diagnose() -> Diagnosis:
    """Look at everything, and judge it."""
    packages, trl_compared = wanted_packages(importlib.metadata.requires("gruppo") or [])
    found = Diagnosis(
        gruppo=importlib.metadata.version("gruppo"),
        machine=look_at_machine(),
        packages=packages,
        trl=installed_version("trl"),
        trl_compared=trl_compared,
        hub=hub_settings(os.environ),
    )
    found.findings = [*package_findings(found), *machine_findings(found.machine)]
    return found


def wanted_packages(requirements: list[str]) -> tuple[list[Package], str]:
    """The packages of gruppo's own metadata, developers' tools left out; and the version of TRL it is compared with."""
    packages, trl_compared = [], ""
    for requirement in map(Requirement, requirements):
        extra = str(requirement.marker).rpartition("extra == ")[2].strip("\"'") if requirement.marker else ""
        if extra != DEVELOPERS:
            version = installed_version(requirement.name)
            packages.append(Package(requirement.name, str(requirement.specifier), extra, version))
        elif requirement.name == "trl":
            trl_compared = str(requirement.specifier).removeprefix("==")
    return packages, trl_compared


def installed_version(name: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def hub_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Where models and datasets would come from. Tokens are not looked at."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return {
        "mode": "offline: only what is in the cache" if offline else "online (not contacted now)",
        "endpoint": environment.get("HF_ENDPOINT", "https://huggingface.co"),
        "cache": environment.get("HF_HUB_CACHE")
        or str(Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"),
    }


def look_at_machine() -> Machine:
    """What torch and the system say."""
    import torch

    device: Literal["cuda", "mps", "cpu"] = "cpu"
    name, number, memory = platform.processor() or platform.machine(), 1, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device, name, number, memory = "cuda", properties.name, torch.cuda.device_count(), properties.total_memory
    elif torch.backends.mps.is_available():
        device, name = "mps", "Apple GPU"
    cuda, hip = torch.version.cuda, torch.version.hip
    return Machine(
        python=platform.python_version(),
        system=platform.platform(),
        device=device,
        device_name=name,
        num_devices=number,
        device_memory=memory,
        bf16=_bf16(device),
        torch_build=f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else "CPU",
        has_nvidia_driver=Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
        num_cores=_num_cores(),
        num_threads=torch.get_num_threads(),
        free_memory=_free_memory(),
        free_disk=shutil.disk_usage(".").free,
    )


def _bf16(device: str) -> Literal["yes", "emulated", "unknown"]:
    import torch

    if device == "cuda":
        return "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated"
    flags = Path("/proc/cpuinfo")
    if device == "mps" or not flags.exists():
        return "unknown"
    words = flags.read_text(errors="replace").split()
    return "yes" if {"avx512_bf16", "amx_bf16", "bf16"} & set(words) else "emulated"


def _num_cores() -> int:
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return cores


def _free_memory() -> int | None:
    known = Path("/proc/meminfo")
    if not known.exists():
        return None
    lines = dict(line.split(":", 1) for line in known.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def package_findings(found: Diagnosis) -> list[Finding]:
    """What is missing, too old, or not the version that gruppo is compared with."""
    findings = []
    for package in found.packages:
        if package.fits or (package.extra and package.version is None):
            continue
        has = "is not installed" if package.version is None else f"is {package.version}"
        text = f"{package.name} {has}; gruppo needs {package.wanted}. Run: pip install '{package.name}{package.wanted}'"
        findings.append(Finding("problem", text))
    if found.trl is not None and found.trl_compared and Version(found.trl) != Version(found.trl_compared):
        age = "older" if Version(found.trl) < Version(found.trl_compared) else "newer"
        text = f"trl {found.trl} is {age} than {found.trl_compared}, which gruppo is compared with: names and defaults"
        findings.append(Finding("note", f"{text} of its GRPOConfig may differ. gruppo itself does not use trl."))
    return findings


def machine_findings(machine: Machine) -> list[Finding]:
    """What keeps a run from using this machine well."""
    findings = []
    if machine.has_nvidia_driver and machine.device == "cpu":
        reason = (
            f"torch is a {machine.torch_build} build; install one for CUDA (https://pytorch.org/get-started/locally/)"
            if not machine.torch_build.startswith("CUDA")
            else f"torch ({machine.torch_build}) cannot use it: the driver may be too old, or "
            "CUDA_VISIBLE_DEVICES hides the device"
        )
        findings.append(Finding("problem", f"There is an NVIDIA driver, but {reason}. Training would run on the CPU."))
    if machine.num_threads > machine.num_cores:
        text = f"torch uses {machine.num_threads} threads on {machine.num_cores} cores, which is slow"
        findings.append(Finding("problem", f"{text}. Set OMP_NUM_THREADS={machine.num_cores}."))
    if machine.bf16 == "emulated":
        text = f"bfloat16 is emulated on this {machine.device} and slow"
        findings.append(Finding("note", f"{text}. Set bf16=False, and dtype='float32' if memory allows."))
    if machine.free_disk < LITTLE_DISK:
        text = f"Only {_gigabytes(machine.free_disk)} of disk are free here"
        findings.append(Finding("problem", f"{text}; a checkpoint may not fit. Set output_dir to another disk."))
    return findings


def describe(found: Diagnosis) -> list[str]:
    """The diagnosis as lines of text."""
    machine = found.machine
    memory = "" if machine.device_memory is None else f", {_gigabytes(machine.device_memory)}"
    count = "" if machine.num_devices == 1 else f"{machine.num_devices} x "
    free = "unknown" if machine.free_memory is None else _gigabytes(machine.free_memory)
    lines = {
        "gruppo": found.gruppo,
        "python": f"{machine.python} on {machine.system}",
        "device": f"{machine.device}: {count}{machine.device_name}{memory}; torch build: {machine.torch_build}",
        "bf16": machine.bf16,
        "threads": f"{machine.num_threads} on {machine.num_cores} cores",
        "free": f"memory {free}, disk {_gigabytes(machine.free_disk)}",
        "hub": f"{found.hub['mode']}; {found.hub['endpoint']}; cache {found.hub['cache']}",
        "packages": ", ".join(f"{p.name} {p.version}" for p in found.packages if not p.extra),
        "trl": f"{found.trl or 'not installed (not needed)'}; compared with {found.trl_compared}",
    }
    for extra in dict.fromkeys(package.extra for package in found.packages if package.extra):
        lines[f"[{extra}]"] = _describe_extra(extra, [package for package in found.packages if package.extra == extra])
    said = [f"{label:<12}{text}" for label, text in lines.items()]
    return [*said, *(f"{finding.level:<12}{finding.text}" for finding in found.findings)] + (
        [] if found.findings else ["result      nothing clashes"]
    )


def _describe_extra(extra: str, packages: list[Package]) -> str:
    parts = [f"{package.name} {package.version or 'missing'}" for package in packages]
    hint = "" if all(package.version for package in packages) else f"; pip install 'gruppo[{extra}]'"
    return ", ".join(parts) + hint


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
