"""`trtopt compare` with several candidates, and `--from`, which judges again without running."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import CALIB, DIGITS, EVAL, Done

from trtopt.commands.compare import compare
from trtopt.commands.convert import convert
from trtopt.commands.judge import judge_again
from trtopt.compare.gates import parse_gates
from trtopt.data.dataset import Dataset, Feed
from trtopt.errors import OutOfMemoryError, UsageError
from trtopt.events import Event, Warned, silent
from trtopt.graph.file import describe
from trtopt.plan import BuildPlan, ComparePlan, ConvertPlan, DataPlan, JudgePlan
from trtopt.run import Run, load
from trtopt.stages.layers import explained
from trtopt.store import open_store
from trtopt.types import REPORT_SCHEMA

Cli = Callable[..., Done]
ITSELF = ("compare", DIGITS, DIGITS, "--data", EVAL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the digits network without TensorRT, to the run directories `fp16` and `int8`."""
    folder = tmp_path_factory.mktemp("runs")
    for precision in ("fp16", "int8"):
        plan = ConvertPlan(
            source=DIGITS,
            precision=precision,
            run_dir=folder / precision,
            calib=DataPlan(source=str(CALIB)),
            data=DataPlan(source=str(EVAL)),
            build=BuildPlan(backend="onnxruntime"),
        )
        assert convert(plan)[0].verdict == "pass"
    return folder


def several(runs: Path, out: Path, gates: str = "") -> ComparePlan:
    candidates = (runs / "fp16", runs / "int8")
    return ComparePlan(
        baseline=DIGITS, candidates=candidates, run_dir=out, data=DataPlan(source=str(EVAL)), gates=parse_gates(gates)
    )


def test_several_candidates_are_judged_side_by_side(runs: Path, tmp_path: Path) -> None:
    report = compare(several(runs, tmp_path, "sqnr=50"))
    fp16, int8 = report.candidates
    assert (fp16.precision, fp16.comparison.verdict) == ("fp16", "pass")
    assert (int8.precision, int8.comparison.verdict) == ("int8", "fail")
    assert int8.size_bytes < fp16.size_bytes
    assert (report.verdict, report.comparison) == ("fail", None)


def test_the_smaller_and_the_more_accurate_candidate_are_both_pareto_optimal(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "int8", tmp_path / "worse")
    plan = several(runs, tmp_path / "out")
    report = compare(plan)
    assert [row.pareto for row in report.candidates] == [True, True]
    with_fp32 = ComparePlan(
        baseline=DIGITS,
        candidates=(runs / "fp16", runs / "fp16/fp32.onnx", runs / "fp16/typed.onnx"),
        run_dir=tmp_path / "out2",
        data=DataPlan(source=str(EVAL)),
    )
    again = compare(with_fp32)
    assert [row.pareto for row in again.candidates] == [True, True, True]  # equal candidates do not beat each other


def test_new_gates_judge_the_earlier_measurements(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(runs / "int8", copy)
    (copy / "typed.onnx").unlink()  # without it, nothing can be run
    before = (copy / "report.json").read_bytes()
    assert judge_again(JudgePlan(run=copy, gates=parse_gates("top1=1%,sqnr=20"))).verdict == "pass"
    failed = judge_again(JudgePlan(run=copy, gates=parse_gates("sqnr=90")))
    assert failed.verdict == "fail"
    assert [line for line in failed.notes if "lowest SQNR in" in line]
    assert judge_again(JudgePlan(run=copy, gates=parse_gates("top1=0.1%"))).verdict == "inconclusive"
    assert (copy / "report.json").read_bytes() == before


def test_remarks_of_the_old_gates_do_not_stay(runs: Path, tmp_path: Path) -> None:
    compare(several(runs, tmp_path, "sqnr=90"))
    old = judge_again(JudgePlan(run=tmp_path, gates=parse_gates("sqnr=90")))
    new = judge_again(JudgePlan(run=tmp_path, gates=parse_gates("sqnr=20")))
    assert any("lowest SQNR in" in line for line in old.notes)
    assert not any("lowest SQNR in" in line for line in new.notes)
    assert [row.comparison.verdict for row in new.candidates] == ["pass", "pass"]


def test_the_command_judges_again_and_lists_the_worst_samples(runs: Path, cli: Cli) -> None:
    done = cli("compare", "--from", runs / "int8", "--gate", "top1=1%", "--worst", 3)
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if "eval.npz[" in line]
    assert len(rows) == 3
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)


