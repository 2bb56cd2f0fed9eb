"""A comparison: the same samples through both models, one verdict, and nothing averaged away."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.compare.gate import judged
from trtopt.compare.gates import parse_gates
from trtopt.compare.pair import Pair
from trtopt.compare.run import Measure, compare
from trtopt.data.checks import Header
from trtopt.data.dataset import Array, ClassList, Dataset
from trtopt.data.sample import Samples, to_dataset
from trtopt.engine.onnxruntime import OrtRunner, open_runner
from trtopt.errors import DataError, ModelError, OutOfMemoryError, UsageError
from trtopt.events import Event, Progress, Warned, silent
from trtopt.types import Comparison, TensorSpec

SAMPLES = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
LABELS = tuple(SAMPLES.argmax(axis=1).tolist())


@dataclass
class Function:
    """A runner whose model is a numpy function of the input `x`; it remembers how many samples each run had."""

    model: Callable[[Array], Mapping[str, Array]]
    where: str = "numpy"
    sizes: tuple[int, ...] = ()

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        self.sizes += (len(feed["x"]),)
        return self.model(feed["x"])


def model(**outputs: Callable[[Array], Array]) -> Function:
    return Function(lambda x: {name: function(x) for name, function in outputs.items()})


def dataset(samples: Array = SAMPLES, **changes: object) -> Dataset:
    made = Dataset(
        source="eval.npz",
        digest="d",
        ids=tuple(f"eval.npz[{i}]" for i in range(len(samples))),
        load=lambda i: {"x": samples[i : i + 1]},
        batched=True,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def drift(baseline: Function, candidate: Function, data: Dataset, gates: str = "", batch: int = 4) -> Comparison:
    pair = Pair(baseline=baseline, candidate=candidate, names=("a.onnx", "b.onnx"))
    return judged(compare(pair, data, Measure(), emit=silent, batch=batch), parse_gates(gates))


def same(x: Array) -> Array:
    return x


def test_identical_models_pass() -> None:
    found = drift(model(logits=same), model(logits=same), dataset(), "top1=30%")
    assert (found.verdict, found.samples, found.labelled) == ("pass", 9, False)
    assert (found.baseline, found.candidate, found.baseline_ran, found.data) == (
        "a.onnx",
        "b.onnx",
        "numpy",
        "eval.npz",
    )
    assert found.outputs[0].values["top1"] == 100.0


def test_a_reversed_candidate_fails() -> None:
    found = drift(model(logits=same), model(logits=lambda x: -x), dataset())
    assert found.verdict == "fail"
    result = found.gates[0]
    assert result.reason.startswith("top-1 differs from FP32 on 100.00 % of samples, 95 % bounds")


def test_labels_turn_drift_into_accuracy() -> None:
    found = drift(model(logits=same), model(logits=lambda x: np.roll(x, 1, axis=1)), dataset(labels=LABELS))
    assert found.labelled
    assert (found.outputs[0].values["accuracy_fp32"], found.outputs[0].values["accuracy"]) == (100.0, 0.0)
    assert not any("labels" in warning for warning in found.warnings)


def test_labels_that_do_not_fit_are_reported_and_never_pass_a_broken_candidate() -> None:
    shifted = tuple((label + 5) % 12 for label in LABELS)
    found = drift(model(logits=same), model(logits=lambda x: -x), dataset(labels=shifted))
    assert (found.verdict, found.labelled) == ("fail", False)
    assert found.warnings[0] == ("eval.npz: the labels do not fit: FP32 itself is right on 0 of 9 samples by logits")


def test_a_failed_gate_names_the_samples_with_the_lowest_sqnr() -> None:
    shift = np.zeros((9, 12), np.float32)
    shift[[5, 2, 7, 8]] = np.array([9, 8, 7, 1])[:, None]  # samples 5, 2, 7 and 8, the worst first
    places = {SAMPLES[i].tobytes(): i for i in range(9)}

    def spoiled(x: Array) -> Array:
        return x + np.stack([shift[places[row.tobytes()]] for row in x]) * np.linalg.norm(x, axis=1, keepdims=True)

    found = drift(model(y=same, z=same), model(y=spoiled, z=same), dataset())
    assert found.verdict == "fail"
    assert found.remarks == ("output y has its lowest SQNR in eval.npz[5], eval.npz[2], eval.npz[7]",)


def test_a_passing_comparison_has_no_warnings() -> None:
    found = drift(model(y=same), model(y=lambda x: x * np.float32(1.001)), dataset())
    assert (found.verdict, found.warnings, found.remarks) == ("pass", (), ())


def test_a_ruined_output_fails_when_the_gate_is_on_another() -> None:
    found = drift(model(a=same, b=same, c=same), model(a=same, b=same, c=lambda x: -x), dataset(), "a:cosine=0.9")
    assert found.verdict == "fail"
    assert {each.output for each in found.gates if not each.passed} == {"c"}


@pytest.mark.parametrize("gates", ["", "top1=1%"])
def test_no_samples_fail(gates: str) -> None:
    found = drift(model(logits=same), model(logits=same), dataset(SAMPLES[:0]), gates)
    assert (found.verdict, found.samples) == ("fail", 0)
    assert found.gates[0].reason == "there are no samples"


@pytest.mark.parametrize("broken", ["baseline", "candidate"])
@pytest.mark.parametrize("gates", ["", "max_abs=1e9"])
def test_nan_names_the_output_and_the_first_sample_and_fails(broken: str, gates: str) -> None:
    def spoiled(x: Array) -> Array:
        return np.where((x == SAMPLES[6]).all(axis=1, keepdims=True), np.float32(np.nan), x)

    baseline = model(y=spoiled if broken == "baseline" else same)
    candidate = model(y=spoiled if broken == "candidate" else same)
    found = drift(baseline, candidate, dataset(), gates)
    assert found.verdict == "fail"
    (failed,) = [gate for gate in found.gates if not gate.passed]
    assert (failed.output, failed.metric, failed.value) == ("y", "nonfinite", 1.0)
    assert failed.reason.startswith("NaN or Inf in 1 of 9 samples, first in eval.npz[6]")
    assert ("FP32 itself" in failed.reason) == (broken == "baseline")


def test_samples_are_joined_when_outputs_keep_them_apart() -> None:
    baseline = model(y=same)
    drift(baseline, model(y=same), dataset())
    assert baseline.sizes == (1, 2, 4, 4, 1)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x.mean(axis=0),  # one row for all samples
        lambda x: np.stack([x, x]),  # layers, then samples: two rows, whatever the batch
        lambda x: np.concatenate([x, x]),  # two rows per sample
    ],
)
def test_samples_run_one_by_one_when_an_output_mixes_them(output: Callable[[Array], Array]) -> None:
    baseline = model(y=same, mixed=output)
    found = drift(baseline, model(y=same, mixed=output), dataset())
    assert baseline.sizes[-9:] == (1,) * 9
    assert found.verdict == "pass"


def test_unbatched_data_runs_one_by_one() -> None:
    baseline = model(y=same)
    drift(baseline, model(y=same), dataset(batched=False))
    assert baseline.sizes == (1,) * 9


def test_a_graph_with_a_batch_of_one_written_inside_runs_one_by_one(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, 12]), "shape")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "one.onnx"
    )
    runner = open_runner(tmp_path / "one.onnx")
    pair = Pair(baseline=runner, candidate=runner, names=("a", "b"))
    found = judged(compare(pair, dataset(), Measure(), emit=silent), ())
    assert (found.verdict, found.samples) == ("pass", 9)


def grouped(samples: Array, size: int, labels: tuple[int, ...] | None = None) -> Dataset:
    """Return the samples as they are fed to a model with a fixed batch."""
    inputs = (TensorSpec(name="x", dtype="float32", shape=(size, 12)),)
    return to_dataset(
        Samples(
            source="eval.npz",
            digest="d",
            ids=tuple(f"eval.npz[{i}]" for i in range(len(samples))),
            peek=lambda i: {"x": Header("float32", samples[i].shape)},
            read=lambda i: {"x": samples[i]},
            labels=labels,
        ),
        inputs,
    )


@pytest.mark.parametrize("size", [2, 4, 9, 16])
@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_fixed_batch_changes_no_metric(size: int, labels: tuple[int, ...] | None) -> None:
    def candidate(x: Array) -> Array:
        return np.roll(x, 1, axis=1) + x

    whole = drift(model(logits=same, y=same), model(logits=candidate, y=candidate), dataset(labels=labels))
    baseline = model(logits=same, y=same)
    found = drift(baseline, model(logits=candidate, y=candidate), grouped(SAMPLES, size, labels))
    assert set(baseline.sizes) == {size}
    assert found.outputs == whole.outputs
    assert (found.samples, found.labelled) == (9, labels is not None)
    assert not any("labels" in warning for warning in found.warnings)


def test_rows_that_fill_the_last_group_are_not_counted() -> None:
    def spoiled(x: Array) -> Array:  # all but the first three rows, whose samples are there three times
        return np.where(np.arange(len(x))[:, None] < 3, x, np.float32(np.nan))

    found = drift(model(y=same), model(y=spoiled), grouped(SAMPLES[:3], 8))
    assert (found.verdict, found.samples) == ("pass", 3)


def test_a_sample_of_a_group_is_named() -> None:
    def spoiled(x: Array) -> Array:
        return np.where((x == SAMPLES[6]).all(axis=1, keepdims=True), np.float32(np.nan), x)

    found = drift(model(y=same), model(y=spoiled), grouped(SAMPLES, 4))
    assert "NaN or Inf in 1 of 9 samples, first in eval.npz[6]" in found.gates[0].reason


def test_progress_counts_the_samples_of_groups() -> None:
    events: list[Event] = []
    pair = Pair(baseline=model(y=same), candidate=model(y=same), names=("a", "b"))
    compare(pair, grouped(SAMPLES, 4), Measure(), emit=events.append)
    assert events == [Progress("compare", done, 9) for done in (4, 8, 9)]


def test_a_group_without_a_row_per_sample_is_one_sample_with_a_note() -> None:
    def mixed(x: Array) -> Array:
        return x.mean(axis=0)

    found = drift(model(logits=same, y=mixed), model(logits=same, y=mixed), grouped(SAMPLES, 4, LABELS))
    assert (found.samples, found.labelled) == (3, False)
    assert found.warnings[-1] == (
        "eval.npz: an output does not have one row per sample of a group, so each group counts as one sample; "
        "labels are not used"
    )


def test_a_custom_metric_gets_the_samples_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_groups.py").write_text(
        "def right(reference, candidate, labels):\n"
        "    return {'right': float((candidate['logits'].argmax(axis=1) == labels).mean()), 'n': len(labels)}\n"
    )
    monkeypatch.chdir(tmp_path)
    pair = Pair(baseline=model(logits=same), candidate=model(logits=same), names=("a", "b"))
    data = grouped(SAMPLES, 4, (*LABELS[:8], LABELS[8] + 1))
    found = compare(pair, data, Measure(metrics=("of_groups:right",)), emit=silent)
    assert found.outputs[-1].values == {"right": pytest.approx(8 / 9), "n": pytest.approx((4 * 4 + 4 * 4 + 1) / 9)}


FOLDERS = ClassList(count=3, what="class folders (a, b, c)")


@pytest.mark.parametrize("size", [None, 4])
def test_labels_that_index_a_list_of_another_length_than_the_scores_are_refused_at_once(size: int | None) -> None:
    data = dataset(labels=LABELS) if size is None else grouped(SAMPLES, size, LABELS)
    baseline = model(logits=same)
    with pytest.raises(DataError, match=r"indices into 3 class folders \(a, b, c\), and output logits has 12 scores"):
        drift(baseline, model(logits=same), replace(data, class_list=FOLDERS))
    assert len(baseline.sizes) <= 3  # the runs that find out whether samples can be joined, and the first batch


@pytest.mark.parametrize(
    "outputs",
    [
        {"logits": same, "few": lambda x: x[:, :3]},  # as many as there are classes
        {"map": lambda x: np.stack([x, x], axis=1)},  # not class scores
        {"ids": lambda x: x.argmax(axis=1).astype(np.int64)},
    ],
)
def test_labels_are_accepted_if_no_scores_contradict_their_list(
    outputs: dict[str, Callable[[Array], Array]],
) -> None:
    found = drift(model(**outputs), model(**outputs), dataset(labels=LABELS, class_list=FOLDERS))
    assert found.samples == 9


def test_an_output_that_is_not_class_scores_does_not_contradict_a_list() -> None:
    pair = Pair(baseline=model(y=same), candidate=model(y=same), names=("a", "b"))
    data = dataset(labels=LABELS, class_list=FOLDERS)
    assert not compare(pair, data, Measure(kinds={"y": "values"}), emit=silent).labelled


def net(folder: Path, name: str, *outputs: tuple[str, float]) -> OrtRunner:
    """Return a runner of a net with these outputs; each is the input, multiplied by its factor."""
    made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 12]) for output, _ in outputs]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", f"{output}_by"], [output]) for output, _ in outputs],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        made,
        [numpy_helper.from_array(np.float32(factor), f"{output}_by") for output, factor in outputs],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / f"{name}.onnx")
    return open_runner(folder / f"{name}.onnx")


def test_two_onnx_files_are_judged_by_their_labels(tmp_path: Path) -> None:
    baseline = net(tmp_path, "fp32", ("logits", 1.0))
    for factor, verdict, accuracy in ((1.1, "pass", 100.0), (-1.0, "fail", 0.0)):
        candidate = net(tmp_path, "typed", ("logits", factor))
        pair = Pair(baseline=baseline, candidate=candidate, names=("fp32.onnx", "typed.onnx"))
        found = judged(compare(pair, dataset(labels=LABELS), Measure(), emit=silent), parse_gates("top1=30%"))
        assert (found.verdict, found.samples, found.labelled) == (verdict, 9, True)
        assert found.outputs[0].values["accuracy_fp32"] == 100.0
        assert found.outputs[0].values["accuracy"] == accuracy
        assert found.baseline_ran.startswith("onnxruntime ")
        assert found.baseline_ran.endswith(", CPU")


def test_two_onnx_files_with_different_outputs_are_refused(tmp_path: Path) -> None:
    baseline, candidate = net(tmp_path, "a", ("y", 1.0), ("z", 1.0)), net(tmp_path, "b", ("y", 1.0))
    with pytest.raises(ModelError, match="the candidate has no output z: its outputs are y"):
        compare(Pair(baseline=baseline, candidate=candidate, names=("a", "b")), dataset(), Measure(), emit=silent)


def test_an_overflow_in_an_onnx_file_is_named_by_its_sample(tmp_path: Path) -> None:
    samples = SAMPLES.copy()
    samples[4] *= 1e38
    baseline, candidate = net(tmp_path, "a", ("y", 1.0)), net(tmp_path, "b", ("y", 10.0))
    pair = Pair(baseline=baseline, candidate=candidate, names=("a", "b"))
    found = judged(compare(pair, dataset(samples), Measure(), emit=silent), parse_gates("cosine=0.9"))
    passed = {gate.metric: gate.passed for gate in found.gates}
    assert (passed["nonfinite"], passed["cosine"]) == (False, True)
    assert found.gates[0].reason == "NaN or Inf in 1 of 9 samples, first in eval.npz[4]"


def test_an_error_of_a_sample_is_raised() -> None:
    def refuse(x: Array) -> Mapping[str, Array]:
        raise DataError("the model cannot take it")

    with pytest.raises(DataError, match="cannot take it"):
        drift(Function(refuse), Function(refuse), dataset())


def test_outputs_are_matched_by_name() -> None:
    found = drift(model(a=same, b=lambda x: 2 * x), model(b=lambda x: 2 * x, a=same), dataset())
    assert [(output.output, output.values["max_abs"]) for output in found.outputs] == [("a", 0.0), ("b", 0.0)]


def test_a_missing_output_is_an_error() -> None:
    with pytest.raises(ModelError, match="the candidate has no output b: its outputs are a"):
        drift(model(a=same, b=same), model(a=same), dataset())


def test_an_output_of_another_shape_is_an_error() -> None:
    with pytest.raises(ModelError, match="output y has another shape in the candidate"):
        drift(model(y=same), model(y=lambda x: x[:, :5]), dataset())


def test_progress_counts_samples_to_the_end() -> None:
    events: list[Event] = []
    pair = Pair(baseline=model(y=same), candidate=model(y=same), names=("a", "b"))
    compare(pair, dataset(), Measure(), emit=events.append, batch=4)
    assert events == [Progress("compare", done, 9) for done in (4, 8, 9)]


def exhausted_beyond(most: int) -> Function:
    def run(x: Array) -> Mapping[str, Array]:
        if len(x) > most:
            raise OutOfMemoryError("memory is exhausted")
        return {"logits": np.tanh(x)}

    return Function(run)


def test_the_batch_is_halved_when_memory_is_exhausted_and_no_sample_is_lost() -> None:
    events: list[Event] = []
    baseline, candidate = model(logits=same), exhausted_beyond(2)
    pair = Pair(baseline=baseline, candidate=candidate, names=("a", "b"))
    found = compare(pair, dataset(labels=LABELS), Measure(), emit=events.append, batch=7)
    assert [event.message for event in events if isinstance(event, Warned)] == [
        "out of memory at batch 7; continuing with batch 4",
        "out of memory at batch 4; continuing with batch 2",
    ]
    assert [event.done for event in events if isinstance(event, Progress)] == [2, 4, 6, 7, 9]
    whole = compare(replace(pair, candidate=exhausted_beyond(9)), dataset(labels=LABELS), Measure(), emit=silent)
    assert found.outputs == whole.outputs


@dataclass
class Shared(Function):
    """A runner that several threads may call; it remembers which did."""

    callers: int = 2
    threads: set[int] = field(default_factory=set)

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        self.threads.add(threading.get_ident())
        return super().run(feed)


@pytest.mark.parametrize("alone", ["baseline", "candidate", "graph", ""])
def test_batches_run_in_other_threads_only_if_no_runner_is_alone(alone: str) -> None:
    runners = {name: Shared(lambda x: {"logits": x}) for name in ("baseline", "candidate", "graph")}
    if alone:  # such as an engine
        runners[alone] = model(logits=same)  # type: ignore[assignment]
    found = compare(Pair(**runners, names=("a", "b")), dataset(batched=False), Measure(), emit=silent)
    assert found.samples == 9
    threads = set.union(*(runner.threads for runner in runners.values() if isinstance(runner, Shared)))
    assert (threads == {threading.get_ident()}) == bool(alone)


def test_a_few_bytes_are_kept_for_each_sample() -> None:
    samples = np.random.default_rng(0).normal(size=(4000, 40)).astype(np.float32)
    labels = tuple(samples.argmax(axis=1).tolist())
    peaks = []
    for count in (1000, 4000):
        data = dataset(samples[:count], labels=labels[:count])
        pair = Pair(baseline=model(logits=same), candidate=model(logits=lambda x: x * 2), names=("a", "b"))
        tracemalloc.start()
        compare(pair, data, Measure(), emit=silent, batch=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 3000 < 120


def test_out_of_memory_for_a_single_sample_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        drift(model(logits=same), exhausted_beyond(0), dataset())


def test_outputs_are_read_as_the_kinds_that_the_user_names() -> None:
    pair = Pair(baseline=model(logits=same), candidate=model(logits=same), names=("a", "b"))
    found = compare(pair, dataset(), Measure(kinds={"logits": "values"}), emit=silent)
    assert [(output.output, output.kind) for output in found.outputs] == [("logits", "values")]


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (Measure(kinds={"y": "valeus"}), "unknown kind of output 'valeus'. Did you mean values?"),
        (Measure(metrics=("no_such_module:metric",)), "--metric no_such_module:metric cannot be imported"),
    ],
)
def test_misspelt_names_are_refused_before_anything_runs(measure: Measure, message: str) -> None:
    baseline = model(y=same)
    with pytest.raises(UsageError) as error:
        compare(Pair(baseline=baseline, candidate=baseline, names=("a", "b")), dataset(), measure, emit=silent)
    assert message in str(error.value)
    assert baseline.sizes == ()


def test_the_batch_does_not_change_the_numbers() -> None:
    results = []
    for batch in (1, 2, 9):
        found = drift(model(logits=same), model(logits=lambda x: np.tanh(x)), dataset(labels=LABELS), batch=batch)
        results.append(found.outputs)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("mixed", ["baseline", "candidate"])
def test_samples_that_a_model_mixes_run_one_by_one(mixed: str) -> None:
    models = {"baseline": model(y=same), "candidate": model(y=same)}
    models[mixed] = model(y=lambda x: x + 0.5 * x.mean(axis=0, keepdims=True))
    drift(models["baseline"], models["candidate"], dataset())
    assert set(models[mixed].sizes[2:]) == {1}
