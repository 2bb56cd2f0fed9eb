"""`trtopt watch`: show the state of all GPUs, live and as Prometheus text.

Touches: prints on stdout; a TCP port with `--listen`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.cli.options import Format

if TYPE_CHECKING:
    from contextlib import ExitStack

    from rich.table import Table

    from trtopt.bench.watch import Seen


def watch(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run directory: show its batch size that would fit now.", show_default=False),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.1)] = 1.0,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve Prometheus text at /metrics: 127.0.0.1:9400.")
    ] = None,
    triton: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Watch the models of a Triton server instead: http://HOST:8002."),
    ] = None,
    alert: Annotated[
        list[str] | None,
        typer.Option(
            help="For --triton: end with exit code 1 if a model breaks a limit: "
            "latency_p99=20ms,queue_mean=5ms,throughput=50,failed=0,pending=100."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="For --triton: watch this model only.", show_default=False)] = None,
    once: Annotated[bool, typer.Option("--once", help="Read once, print, and exit.")] = False,
    format: Annotated[Format, typer.Option(help="text or json; json prints one object per reading.")] = Format.text,
) -> None:
    """Show memory, utilization, temperature, power, clock and PCIe traffic of every GPU, or of a server's models.

    It ends with Ctrl-C. Exits 3 if this machine has no GPU or the server does not answer, and 1 on an --alert. With
    --listen and without a terminal, it serves and prints nothing.
    """
    from contextlib import ExitStack

    from trtopt.bench import prometheus
    from trtopt.bench.watch import Seen, fits, measured_limit, opened, read
    from trtopt.cli.console import stderr_console
    from trtopt.errors import EXIT_INTERRUPTED, UsageError

    if format not in (Format.text, Format.json):
        raise UsageError(f"watch does not support --format {format.value}", fix="Choose text or json")
    if triton is not None:
        from trtopt.cli import watch_triton

        watch_triton.watch(triton, alert or [], model, interval=interval, once=once, as_json=format is Format.json)
    if once and listen:
        raise UsageError(
            "--once and --listen cannot be combined",
            why="the server would stop after one reading",
            fix="Leave out one of them",
        )
    address = prometheus.parse_address(listen) if listen else None
    limit = measured_limit(run) if run else None
    try:
        with opened() as module, ExitStack() as held:

            def look() -> Seen:
                gpus = read(module)
                return Seen(gpus=gpus, fits=fits(limit, gpus) if limit else ())

            if address is not None:
                server = prometheus.serving(address, lambda: prometheus.exposition(look(), str(run)))
                stderr_console().print(f"serving {held.enter_context(server)}", markup=False)
            show = _shower(held, format, quiet=address is not None)
            while True:
                show(look())
                if once:
                    return
                time.sleep(interval)
    except KeyboardInterrupt:  # the normal end: nothing was lost, so no message is needed
        raise SystemExit(EXIT_INTERRUPTED) from None


def _shower(held: ExitStack, format: Format, *, quiet: bool) -> Callable[[Seen], None]:
    """Return a function that prints a reading: as a line of JSON, or as a table, which a terminal updates in place."""
    from rich.console import Console
    from rich.live import Live

    if format is Format.json:
        return _print_json
    console = Console(highlight=False)
    if console.is_terminal:
        live = held.enter_context(Live(console=console, auto_refresh=False))
        return lambda seen: live.update(_table(seen), refresh=True)
    return (lambda _: None) if quiet else (lambda seen: console.print(_table(seen)))


def _print_json(seen: Seen) -> None:
    import json

    from trtopt.codec import encode

    print(json.dumps({"schema_version": 1, **encode(seen)}), flush=True)


def _table(seen: Seen) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("GPU", overflow="fold")
    for column in ("memory", "busy", "temp", "power", "clock", "PCIe GB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for gpu in seen.gpus:
        has = gpu.readings.get
        table.add_row(
            escape(f"{gpu.index} {gpu.name.removeprefix('NVIDIA ')}"),
            _of((has("memory_used"), has("memory_total")), 2**30, "GiB", 1),
            _of((has("utilisation"),), 0.01, "%"),
            _of((has("temperature"),), 1, "°C"),
            _of((has("power"), has("power_limit")), 1, "W"),
            _of((has("sm_clock"),), 1e6, "MHz"),
            _of((has("pcie_in"), has("pcie_out")), 1e9, "", 1).strip(),
        )
    if seen.fits:
        table.caption = "\n".join(f"GPU {fit.gpu}: batch {fit.batch} fits now: {escape(fit.why)}" for fit in seen.fits)
        table.caption_justify = "left"
    return table


def _of(values: tuple[float | None, ...], unit: float, name: str, digits: int = 0) -> str:
    """Format as `312 / 700 W`, with a dash for what the GPU does not report."""
    if all(value is None for value in values):
        return "–"
    return " / ".join("–" if value is None else f"{value / unit:,.{digits}f}" for value in values) + f" {name}"
