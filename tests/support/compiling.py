"""XLA's flags for tests: quick to compile, since their networks are tiny and run for seconds."""

from __future__ import annotations

import importlib.util

# Neither LLVM's optimizations nor the newer emitters for fusions (a train step compiles in half),
# and a program in one piece, not one for each core.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if importlib.util.find_spec("libtpu"):
    QUICK = QUICK[:1]  # the TPU compiler reads the same flags, and aborts at one it does not know


def flags(given: str = "", *, devices: int = 0) -> str:
    """Returns the flags that were given, with those that are missing.

    Args:
        given: Of the environment; what is set there stands.
        devices: That many devices instead of one; 0 = as given.
    """
    wanted = [*QUICK, *([f"--xla_force_host_platform_device_count={devices}"] if devices else [])]
    missing = [flag for flag in wanted if flag.partition("=")[0] not in given]
    return " ".join([*given.split(), *missing])
