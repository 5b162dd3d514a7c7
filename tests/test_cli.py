"""The command line: what is printed where, and the exit status of everything that can go wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import tomllib
import urllib.request
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from small_study import small_spec, small_toml

import cli
from nas.search import run_search
from search_spaces.metaformer import SPACES, Builder, load_space

ROOT = Path(__file__).resolve().parent.parent
NETWORK_FIELDS = {
    "trial", "architecture", "top1", "top1_stderr", "top1_samples", "top1_kind", "latency_s", "energy_j",
    "peak_onchip_bytes", "weight_bytes", "macs",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("cli")
    run_search(small_spec(), made, config="small")
    return made


@pytest.fixture
def nas(monkeypatch, capfd):
    """Runs a command line; gives (exit status, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_a_front_of_a_target_that_was_edited_since_says_so(nas, tmp_path):
    mine = tmp_path / "my_npu.toml"
    mine.write_text('like = "npu_40tops"')
    run_search(small_spec(search_targets=[str(mine)], search_trials=2), tmp_path)
    status, before, said = nas("pareto", "--dir", tmp_path, "--json")
    assert status == 0
    assert said.endswith(", the one searched last\n")
    mine.write_text('like = "hailo8"')
    status, after, said = nas("pareto", "--dir", tmp_path, "--json")
    assert (status, after) == (0, before)
    assert "my_npu as it was" in said


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cli\n"
        "try: cli.cli(['--help'])\n"
        "finally: print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Commands:" in done.stdout
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"torch", "timm", "optuna", "ray", "onnx", "onnxruntime", "matplotlib", "numpy", "sqlalchemy"}


def test_search_prints_the_front_and_what_to_type_next(nas, folder, tmp_path):
    config = small_toml(tmp_path)
    status, out, err = nas("search", "--config", config, "--dir", folder)
    assert status == 0
    assert "top-1 %" in out
    assert "uncalibrated: as the cost model predicts it, not measured" in out
    assert f"nas export --dir {folder} --study " in out
    assert "continuing: 6 of 6 trials are done" in err
    assert "searching" not in out
    status, out, _ = nas("search", "--config", config, "--dir", folder, "--json", "--quiet")
    summary = json.loads(out)
    assert (status, summary["trials"], summary["scored"]) == (0, 6, 6)


def test_train_trains_what_a_search_on_the_same_target_uses(nas, tmp_path):
    config, mine = small_toml(tmp_path, search_trials=2), tmp_path / "mine.toml"
    mine.write_text('like = "npu_40tops"\n[legality]\ndepthwise_kernels = { value = [3], source = "a guess" }\n')
    status, out, said = nas("train", "--config", config, "--dir", tmp_path, "--target", mine, "--json")
    trained = json.loads(out)
    assert (status, trained["reused"]) == (0, False)
    assert "mine cannot run them: dwconv5" in said
    status, out, _ = nas("search", "--config", config, "--dir", tmp_path, "--target", mine, "--json")
    assert (status, json.loads(out)["supernet"]) == (0, str(tmp_path / trained["path"]))


def test_pareto_in_every_form(nas, folder, tmp_path):
    status, out, _ = nas("pareto", "--dir", folder, "--json")
    front = json.loads(out)
    assert status == 0
    assert all(network.keys() >= NETWORK_FIELDS for network in front)
    latencies = [network["latency_s"] for network in front]
    assert latencies == sorted(latencies)
    assert all(0 <= network["top1"] <= 1 and network["top1_kind"] == "one-shot" for network in front)
    table, picture = tmp_path / "front.csv", tmp_path / "front.svg"
    status, out, _ = nas("pareto", "--dir", folder, "--csv", table, "--plot", picture)
    assert (status, out.splitlines()[0].split()[0]) == (0, "trial")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["latency_s"]) for row in rows] == latencies
    assert json.loads(rows[0]["architecture"]) == front[0]["architecture"]
    assert picture.read_text().lstrip().startswith("<?xml")
    assert "is uncalibrated" in picture.read_text()  # matplotlib notes the text beside its outlines
    assert nas("pareto", "--dir", folder, "--csv", "-")[1] == table.read_text()
    assert nas("pareto", "--dir", folder, "--plot", "front.jpeg")[0] == 2


