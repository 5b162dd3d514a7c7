"""Blocks of a small space as jobs of measuring, in fp32 and w8a8."""

from __future__ import annotations

from nas.measure.design import part_pool
from nas.measure.jobs import Job
from nas.subjects import part_subject
from search_spaces import load_space

SPACE = load_space("metaformer", "small").restrict({"resolution": [24]})


def block_jobs(count: int) -> list[Job]:
    """Of `count` blocks, two each."""
    parts = [part for part in part_pool(SPACE, 12, 0, 10, 3) if part.spec[0] == "MetaFormerBlock"]
    return [Job(part_subject(part), precision) for part in parts[:count] for precision in ("fp32", "w8a8")]
