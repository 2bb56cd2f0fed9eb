"""`trtopt export`: a framework's model to ONNX, compared with the framework.

Touches: the run directory, through the store; the ONNX file.
"""

from __future__ import annotations

from trtopt import stages
from trtopt.errors import UsageError
from trtopt.events import Emit, silent
from trtopt.plan import ExportOnlyPlan
from trtopt.rehearsal import open_for
from trtopt.stages import export as exporting
from trtopt.stages import report as reporting
from trtopt.types import (
    Report,
)


def export(plan: ExportOnlyPlan, emit: Emit = silent) -> Report:
    """Export a framework's model to ONNX, and compare the two.

    Raises:
        TrtoptError: the model cannot be exported, or the export drifted.
    """
    from trtopt.export.source import identify
    from trtopt.graph.file import copy

    given = identify(str(plan.source))
    if exporting.ready(given, plan.export) is not None:
        raise UsageError(f"{plan.source} is already ONNX", fix="Pass it to trtopt convert")
    said: reporting.Said = []
    with open_for(plan.run_dir, emit, plan.cache) as store:
        reporting.forget(store)
        context = stages.Context(store=store, emit=reporting.recording(emit, said), device=plan.device)
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data)
        model, parity = exporting.bring(context, given, wanted)
        if plan.cache != "show":
            copy(model.path, plan.out)
        report = Report(
            schema_version=reporting.REPORT_SCHEMA,
            command="export",
            verdict=parity.verdict if parity.verdict == "pass" else "unchecked",  # drift that is not allowed has raised
            model=str(plan.source),
            precision="",
            run_dir=store.root,
            stages=tuple(store.outcomes),
            typed=None,
            engine=None,
            comparison=None,
            warnings=reporting.warnings(said),
            notes=reporting.notes(said),
            environment=stages.environment(),
            parity=parity,
        )
        reporting.write(store, report)
    return report