def test_stages_of_the_earlier_run_are_not_listed_as_if_they_had_run_now(runs: Path) -> None:
    assert judge_again(JudgePlan(run=runs / "int8")).stages == ()


def test_too_few_samples_exit_4_unless_that_is_allowed(runs: Path, cli: Cli) -> None:
    command = ("compare", "--from", runs / "int8", "--gate", "top1=0.1%")
    done = cli(*command)
    assert done.code == 4
    assert "INCONCLUSIVE: logits: top1: 1000 samples show no drop, but about 3000 are needed" in done.out
    assert cli(*command, "--allow-inconclusive").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--from", "nowhere"), "no report at nowhere/report.json: it does not exist"),
        (
            ("compare", "--from", "nowhere", "--data", "x"),
            "--from runs no model: it applies gates to stored results. Leave out",
        ),
        (("compare", "--from", "nowhere", "--kind", "y=values", "--layers"), "Leave out --kind, --layers"),
        (("compare", DIGITS, "--from", "nowhere", "--metric", "m:f"), "Leave out models, --metric"),
        (("compare",), "nothing to compare. Give the FP32 ONNX file"),
        (("compare", DIGITS), "nothing to compare. Give the FP32 ONNX file"),
        (("compare", DIGITS, DIGITS), "no data to compare on. Add --data"),
        ((*ITSELF, "--kind", "values"), "--kind 'values' does not parse. Write OUTPUT=KIND"),
        ((*ITSELF, "--kind", "logits=valeus"), "unknown kind of output 'valeus'. Did you mean values?"),
        ((*ITSELF, "--kind", "logits=values", "--kind", "logits=exact"), "--kind is given twice for output logits"),
        ((*ITSELF, "--kind", "lgits=values"), "--kind: model.onnx has no output lgits"),
        ((*ITSELF, "--gate", "mine>=0.9"), "--gate: unknown metric mine"),
        ((*ITSELF, "--gate", "dist:p>=1"), "--gate: model.onnx has no output dist. Choose one of"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments: tuple[object, ...], message: str, cli: Cli) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_a_damaged_report_is_refused(runs: Path, tmp_path: Path) -> None:
    for text in ("{", "[" * 99999, "[]", "{}", json.dumps({"schema_version": REPORT_SCHEMA})):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UsageError, match="it cannot be read"):
            judge_again(JudgePlan(run=tmp_path))


@pytest.mark.parametrize("version", [1, REPORT_SCHEMA + 1, "2", None])
def test_a_report_of_another_schema_version_is_refused(runs: Path, tmp_path: Path, version: object) -> None:
    data = json.loads((runs / "int8/report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**data, "schema_version": version, "more": 1}))
    with pytest.raises(UsageError, match=f"its schema version is {version}, and this version of trtopt reads 2 and 3"):
        judge_again(JudgePlan(run=tmp_path))


def test_a_report_of_the_version_before_is_read(runs: Path, tmp_path: Path) -> None:
    data = json.loads((runs / "int8/report.json").read_text())
    for added in ("notes", "error", "invocation"):
        del data[added]
    del data["comparison"]["exhibits"]
    for output in data["comparison"]["outputs"]:
        del output["by_class"]
    (tmp_path / "report.json").write_text(json.dumps({**data, "schema_version": 2}))
    assert load(tmp_path).schema_version == REPORT_SCHEMA


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--gate", "miou=98%"), 1),
        (("--gate", "logits:miou=98%"), 1),
        (("--gate", "accuracy_fp32=200"), 2),
        (("--gate", "miou=98%", "--kind", "logits=scores"), 2),
        (("--gate", "mine>=0.5"), 2),
        (("--gate", "other:sqnr=20"), 2),
        (("--gate", "sqnr=20"), 0),
    ],
)
def test_new_gates_on_a_run_exit_as_a_new_comparison_does(
    runs: Path, tmp_path: Path, cli: Cli, flags: tuple[str, ...], code: int
) -> None:
    assert cli("compare", "--from", runs / "int8", *flags).code == code
    assert cli("compare", DIGITS, runs / "int8", "--data", EVAL, *flags, "-o", tmp_path).code == code


