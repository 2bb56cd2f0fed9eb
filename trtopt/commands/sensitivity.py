"""The command `trtopt sensitivity`: the first half of a conversion, and what quantizing each group costs in accuracy.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from trtopt import stages
from trtopt.commands import checks
from trtopt.commands.calibrate import calibrated
from trtopt.errors import ModelError
from trtopt.events import Emit, silent
from trtopt.plan import ConvertPlan
from trtopt.run import open_run
from trtopt.shapes import named, profile
from trtopt.stages import export as exporting
from trtopt.stages.repair import is_quantized
from trtopt.types import Report


def sensitivity(plan: ConvertPlan, emit: Emit = silent) -> Report:
    """Measure what quantizing each group of nodes costs in accuracy, and return the report.

    The samples of `plan.data` are run, or those of `plan.calib` without it.

    Raises:
        TrtoptError: the input cannot be used, or a stage failed.
    """
    from trtopt.export.source import identify
    from trtopt.graph.unread import unread

    checks.names(plan)
    given = identify(str(plan.source))
    checks.calibrates(plan)
    checks.data_flags(plan, needs_table=True)
    with open_run(plan.run_dir, emit, plan.device, plan.cache) as run:
        run.forget()
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data or plan.calib)
        source = exporting.ready(given, plan.export) or exporting.bring(run, given, wanted)[0]
        source = stages.widen(run, source)
        if is_quantized(source):
            raise ModelError(f"{plan.source} is quantized already", fix="Give the FP32 model")
        ranges, _ = profile(
            source.inputs,
            plan.shapes,
            lambda: stages.sizes((plan.data, plan.calib), source),
            lambda: unread(source.path),
        )
        data, calib = (stages.open_samples(each, source, ranges) for each in (plan.data, plan.calib))
        stages.tell(run.emit, calib, data)
        dataset = data or calib
        assert dataset is not None
        checks.within(dataset, source.inputs, [entry for entry in ranges if entry.name in named(plan.shapes)])
        model, table = calibrated(run, plan, source, ranges, calib)
        assert table is not None
        target = stages.Target(
            precision=plan.precision,
            rest=plan.rest,
            bias_correction=plan.bias_correction and calib is not None,
            keep=plan.keep,
            only=plan.only,
        )
        seen = stages.observe(run, model, calib or dataset, target, table)
        run.shared.clear()
        subject = stages.Subject(baseline=source, model=model, target=target, table=table, seen=seen)
        found = stages.sensitivity(run, subject, dataset)
        return run.finish(
            Report(
                command="sensitivity",
                verdict="unchecked",
                model=str(plan.source),
                precision=plan.precision,
                sensitivity=found,
            )
        )
