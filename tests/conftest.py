"""What every test runs under: one thread per process, no hub, no display, repeatable property tests."""

from __future__ import annotations

import os

# Before torch or numpy are imported: results must not depend on the number of cores, and two test processes
# with a thread pool each slow each other many times over.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
# A test that reached for a hub would hang where there is no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import settings  # noqa: E402  (the environment comes first)

# A time limit per example would measure the load of the machine; derandomize makes a failure repeat.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repository")
