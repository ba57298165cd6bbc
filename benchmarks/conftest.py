"""What pytest-benchmark keeps: ``pytest benchmarks --benchmark-save NAME`` writes results/pytest/, to compare with by
``pytest benchmarks --benchmark-compare``."""

import os
import platform

import torch


def pytest_benchmark_update_machine_info(machine_info):
    """What decides a time, and nothing that names one machine."""
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
    """Without the single rounds, which are megabytes."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
