"""`trtopt export`: a framework's model to ONNX, compared with the framework.

Touches: the run directory, through the store; the ONNX file.
"""

from __future__ import annotations

from trtopt.errors import UsageError
from trtopt.events import Emit, silent
from trtopt.plan import ExportOnlyPlan
from trtopt.run import open_run
from trtopt.stages import export as exporting
from trtopt.types import Report, Verdict


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
    with open_run(plan.run_dir, emit, plan.device, plan.cache) as run:
        run.forget()
        wanted = exporting.Wanted(plan=plan.export, shapes=plan.shapes, data=plan.data)
        model, parity = exporting.bring(run, given, wanted)
        if plan.cache != "show":
            copy(model.path, plan.out)
        # Drift that is not allowed has raised an error.
        verdict: Verdict = parity.verdict if parity.verdict == "pass" else "unchecked"
        return run.finish(Report(command="export", verdict=verdict, model=str(plan.source), parity=parity))