def test_notes_are_not_repeated_in_the_log_of_github(
    runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("compare", DIGITS, runs / "fp16", "--data", CALIB, "--format", "github", "-o", tmp_path)
    apart = cli(*arguments)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    together = cli(*arguments)
    note = "images are preprocessed with"
    assert (apart.out.count(note), apart.err.count(note)) == (1, 1)
    assert (together.out.count(note), together.err.count(note)) == (0, 1)


def test_a_report_without_a_comparison_is_refused(runs: Path, tmp_path: Path) -> None:
    data = json.loads((runs / "int8/report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**data, "comparison": None, "verdict": "unchecked"}))
    with pytest.raises(UsageError, match="does not contain a comparison: its report is one of trtopt convert"):
        judge_again(JudgePlan(run=tmp_path))


def test_a_benchmark_in_the_run_directory_gives_the_latency(runs: Path, tmp_path: Path) -> None:
    timing = {"target": "int8", "copies": False, "iterations": 9, "mean": 1.5, "p90": 2, "p95": 2, "p99": 2}
    timing |= {"noise": 0.01, "throughput": 700.0}
    slow = {**timing, "batch": 8, "p50": 6.0}
    quick = {**timing, "batch": 1, "p50": 1.25}
    target = {"name": "int8", "path": "typed.onnx", "ran": "somewhere"}
    benchmark = {"targets": [target], "timings": [slow, quick]}
    for name in ("fp16", "int8"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "int8/benchmark.json").write_text(json.dumps(benchmark))
    fp16, int8 = compare(several(tmp_path, tmp_path / "out")).candidates
    assert (int8.latency, int8.latency_batch) == (1.25, 1)
    assert np.isnan(fp16.latency)
    assert fp16.latency_batch == 0


def damage(typed: Path, path: Path) -> str:
    """Write the typed graph with the scale of one activation 10x too small; return the node that reads it."""
    model = onnx.load(typed)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantized = [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]
    chosen = quantized[2]
    scale = constants[chosen.input[1]]
    value = np.asarray(onnx.numpy_helper.to_array(scale) / 10, dtype=onnx.numpy_helper.to_array(scale).dtype)
    own = onnx.numpy_helper.from_array(value, "damaged")
    model.graph.initializer.append(own)
    chosen.input[1] = own.name
    back = next(node for node in model.graph.node if chosen.output[0] in node.input)
    back.input[1] = own.name
    onnx.save(model, path)
    return next(node.name for node in model.graph.node if back.output[0] in node.input)


def test_a_damaged_layer_is_named_in_every_report(runs: Path, tmp_path: Path, cli: Cli) -> None:
    node = damage(runs / "int8/typed.onnx", tmp_path / "damaged.onnx")
    arguments = ("compare", DIGITS, tmp_path / "damaged.onnx", "--data", EVAL, "--gate", "sqnr=20dB", "-o", tmp_path)
    done = cli(*arguments, "--format", "github")
    assert done.code == 1
    assert f"::error title=trtopt layer {node}::" in done.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["layers"]["jump"] == node
    assert f"first divergent layer: {node}" in cli(*arguments).out
    assert node in (tmp_path / "report.html").read_text()


def test_a_healthy_model_has_no_divergent_layer(runs: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("compare", DIGITS, runs / "int8", "--data", EVAL, "--gate", "sqnr=20dB", "-o", tmp_path, "--layers")
    done = cli(*arguments, "--format", "json")
    assert done.code == 0
    layers = json.loads(done.out)["layers"]
    assert layers["jump"] == ""
    assert len(layers["layers"]) >= 15


def test_a_conversion_that_fails_says_which_layers_are_noisiest(runs: Path, tmp_path: Path) -> None:
    plan = ConvertPlan(
        source=DIGITS,
        precision="int8",
        run_dir=tmp_path,
        calib=DataPlan(source=str(CALIB)),
        data=DataPlan(source=str(EVAL)),
        gates=parse_gates("sqnr=90"),
        build=BuildPlan(backend="onnxruntime"),
    )
    report, _ = convert(plan)
    assert report.verdict == "fail"
    assert report.layers is not None
    assert report.layers.reason


def test_out_of_memory_in_the_layers_is_a_warning_beside_the_verdict(tmp_path: Path) -> None:
    def load(_: int) -> Feed:
        raise OutOfMemoryError("memory is exhausted")

    said: list[Event] = []
    dataset = Dataset(source="big", digest="d", ids=("0",), load=load, batched=True)
    with open_store(tmp_path, silent) as store:
        context = Run(store=store, emit=said.append, device="cpu")
        assert explained(context, describe(DIGITS), describe(DIGITS), None, dataset) is None
    assert Warned("the source of the drift is not known: memory is exhausted") in said


def test_layers_are_shown_of_one_candidate_only(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layers takes a single candidate"):
        compare(replace(several(runs, tmp_path), layers=True))


def test_the_verdict_of_the_old_gates_does_not_stay_among_the_stages(runs: Path, tmp_path: Path) -> None:
    before = compare(several(runs, tmp_path, "sqnr=50"))
    assert [stage.name for stage in before.stages if "gate" in stage.name]
    assert not [stage.name for stage in judge_again(JudgePlan(run=tmp_path)).stages if "gate" in stage.name]


def test_a_gate_may_name_the_function_of_a_custom_metric(tmp_path: Path, cli: Cli) -> None:
    gates = ("--metric", "math:dist", "--gate", "dist:p>=1")
    done = cli(*ITSELF, *gates, "-o", tmp_path)
    assert "--metric math:dist failed" in done.err  # it was called, so the gate was accepted


def test_a_comparison_without_candidates_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(replace(several(runs, tmp_path), candidates=()))


def test_a_folder_of_runs_names_those_that_are_complete(runs: Path, tmp_path: Path, cli: Cli) -> None:
    for name in ("fp16", "int8"):
        shutil.copytree(runs / name, tmp_path / name)
    manifest = json.loads((tmp_path / "int8/manifest.json").read_text())
    del manifest["stages"]["precision"]
    (tmp_path / "int8/manifest.json").write_text(json.dumps(manifest))
    done = cli("compare", DIGITS, tmp_path, "--data", EVAL, "-o", tmp_path / "out")
    assert done.code == 2
    assert done.err.rstrip().endswith("Name one of the runs in it: fp16")


def test_a_candidate_that_is_named_twice_is_refused(runs: Path, tmp_path: Path, cli: Cli) -> None:
    again = runs / "fp16" / ".." / "fp16"
    done = cli("compare", DIGITS, runs / "fp16", runs / "int8", again, "--data", EVAL, "-o", tmp_path / "out")
    assert done.code == 2
    assert f"{again} is the same candidate as {runs / 'fp16'}. Name each candidate once" in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_model_is_told(runs: Path, tmp_path: Path, cli: Cli) -> None:
    other = onnx.load(DIGITS)
    other.doc_string = "another model"
    onnx.save(other, tmp_path / "other.onnx")
    told = f"warning: {runs / 'int8'} was not made from"
    for baseline, expected in ((DIGITS, False), (runs / "int8/fp32.onnx", False), (tmp_path / "other.onnx", True)):
        done = cli("compare", baseline, runs / "int8", "--data", EVAL, "-o", tmp_path / "out")
        assert done.code == 0
        assert (told in " ".join(done.out.split())) == expected


def test_the_baseline_that_a_conversion_was_given_is_not_another_model(runs: Path, tmp_path: Path, cli: Cli) -> None:
    given = ("convert", runs / "int8/typed.onnx", "-p", "int8", "--baseline", DIGITS, "--data", EVAL)
    assert cli(*given, "--backend", "onnxruntime", "-o", tmp_path / "run").code == 0
    done = cli("compare", DIGITS, tmp_path / "run", "--data", EVAL, "-o", tmp_path / "out")
    assert done.code == 0
    assert "was not made from" not in " ".join(done.out.split())


def test_judging_again_does_not_point_to_the_report_of_the_old_gates(runs: Path, cli: Cli) -> None:
    done = cli("compare", "--from", runs / "int8", "--gate", "sqnr=90")
    assert done.code == 1
    assert f"not written: {runs / 'int8/report.json'} keeps its own gates" in " ".join(done.out.split())


def test_a_run_that_ends_early_leaves_no_verdict_of_another(runs: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("compare", DIGITS, runs / "int8", "--gate", "sqnr=20dB", "-o", tmp_path / "out")
    assert cli(*arguments, "--data", EVAL).code == 0
    broken = tmp_path / "broken.npz"
    broken.write_bytes(EVAL.read_bytes()[:5000])
    assert cli(*arguments, "--data", broken).code == 2
    assert not (tmp_path / "out/report.json").exists()
    assert not (tmp_path / "out/report.html").exists()


def test_data_in_the_settings_do_not_prevent_judging_again(
    runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trtopt.toml").write_text('[compare]\ndata = "data/eval"\n')
    assert cli("compare", "--from", runs / "int8", "--gate", "sqnr=20dB").code == 0
