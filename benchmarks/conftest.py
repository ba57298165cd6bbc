"""Settings for pytest-benchmark: what it saves about the machine and the rounds.

``pytest benchmarks --benchmark-save NAME`` writes to results/pytest/; ``--benchmark-compare`` reads from there.
"""

import os
import platform

import torch


def pytest_benchmark_update_machine_info(machine_info):
    """Keep what affects timings, and nothing that identifies a machine."""
    machine_info.clear()
    machine_info |= {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def pytest_benchmark_update_json(output_json):
    """Drop the times of single rounds, which take megabytes."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
