"""What a calibration learns from: the database, packs that go with it, and what is left out and said."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest
from made_up_device import TARGET, Heard, made_records, put

from nas.calibrate import run_calibration
from nas.errors import UsageError
from nas.gather import gather
from nas.measure.records import MeasurementStore
from nas.progress import Narrator
from nas.store import Store


@pytest.fixture(scope="module")
def records():
    return made_records()


def test_a_pack_of_a_faster_machine_is_left_out(tmp_path, monkeypatch, records):
    def at(sentinel_s, record):
        return replace(record, conditions=json.dumps({"sentinel_s": sentinel_s}))

    pack = [at(1e-4, record) for record in records]
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
    for sentinel_s, count in ((1.05e-4, 16), (1.6e-4, 6)):
        own = [at(sentinel_s, replace(record, latency_s=1.05 * record.latency_s)) for record in records[:6]]
        heard = Heard()
        with closing(Store(put(tmp_path / f"{count}", own))) as store:
            assert len(gather(TARGET, MeasurementStore(store), heard)) == count
        said = [line for line in heard.said if "1.6 times as fast as the database's measurements" in line]
        assert len(said) == (count == 6)


def test_times_that_are_hardly_known_are_not_learned_from(tmp_path, records):
    dull = [replace(record, low_s=0.7 * record.latency_s, high_s=1.3 * record.latency_s) for record in records[:4]]
    heard = Heard()
    with closing(Store(put(tmp_path, [*dull, *records[4:]]))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert {record.thing for record in found} == {record.thing for record in records[4:]}
    assert any(
        "4 of 16 times of npu_40tops are left out: known to no better than 20% either way" in s for s in heard.said
    )


def test_software_does_not_mix(tmp_path, records):
    other = replace(records[0], subject="block:other", runtime_version="2")
    with pytest.raises(UsageError, match=r"16 with made up 1, 1 with made up 2\): they do not mix"):
        run_calibration(TARGET, put(tmp_path, [*records, other]), None, Narrator(quiet=True))


@pytest.mark.parametrize(("version", "used"), [("1", 16), ("2", 16)])
def test_packs_give_way_to_the_database(tmp_path, monkeypatch, records, version, used):
    pack = [replace(record, runtime_version=version, latency_s=2 * record.latency_s) for record in records[:3]]
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
    heard = Heard()
    with closing(Store(put(tmp_path, records))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert len(found) == used
    assert {record.latency_s for record in found} == {record.latency_s for record in records}
    wanted = "more than 10% off the database's" if version == "1" else "the pack made_up is left out"
    assert any(wanted in said for said in heard.said)


def timed_by(record, method):
    return replace(record, conditions=json.dumps({"method": method}))


def test_methods_of_timing_do_not_mix(tmp_path, records):
    mixed = [timed_by(record, "one" if number % 2 else "other") for number, record in enumerate(records)]
    with pytest.raises(UsageError, match=r"were timed in different ways .* which do not mix: .* --replace"):
        run_calibration(TARGET, put(tmp_path, mixed), None, Narrator(quiet=True))


def test_a_pack_timed_otherwise_is_left_out(tmp_path, monkeypatch, records):
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: [timed_by(record, "other") for record in records[8:]])
    heard = Heard()
    with closing(Store(put(tmp_path, [timed_by(record, "one") for record in records[:8]]))) as store:
        assert len(gather(TARGET, MeasurementStore(store), heard)) == 8
    assert any("timed by 'other', the database's of npu_40tops by 'one'" in said for said in heard.said)


def test_times_of_a_slower_machine_are_left_out(tmp_path, records):
    states = [json.dumps({"sentinel_s": 2e-4 if number < 3 else 1e-4}) for number in range(len(records))]
    own = [replace(record, conditions=state) for record, state in zip(records, states, strict=True)]
    heard = Heard()
    with closing(Store(put(tmp_path, own))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert {record.thing for record in found} == {record.thing for record in own[3:]}
    assert any(
        f"3 of {len(own)} measurements of {TARGET} were taken while the machine was slower" in s for s in heard.said
    )


def test_a_pack_of_two_batches_serves_both(tmp_path, monkeypatch, records):
    pack = [replace(record, batch=batch) for record in records for batch in (1, 64)]
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
    heard = Heard()
    with closing(Store(tmp_path, create=True)) as store:
        found = gather(TARGET, MeasurementStore(store), heard, 64)
    assert [record.batch for record in found] == [64] * len(records)
    assert any(f"other batches are left out: {len(records)} at batch 1" in said for said in heard.said)