def test_a_space_has_presets_of_its_own(nas, monkeypatch):
    small = partial(load_space, "metaformer")
    monkeypatch.setitem(SPACES, "other", Builder(lambda preset, **rest: small("small", **rest), ("only",)))
    shown = [(space["name"], space["preset"]) for space in json.loads(nas("spaces", "--json")[1])]
    assert len(shown) == 3
    assert [space["preset"] for space in json.loads(nas("spaces", "--preset", "mobile", "--json")[1])] == ["mobile"]
    assert nas("spaces", "other")[0] == 0
    assert "no space has a preset 'huge'; there are presets small, mobile, only" in nas("spaces", "--preset", "huge")[2]
    assert "space other has presets only, but got 'small'" in nas("spaces", "other", "--preset", "small")[2]


def test_lists(nas, folder):
    listed = json.loads(nas("spaces", "metaformer", "--json")[1])
    assert {"identity", "pool", "dwconv", "mhsa"} <= set(listed["mixers"])
    assert listed["size"] > 1e12
    every = nas("spaces")[1]
    assert "metaformer/small" in every
    assert "metaformer/mobile" in every
    assert "stage4.width: 256, 320, 384, 512" in every
    assert json.loads(nas("spaces", "metaformer", "--preset", "mobile", "--json")[1])["preset"] == "mobile"
    studies = json.loads(nas("studies", "--dir", folder, "--json")[1])
    assert "quickstart" in [study["name"] for study in studies["shipped"]]
    assert studies["studies"][0]["trials"] == 6
    assert "npu_40tops" in nas("targets")[1]
    shown = json.loads(nas("targets", "show", "npu_40tops", "--json")[1])
    assert all(entry["source"] for entry in shown["values"])
    assert "matrix.clock_hz = " in nas("targets", "show", "npu_40tops")[1]


def test_cost_of_one_and_of_many(nas, tmp_path):
    status, out, _ = nas("cost", "resnet18", "--target", "npu_40tops", "--json")
    report = json.loads(out)
    assert status == 0
    keys = {"latency_s", "energy_j", "macs", "params", "dram_bytes", "peak_onchip_bytes", "weight_bytes", "ops"}
    assert keys <= report.keys()
    assert (
        "resnet18 on npu_40tops" in nas("cost", "resnet18", "--target", "npu_40tops", "--csv", tmp_path / "ops.csv")[1]
    )
    ops = list(csv.DictReader((tmp_path / "ops.csv").read_text().splitlines()))
    assert sum(int(op["macs"]) for op in ops) == report["macs"]
    printed = nas("cost", "resnet18", "--target", "npu_40tops", "--csv", "-")[1]
    assert printed == (tmp_path / "ops.csv").read_text()
    models = tmp_path / "models.csv"
    models.write_text("model,input_size,precision\nresnet18,224,w8a8\nno_such_net,,\n")
    status, out, err = nas("cost", "--from", models, "--target", "npu_40tops", "--csv", tmp_path / "costs.csv")
    assert status == 1
    assert "1 of 2 models could not be costed, no_such_net first" in err
    rows = list(csv.DictReader((tmp_path / "costs.csv").read_text().splitlines()))
    assert float(rows[0]["latency_s"]) == report["latency_s"]
    assert "neither a folder, an ONNX file nor a timm model" in rows[1]["error"]
    assert "no_such_net" in out


def test_cost_as_a_picture_and_beside_another(nas, tmp_path):
    words = ("cost", "resnet18", "--input-size", 64, "--target", "npu_40tops")
    picture = tmp_path / "cost.svg"
    status, out, _ = nas(*words, "--plot", picture)
    assert (status, "resnet18 on npu_40tops" in out) == (0, True)
    assert picture.read_text().lstrip().startswith("<?xml")
    status, out, _ = nas(*words, "--compare", "resnet34")
    assert (status, "resnet18" in out, "resnet34" in out) == (0, True, True)
    reports = json.loads(nas(*words, "--compare", "resnet34", "--json")[1])
    assert [report["model"] for report in reports] == ["resnet18", "resnet34"]
    assert reports[0]["latency_s"] < reports[1]["latency_s"]


