"""What a measurement pack holds, in which order it is measured, and how it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_pack, packs
from benchmarks.cpu_pack import TIMM, design
from hw_models.measurements import read_measurements
from nas.measure.design import part_pool
from nas.measure.jobs import Job
from nas.subjects import named_subject, part_subject
from search_spaces import load_space

_DESIGNS = (gpu_pack.DESIGN, *map(design, TIMM))


def _folder(path: Path, blocks: int) -> Path:
    """With the choice of an earlier call: some blocks, then two networks."""
    parts = part_pool(load_space("metaformer", "small"), blocks, 0, 10, 3)[:blocks]
    subjects = [*map(part_subject, parts), named_subject("resnet18"), named_subject("lcnet_100")]
    rows = [[s.name, s.kind, s.input_size, s.description] for s in subjects]
    (path / "subjects.json").write_text(json.dumps({"set": "h200/", "subjects": rows}))
    return path


@pytest.mark.parametrize("own", [own for own in _DESIGNS if own.blocks], ids=lambda own: own.target)
def test_no_block_is_of_the_family_of_a_network_to_be_predicted(own: packs.Design) -> None:
    taken = {packs.family(name) for name in own.timm}
    left = [name for name in packs.SOURCES if packs.family(name) not in taken]
    assert len(left) >= 20
    assert len(set(own.timm)) == len(own.timm)


@pytest.mark.parametrize("own", [own for own in _DESIGNS if not own.blocks], ids=lambda own: own.further)
def test_further_networks_are_of_no_family_that_was_seen(own: packs.Design) -> None:
    names = (*packs.SOURCES, *(name for other in _DESIGNS if other != own for name in other.timm))
    assert not {packs.family(name) for name in own.timm} & {packs.family(name) for name in names}
    assert len(set(own.timm)) == 15
    assert packs.blocks(own) == []


def test_networks_of_timm_and_of_the_space_take_turns() -> None:
    own = replace(gpu_pack.DESIGN, timm=gpu_pack.DESIGN.timm[:2], drawn=(("mobile", 1), ("small", 2)))
    found = [subject.name for subject in packs.networks(own)]
    assert [name.startswith("arch:") for name in found] == [False, True, False, True, True]


def test_first_blocks_then_networks_then_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pack, "FIRST", 2)
    jobs = packs.load_jobs(_folder(tmp_path, 3), gpu_pack.DESIGN)
    ordered = gpu_pack.in_order(jobs)
    assert sorted(map(str, ordered)) == sorted(map(str, jobs))
    assert [(job.subject.kind, job.batch) for job in ordered] == [
        (kind, batch) for kind in ("block", "block", "network", "network", "block") for batch in (1, 64)
    ]


def test_a_folder_of_another_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds the set h200/, not h200/second: give --dir a folder of its own"):
        packs.load_jobs(_folder(tmp_path, 1), replace(gpu_pack.DESIGN, further="second"))


def test_a_pack_is_written_in_the_order_of_the_design(tmp_path: Path) -> None:
    jobs = packs.load_jobs(_folder(tmp_path, 3), gpu_pack.DESIGN)
    records = [_measured(job) for job in jobs]
    other = replace(records[0], precision="fp32")  # not of the pack
    kept = packs.TimesFile(tmp_path)
    assert kept.of("h200") == []
    kept.put([replace(records[1], latency_s=9.0), other])
    kept.put(reversed(records))
    assert len(kept.of("h200")) == len(records) + 1  # the one measured again stands once
    packs.export(jobs, gpu_pack.DESIGN, tmp_path, tmp_path / "out")
    blocks = read_measurements(tmp_path / "out" / "h200.csv")
    networks = read_measurements(tmp_path / "out" / "held_out" / "h200_networks.csv")
    assert blocks == [record for record in records if record.kind == "block"]
    assert networks == [record for record in records if record.kind == "network"]

    further = replace(gpu_pack.DESIGN, further="second")
    packs.export([job for job in jobs if job.subject.kind == "network"], further, tmp_path, tmp_path / "more")
    assert read_measurements(tmp_path / "more" / "held_out" / "h200_second_networks.csv") == networks
    assert not (tmp_path / "more" / "h200.csv").exists()


def _measured(job: Job):
    return job.subject.record("h200", job.precision, 1e-3, batch=job.batch)


def test_a_gpu_that_the_pack_is_not_of_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    _folder(tmp_path, 1)
    with pytest.raises(SystemExit, match="this GPU is h100, and the pack is of h200"):
        gpu_pack.main(["--dir", str(tmp_path)])
