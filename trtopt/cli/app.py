"""The way into the program, and the exit code of whatever can end it.

    0 pass    1 a gate failed    2 usage, input or stage error    3 this machine cannot do it
    4 a gate that the user asked for is inconclusive    130 interrupted

Touches: nothing itself. Before the first `try` it imports nothing but what is quick: Ctrl-C is answered from there on.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

from trtopt.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PASS, TrtoptError

INTERRUPTED = "interrupted; finished stages are kept, and the next run goes on from there"


def main() -> None:
    """Run the command line; every way out has its exit code, and 1 means nothing but a failed gate."""
    try:
        _own_stdout()
        from trtopt.cli.commands import app

        code = app(standalone_mode=False) or EXIT_PASS  # the code of a typer.Exit, and 130 after Ctrl-C
        sys.stdout.flush()
    except SystemExit as leave:
        # How typer and rich end the program when the reader of stdout went away. Verdicts are not lost in this way:
        # `finish` and `Narrator` see to it.
        if isinstance(leave.__context__, BrokenPipeError):
            sys.exit(EXIT_PASS)
        sys.exit(leave.code if leave.code in (EXIT_PASS, EXIT_INTERRUPTED) else EXIT_ERROR)  # 0: shell completion
    except TrtoptError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    except OSError as error:  # stdout on a full disk, a file system that went away
        _complain(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command-line library
            error.show()
            sys.exit(EXIT_ERROR)
        if os.environ.get("TRTOPT_DEBUG"):
            raise
        text = next(iter(str(error).splitlines()), "")
        _complain(
            f"internal error: {type(error).__name__}: {text}. This is a defect of trtopt: "
            "run again with TRTOPT_DEBUG=1 for the traceback"
        )
        sys.exit(EXIT_ERROR)
    if code == EXIT_INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not break into the message and the way out
        _complain(INTERRUPTED)
    sys.exit(code)


def _own_stdout() -> None:
    """Keep stdout for the result: what libraries in C++ print there (TensorRT's builder does) goes to stderr."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (AttributeError, OSError, io.UnsupportedOperation):  # closed, or not a file: nothing of ours to protect
        return
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    # Names that no console font or encoding can show are escaped: a report must not die of a model's names.
    stream = io.TextIOWrapper(os.fdopen(ours, "wb"), sys.stdout.encoding, "backslashreplace", line_buffering=True)
    sys.stdout = stream


def _complain(line: str) -> None:
    from rich.markup import escape

    from trtopt.cli.console import stderr_console

    with contextlib.suppress(SystemExit, OSError):  # nobody reads stderr: the exit code says it all the same
        stderr_console().print(f"[bold red]error:[/] {escape(line)}")


if __name__ == "__main__":
    main()
