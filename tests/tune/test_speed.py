"""`--speed engine` and `--if-faster`, with toy engines whose layers take chosen times."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine.toy import TIMES, Runner, Toy, install
from support import CALIB, DIGITS, EVAL, Done

from trtopt.engine import Order
from trtopt.errors import BuildError
from trtopt.types import Engine, EngineFault, EngineLayer

CLI = Callable[..., Done]
REFORMAT = "Reformatting CopyNode"


@dataclass
class Timed(Toy):
    """A machine with a layer per node: INT8 halves its time, but for the `slow` ones; an engine with the `broken` ones
    in INT8 is wrong. The builds numbered in `unbuildable` fail, those in `slower` take three times as long. An engine
    with INT8 has a reformat layer, too.
    """

    slow: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    unbuildable: frozenset[int] = frozenset()
    reformat: float = 0.0
    slower: set[int] = field(default_factory=set)
    lowered: list[set[str]] = field(default_factory=list)

    def build(self, order: Order, out: Path, *, emit: object) -> Engine:
        engine = super().build(order, out, emit=emit)
        if len(self.builds) in self.unbuildable:
            raise BuildError("TensorRT cannot build the network", why="no implementation")
        decisions = order.typed.decisions
        lowered = {each.node for each in decisions if each.precision == "int8"}
        self.lowered.append(lowered)
        if self.broken and {*self.broken} <= lowered:
            self.wrong.add(len(self.builds))
        layers = tuple(
            EngineLayer(name=each.node, type="Cask", precision=each.precision, tactic="", nodes=(each.node,))
            for each in decisions
        )
        if lowered:
            layers += (
                EngineLayer(name=REFORMAT, type="Reformat", precision="", tactic="", nodes=(), apart="reformat"),
            )
        return Engine(**{**{name: getattr(engine, name) for name in engine.__slots__}, "layers": layers})

    def layer_times(self, engine: Engine, feed: Mapping[str, Any], runs: int) -> Mapping[str, Sequence[float]]:
        def ms(layer: EngineLayer) -> float:
            if layer.name == REFORMAT:
                return self.reformat
            return (1.1 if layer.name in self.slow else 0.5) if layer.precision == "int8" else 1.0

        factor = 3 if int(engine.builder.split()[2]) in self.slower else 1
        return {layer.name: [factor * ms(layer)] * runs for layer in engine.layers}

    def open(self, engine: Engine, *, graphs: bool, streams: int = 1) -> Runner:
        return super().open(engine, graphs=graphs, streams=streams)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Timed:
    monkeypatch.setattr("trtopt.stages.speed.SECONDS", 0.01, raising=False)
    toy = Timed(ms={"fp32": 3.0, "fp16": 2.0, "int8": 1.0})
    install(monkeypatch, toy)
    return toy


def arguments(out: Path) -> list[str]:
    return [
        "--calib",
        CALIB,
        "--data",
        EVAL,
        "--samples",
        "64",
        "--method",
        "minmax",
        "--no-equalization",
        "-o",
        str(out),
    ]


def decisions(out: Path) -> dict[str, tuple[str, str]]:
    report = json.loads((out / "report.json").read_text())
    return {each["node"]: (each["precision"], each["reason"]) for each in report["typed"]["decisions"]}


def lowered(out: Path) -> set[str]:
    return {node for node, (precision, _) in decisions(out).items() if precision == "int8"}


def test_what_int8_does_not_make_faster_is_not_quantized(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    assert cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "fast")).code == 0
    names = sorted(lowered(tmp_path / "fast"))
    machine.slow = (names[1],)
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "slow"))
    assert done.code == 0, done.err
    assert lowered(tmp_path / "slow") == {*names} - {names[1]}
    assert decisions(tmp_path / "slow")[names[1]][1] == "INT8 is not faster here: 1.1000 ms, 1.0000 ms without it"


def test_costs_are_those_of_the_layers(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path))
    found = json.loads((tmp_path / "report.json").read_text())["tuning"]
    nodes, groups = len(decisions(tmp_path)), sum(len(group["nodes"]) for group in found["groups"])
    assert found["speed"] == "engine"
    assert found["cost"] == pytest.approx(1 - 0.5 * groups / nodes)  # a layer takes 1 ms in FP16, 0.5 ms in INT8


def test_the_cost_counts_layers_that_belong_to_no_group(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    machine.reformat = 1.0
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path))
    found = json.loads((tmp_path / "report.json").read_text())["tuning"]
    nodes, groups = len(decisions(tmp_path)), sum(len(group["nodes"]) for group in found["groups"])
    assert found["cost"] == pytest.approx((nodes - 0.5 * groups + 1.0) / nodes)


def test_nodes_that_make_the_engine_wrong_are_excluded_and_named(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "right"))
    names = sorted(lowered(tmp_path / "right"))
    machine.broken = (names[0], names[2])
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "wrong"))
    assert done.code == 0, done.err
    kept = {*names} - lowered(tmp_path / "wrong")
    assert len(kept) == 1
    assert kept <= {*machine.broken}
    assert "the engine is wrong with it quantized" in decisions(tmp_path / "wrong")[kept.pop()][1]


def test_a_wrong_engine_is_built_again_before_nodes_are_excluded(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    machine.misled = {1}  # the times of the first build lead to a wrong kernel in INT8
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path))
    assert done.code == 0, done.err
    assert all(group["quantized"] for group in json.loads((tmp_path / "report.json").read_text())["tuning"]["groups"])
    assert (tmp_path / TIMES).read_text() == "3"


def test_the_result_has_the_kernels_of_the_engine_that_was_settled_on(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "all"))
    machine.builds.clear()
    machine.slow = (min(lowered(tmp_path / "all")),)
    machine.reformat = 0.0
    machine.wrong = {3}  # the one without the slow node is timed anew, and is slower than the one with it
    machine.slower = {4}
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "run"))
    assert done.code == 0, done.err
    assert (tmp_path / "run" / TIMES).read_text() == "1"


def test_an_engine_that_cannot_be_built_on_the_way_does_not_end_the_search(
    cli: CLI, machine: Timed, tmp_path: Path
) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "all"))
    names = lowered(tmp_path / "all")
    machine.slow, machine.unbuildable = (min(names),), frozenset({len(machine.builds) + 3})
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "some"))
    assert done.code == 0, done.err
    assert "an engine could not be tried: TensorRT cannot build the network" in done.err
    assert lowered(tmp_path / "some") == names


def test_nothing_is_quantized_if_the_engine_stays_wrong(
    cli: CLI, machine: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "all"))
    machine.broken = (min(lowered(tmp_path / "all")),)
    nothing = EngineFault(reason="nothing was found")
    monkeypatch.setattr(importlib.import_module("trtopt.stages.timing"), "find", lambda *_: nothing)
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "none"))
    assert done.code == 0, done.err
    assert lowered(tmp_path / "none") == set()
    assert any(
        reason.startswith("the engine is wrong with INT8") for _, reason in decisions(tmp_path / "none").values()
    )


@pytest.mark.parametrize("command", [("tune", "--speed", "engine"), ("convert", "-p", "int8", "--if-faster")])
def test_nothing_is_quantized_if_the_engine_as_a_whole_is_not_faster(
    command: tuple[str, ...], cli: CLI, machine: Timed, tmp_path: Path
) -> None:
    machine.reformat = 100.0
    done = cli(command[0], DIGITS, *command[1:], *arguments(tmp_path))
    assert done.code == 0, done.err
    assert lowered(tmp_path) == set()
    reasons = {reason for _, reason in decisions(tmp_path).values()}
    assert any(reason.startswith("INT8 is not faster as a whole: the layers of its engine take ") for reason in reasons)
    print(done.out)


def test_a_conversion_offers_the_same(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    assert cli("convert", DIGITS, "-p", "int8", "--if-faster", *arguments(tmp_path / "all")).code == 0
    names = sorted(lowered(tmp_path / "all"))
    machine.slow = tuple(names)
    assert cli("convert", DIGITS, "-p", "int8", "--if-faster", *arguments(tmp_path / "none")).code == 0
    assert lowered(tmp_path / "none") == set()


def test_a_second_run_builds_no_engine_again(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path))
    before = len(machine.builds)
    assert cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path)).code == 0
    assert len(machine.builds) == before


@pytest.mark.parametrize("command", [("tune", "--speed", "engine"), ("convert", "-p", "int8", "--if-faster")])
def test_without_a_gpu_it_is_refused_at_once(command: tuple[str, ...], cli: CLI, tmp_path: Path) -> None:
    done = cli(command[0], DIGITS, *command[1:], *arguments(tmp_path / "run"))
    assert done.code == 3
    assert f"{' '.join(command[-2:]).removeprefix('int8 ')} is not possible: there is no GPU here" in done.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_lists_the_engines_that_would_be_timed(cli: CLI, machine: Timed, tmp_path: Path) -> None:
    done = cli("tune", DIGITS, "--speed", "engine", *arguments(tmp_path / "run"), "--dry-run")
    assert done.code == 0, done.err
    assert "timing" in done.out
    assert machine.builds == []
