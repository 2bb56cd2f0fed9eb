"""`trtopt fleet`: the plan on the terminal, exit codes, and what a rerun changes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from serve.conftest import digits  # noqa: F401  (a fixture)
from support import ROOT, Done

from trtopt.fleet.demand import MB
from trtopt.fleet.plan import read
from trtopt.serve import config

Cli = Callable[..., Done]
RUN = """
[[model]]
run = "{run}"
name = "{name}"
rate = {rate}
latency-limit = "50ms"
weights = "100MB"
context = "50MB"
activations = "10MB"
"""


@pytest.fixture
def write(digits: Path, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Return a function that writes a file of models, all the digits run, with these rates."""

    def make(**rates: float) -> Path:
        path = tmp_path / "models.toml"
        path.write_text("".join(RUN.format(run=digits, name=name, rate=rate) for name, rate in rates.items()))
        return path

    return make


def test_the_plan_is_printed(cli: Cli, stated: Path) -> None:
    done = cli("fleet", stated, "--gpu", "T4", "--dry-run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["GPU", "name", "MB", "used", "of", "busy", "instances"]
    assert "1 x detector, 1 x encoder" in lines[1]
    assert lines[-1] == "PASS"
    assert not list(stated.parent.glob("trtopt-out"))


def test_what_does_not_fit_is_one_line_and_exit_code_1(cli: Cli, stated: Path, tmp_path: Path) -> None:
    out = tmp_path / "fleet"
    done = cli("fleet", stated, "--gpu", "mine=1GB", "-o", out)  # 600 + 220 MB, and 580 MB
    assert done.code == 1
    *_, line, last = done.out.splitlines()
    assert re.fullmatch(r"encoder does not fit: 4\d\d MB more are needed on GPU 0", line)
    assert last == "FAIL: nothing was written"
    assert not out.exists()


def test_a_limit_that_is_expected_to_break_fails(cli: Cli, stated: Path) -> None:
    stated.write_text(stated.read_text().replace('"50ms"', '"17ms"'))
    done = cli("fleet", stated, "--gpu", "T4", "--dry-run")
    assert done.code == 1
    assert "detector is expected to answer within" in done.out
    assert "its limit is 17 ms" in done.out
    # The important model is served first where the strategy is that.
    done = cli("fleet", stated, "--gpu", "T4", "--dry-run", "--strategy", "priority", "--format", "json")
    assert json.loads(done.out)["plan"]["expected"]["detector"]["latency"]["p99"] < 25


def test_everything_is_written(cli: Cli, write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    yaml = pytest.importorskip("yaml")
    out = tmp_path / "fleet"
    done = cli("fleet", write(a=200, b=300), "--gpu", "mine=2GB:2", "-o", out, "--strategy", "priority")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{out}/models/a/build.sh builds the engine")
    names = ("compose.yaml", "prometheus.yml", "kubernetes.yaml", "load.sh", "plan.json", "models/a/config.pbtxt")
    assert all((out / name).is_file() for name in (*names, "grafana/dashboards/fleet.json"))
    assert (out / "load.sh").stat().st_mode & 0o100
    plan = read(out / "plan.json")
    for service in plan.services:
        made = config.parse((out / "models" / service.model / "config.pbtxt").read_text())
        assert made.max_batch_size == service.batch
        assert made.dynamic_batching.max_queue_delay_microseconds == service.delay_us
        assert sum(group.count for group in made.instance_group) == sum(place.instances for place in service.places)
        assert {group.rate_limiter.resources[0].count for group in made.instance_group} == {100}
    assert yaml.safe_load((out / "compose.yaml").read_text())["services"]["triton"]["image"].endswith("26.03-py3")
    kinds = [each["kind"] for each in yaml.safe_load_all((out / "kubernetes.yaml").read_text())]
    assert kinds == ["PersistentVolumeClaim", "Deployment", "Service"]
    assert "&id" not in (out / "kubernetes.yaml").read_text()


def test_a_rerun_changes_only_what_it_must_and_keeps_engines(
    cli: Cli, write: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    out = tmp_path / "fleet"
    assert cli("fleet", write(a=200, b=300), "--gpu", "mine=2GB:2", "-o", out).code == 0
    (out / "models/a/1/model.plan").write_bytes(b"built in the image")
    files = [path for path in out.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    times = {path: path.stat().st_mtime_ns for path in files if "models" in path.parts}
    done = cli("fleet", write(a=200, b=300), "--gpu", "mine=2GB:2", "-o", out)
    assert done.code == 0, done.err
    assert "restart" not in done.out
    assert "models/a/build.sh" not in done.out  # it has been run
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert times == {path: path.stat().st_mtime_ns for path in times}
    # b goes, c comes, and a stays as it is.
    done = cli("fleet", write(a=210, c=100), "--gpu", "mine=2GB:2", "-o", out)
    assert done.code == 0, done.err
    assert "compose.yaml restart triton" in done.out
    assert sorted(path.name for path in (out / "models").iterdir()) == ["a", "c"]
    assert (out / "models/a/1/model.plan").read_bytes() == b"built in the image"
    assert times[out / "models/a/config.pbtxt"] == (out / "models/a/config.pbtxt").stat().st_mtime_ns
    assert not list(out.glob(".tmp*"))


def test_models_move_to_other_servers(cli: Cli, write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    out, path = tmp_path / "fleet", write(a=200, b=300)
    slices = "mine/3g.40gb=800MB:2"  # each has the memory for one of the models
    assert cli("fleet", path, "--gpu", slices, "-o", out).code == 0
    assert sorted(each.name for each in (out / "models").iterdir()) == ["triton-0-0", "triton-0-1"]
    done = cli("fleet", path, "--gpu", "mine=2GB", "-o", out)
    assert done.code == 0, done.err
    # Another folder in the repository would be taken for a model.
    assert sorted(each.name for each in (out / "models").iterdir()) == ["a", "b"]


def test_an_engine_of_another_graph_does_not_stay(
    cli: Cli, write: Callable[..., Path], tmp_path: Path, conv_net: Path
) -> None:
    pytest.importorskip("tritonclient")
    out, path = tmp_path / "fleet", write(a=20)
    assert cli("fleet", path, "--gpu", "mine=2GB", "-o", out).code == 0
    (out / "models/a/1/model.plan").write_bytes(b"built in the image")
    text = path.read_text().splitlines()
    text[2] = f'run = "{conv_net}"\ntimes = {{1 = "2ms"}}'
    path.write_text("\n".join(text))
    done = cli("fleet", path, "--gpu", "mine=2GB", "-o", out)
    assert done.code == 0, done.err
    assert not (out / "models/a/1/model.plan").exists()
    assert "models/a/build.sh builds the engine" in done.out


def test_a_folder_of_others_is_refused(cli: Cli, write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes").touch()
    done = cli("fleet", write(a=20), "--gpu", "mine=2GB", "-o", out)
    assert done.code == 2
    assert "is not empty and has no plan.json" in done.err
    assert "models: 1" not in done.err  # it is known before the plan is made, which may take minutes
    (out / "plan.json").write_text("{}")
    done = cli("fleet", write(a=20), "--gpu", "mine=2GB", "-o", out)
    assert done.code == 2
    assert "is not a plan of this version" in done.err
    assert sorted(path.name for path in out.iterdir()) == ["notes", "plan.json"]


def test_a_model_of_others_is_not_replaced(cli: Cli, write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    out = tmp_path / "fleet"
    assert cli("fleet", write(a=20), "--gpu", "mine=2GB", "-o", out).code == 0
    (out / "models/b").mkdir()
    done = cli("fleet", write(a=20, b=20), "--gpu", "mine=2GB", "-o", out)
    assert done.code == 2
    assert "models/b exists" in done.err


def test_a_disk_that_is_full_changes_nothing(
    cli: Cli, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient")
    from trtopt.serve import repository

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "fleet"
    monkeypatch.setattr(repository, "_copy_graph", full)
    done = cli("fleet", write(a=20), "--gpu", "mine=2GB", "-o", out)
    assert done.code == 2
    assert f"cannot write to {out}: No space left on device" in done.err
    assert not out.exists()


def test_a_model_without_a_run_can_only_be_planned(cli: Cli, stated: Path, tmp_path: Path) -> None:
    done = cli("fleet", stated, "--gpu", "T4", "-o", tmp_path / "fleet")
    assert done.code == 2
    assert "detector has no run to package" in done.err
    assert not (tmp_path / "fleet").exists()


def test_measured_memory_of_a_run_is_used(cli: Cli, digits: Path, tmp_path: Path) -> None:  # noqa: F811
    from trtopt.codec import encode
    from trtopt.commands.bench import kept
    from trtopt.types import BatchLimit

    run = tmp_path / "digits/fp16"
    shutil.copytree(digits, run)
    path = tmp_path / "models.toml"
    path.write_text(f'[[model]]\nrun = "{run}"\nrate = 10\n')
    done = cli("fleet", path, "--gpu", "T4", "--dry-run")
    assert done.code == 2
    assert "context and activations not known" in done.err
    limit = BatchLimit(
        target="t",
        device="cuda",
        batch=32,
        limited_by="profile",
        why="",
        memory_limit=10**10,
        latency_limit=1.0,
        total=0,
        base=5 * MB,
        weights=100 * MB,
        inputs_outputs=0,
        bytes_fixed=155 * MB,
        bytes_per_sample=2.0 * MB,
        probes=(),
    )
    table = encode(kept(run))
    (run / "benchmark.json").write_text(json.dumps({**table, "limit": encode(limit)}))
    done = cli("fleet", path, "--gpu", "T4", "--dry-run", "--format", "json")
    assert done.code == 0, done.err
    (demand,) = json.loads(done.out)["plan"]["fleet"]["demands"]
    assert demand["memory"] == {"weights": 100 * MB, "context": 50 * MB, "per_sample": 2.0 * MB}
    assert (demand["name"], demand["largest"]) == ("digits-fp16", 32)


@pytest.mark.parametrize(("gpu", "failures"), [("T4", 0), ("mine=1GB", 1)])
def test_junit_has_a_case_for_each_rate_and_limit(cli: Cli, stated: Path, gpu: str, failures: int) -> None:
    done = cli("fleet", stated, "--gpu", gpu, "--dry-run", "--format", "junit")
    suite = ElementTree.fromstring(done.out)[0]
    assert suite.attrib["failures"] == str(failures)
    cases = [(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")]
    limited = [("trtopt.fleet.detector", name) for name in ("throughput", "latency_p99")]
    assert cases == [*limited, ("trtopt.fleet.encoder", "throughput")]
    (message,) = [each.attrib["message"] for each in suite.iter("failure")] or [""]
    assert ("encoder: throughput: does not fit" in message) is bool(failures)


@pytest.mark.parametrize("format", ["markdown", "html"])
def test_pages_have_the_tables_of_the_plan(cli: Cli, stated: Path, format: str) -> None:
    done = cli("fleet", stated, "--gpu", "T4", "--dry-run", "--format", format)
    assert done.code == 0, done.err
    for words in ("MB used", "mean batch", "1 x detector", "nothing was written"):
        assert words in done.out


def test_wrong_flags_get_one_line(cli: Cli, stated: Path) -> None:
    for flags, line in (
        (("--gpu", "T4", "--image", "19.01"), "unknown image"),
        (("--gpu", "T4", "--previous", "nowhere.json"), "nowhere.json cannot be read"),
        (("--gpu", "T4", "-q", "-v"), "contradicts"),
    ):
        done = cli("fleet", stated, *flags)
        assert done.code == 2
        assert line in done.err


@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="pytriton is not installed")
def test_a_real_server_loads_the_repository_of_a_fleet(cli: Cli, write: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    path = write(a=200, b=100)
    path.write_text(path.read_text().replace("rate = 100", "rate = 100\nurgent = 0.1\npriority = 2"))
    flags = ("--gpu", "mine=2GB:2", "--strategy", "priority", "--verify", "-o", tmp_path / "fleet")
    done = cli("fleet", path, *flags)
    assert done.code == 0, done.err
    for name in ("a", "b"):
        assert f"verified {name}: 64 answers equal the runner's" in done.out
    made = config.parse((tmp_path / "fleet/models/b/config.pbtxt").read_text())
    assert made.dynamic_batching.priority_levels == 2


@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="pytriton is not installed")
def test_the_documentation_writes_a_folder_that_a_server_loads(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/fleet.md").read_text()
    for title, content in re.findall(r'^```toml title="([^"]*)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        (tmp_path / title).write_text(content)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    commands = [line.split() for line in re.findall(r"^\$ trtopt (.*)$", text, re.MULTILINE)]
    (written,) = (words for words in commands if "-o" in words and words[0] == "fleet")
    for words in commands[2:4]:  # the first two are about a GPU
        assert cli(*words).code == 0
    done = cli(*written)
    assert done.code == 0, done.err
    assert "verified digits-fp16: 64 answers equal the runner's" in done.out
    table = set(re.findall(r"^\| `([\w./]+)` \| ", text.partition("| file |")[2], re.MULTILINE))
    assert table == {f"{path.name}/" if path.is_dir() else path.name for path in (tmp_path / "fleet").iterdir()} - {
        "prometheus.yml"
    }