MISTAKES = [
    (["search", "--space", "metafomer"], "unknown space 'metafomer'; did you mean 'metaformer'"),
    (["search", "--preset", "huge"], "presets"),
    (["search", "--mixers", "dwconvv"], "unknown token mixer 'dwconvv'; did you mean 'dwconv'"),
    (["search", "--target", "npu_40top"], "did you mean 'npu_40tops'"),
    (["search", "--target", "nowhere.toml"], "nowhere.toml"),
    (["search", "--objective", "latencyy"], "unknown objective 'latencyy'; did you mean 'latency'"),
    (["search", "--sampler", "nsgaa2"], "unknown sampler 'nsgaa2'; did you mean 'nsga2'"),
    (["search", "--constraint", "latency==2ms"], "cannot read the constraint 'latency==2ms'"),
    (["search", "--constraint", "latency<=2"], "no unit"),
    (["search", "--config", "quikstart"], "did you mean 'quickstart'"),
    (["search", "--set", "train.lr=1"], "unknown key 'lr' in [train]"),
    (["search", "--trials", "0"], "search.trials must be at least 1"),
    (["search", "--study", "../mine"], "a study's name"),
    (["search", "--data", "/no/such/folder"], "/no/such/folder"),
    (["search", "--storage", "nas.db"], "not a database URL"),
    (["train", "--set", "train.steps=x"], "train.steps must be a whole number"),
    (["pareto"], "run `nas search` first"),
    (["dashboard"], "run `nas search` first"),
    (["export", "--front", "--out", "x"], "run `nas search` first"),
    (["export", "--out", "x"], "say which networks"),
    (["cost", "--target", "npu_40tops"], "name one MODEL"),
    (["cost", "resnet1", "--target", "npu_40tops"], "neither a folder, an ONNX file nor a timm model"),
    (["cost", "resnet18", "--target", "npu"], "unknown target 'npu'"),
    (["cost", "--from", "x.csv", "--target", "npu_40tops", "--plot", "x.png"], "are for one MODEL"),
    (["cost", "--from", "x.csv", "--target", "npu_40tops", "--precision", "w8a8"], "are columns of the CSV"),
    (["cost", "--from", "x.csv", "--target", "npu_40tops", "--input-size", "64"], "are columns of the CSV"),
    (["cost", "--from", "x.csv", "--target", "npu_40tops", "--csv", "-"], "name a file"),
    (["cost", "resnet18", "--target", "npu_40tops", "--json", "--csv", "-"], "both print on stdout"),
    (["cost", "resnet18", "--target", "npu_40tops", "--calibration", "npu_40tops#1"], "there is no database in"),
    (["pareto", "--json", "--csv", "-"], "both print on stdout"),
    (["calibrate", "--target", "npu_40tops", "--precision", "fp16"], "--precision goes with --suggest"),
    (["calibrate", "--target", "npu_40tops", "--csv", "x.csv"], "--csv goes with --suggest"),
    (["measure", "--dir", "x", "export"], "--dir does nothing before export: say it behind"),
    (["measure", "--budget", "3", "plan", "--target", "npu_40tops", "--out", "x"], "--budget does nothing before plan"),
    (["measure", "--device", "cpu", "--input-size", "64"], "--input-size is for --model"),
    (["measure", "--device", "cpu", "--model", "resnet18", "--preset", "small"], "--preset goes with --budget"),
    (["measure", "--device", "cuda", "--threads", "2"], "--threads is for --device cpu"),
    (["verify", "--device", "cuda", "--threads", "1"], "--threads is for --device cpu"),
    (["targets", "--json", "show", "npu_40tops"], "--json does nothing before show"),
    (["pareto", "--storage", "sqlite:///typo.db"], "no database at sqlite:///typo.db"),
    (["spaces", "x"], "unknown space 'x'"),
    (["targets", "show", "x"], "unknown target 'x'"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_cure_and_status_2(nas, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = nas(*words)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.rglob("*.db")) == []


@pytest.mark.parametrize(
    "words",
    [
        "search --target x.toml", "train --target x.toml", "survey --target x.toml", "rank --set search.targets=['x']",
        "search --data x/y", "train --data /no/such", "rank --data setup.py/x",
        "calibrate --target x", "finalists --study x", "cost --from x.csv --target npu_40tops",
        "measure import x.csv --target npu_40tops", "measure --device cpu --from x.csv",
        "targets fit x.csv --like npu_40tops --out y.toml",
    ],
)  # fmt: skip
def test_a_wrong_name_is_said_before_torch_is_loaded(tmp_path, words):
    code = (
        "import sys, cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: print(ended.code, [m for m in ('torch', 'timm', 'sklearn') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words.split()]
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert ended.stdout.decode() == "2 []\n", ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


def test_unknown_options_are_click_s(nas):
    status, _, err = nas("search", "--trails", "3")
    assert status == 2
    assert "--trials" in err


def test_unknown_study_and_trial(nas, folder):
    assert nas("pareto", "--dir", folder, "--study", "no")[0] == 2
    status, _, err = nas("export", "--dir", folder, "--trial", 99, "--out", "x")
    assert (status, err) == (2, f"nas: study {_only_study(folder)} has no trial 99; it has 0 to 5\n")


def _only_study(folder):
    (study,) = (folder / "studies").iterdir()
    return study.name


def test_nothing_feasible_is_status_3(nas, folder, tmp_path):
    config = small_toml(tmp_path, search_trials=2)
    words = ("search", "--config", config, "--dir", tmp_path / "runs", "--constraint", "latency<=1ns", "--quiet")
    status, out, err = nas(*words)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert "2 miss 'latency<=1ns' (the nearest: latency" in err
    assert nas("pareto", "--dir", tmp_path / "runs", "--json")[:2] == (3, "[]\n")
    status, _, err = nas("export", "--dir", folder, "--best-under", "latency<=1ns", "--out", tmp_path / "x")
    assert status == 3
    assert "none of the 6 feasible trials" in err


def test_a_database_of_another_program_and_a_folder_that_cannot_be_made(nas, tmp_path):
    config = small_toml(tmp_path)
    with closing(sqlite3.connect(tmp_path / "nas.db")) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    status, _, err = nas("search", "--config", config, "--dir", tmp_path, "--quiet")
    assert status == 2
    assert "database of another program" in err
    status, _, err = nas("search", "--config", config, "--dir", "/proc/nas", "--quiet")
    assert status == 1
    assert "cannot make the folder /proc/nas" in err


def test_the_unexpected_is_one_line_and_debug_shows_where(nas, monkeypatch, capfd):
    import nas as face

    def broken(*_):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(face, "describe_targets", broken, raising=False)
    status, _, err = nas("targets")
    assert (status, err) == (1, "nas: ZeroDivisionError: division by zero (--debug shows where)\n")
    monkeypatch.setattr(sys, "argv", ["nas", "targets", "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_dashboard_serves_the_study(folder):
    from nas.study import open_study

    command = [sys.executable, str(ROOT / "cli.py"), "dashboard", "--dir", str(folder), "--port", "0"]
    # a shell starts what it puts into the background with Ctrl-C ignored, and that is inherited
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    stop = threading.Timer(100, server.kill)
    stop.start()
    try:
        address = server.stderr.readline().split()[2]
        root = address.partition("/dashboard")[0]
        with urllib.request.urlopen(f"{root}/api/studies/{address.rpartition('/')[2]}", timeout=30) as answer:
            shown = json.load(answer)
        assert shown["name"] == open_study(folder).name
        assert len(shown["trials"]) == 6
        assert shown["note"]["body"].startswith("# Front of")
        assert len(shown["artifacts"]) == 1
        assert "front" in json.dumps(shown["plotly_graph_objects"])
    finally:
        stop.cancel()
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=90)
    assert server.returncode == 130


def test_the_version_is_that_of_the_project(nas):
    """Installed or run from a source tree: what pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    status, out, _ = nas("--version")
    assert status == 0
    assert out.split()[2] == project["version"]
