"""Entry point of the program, and its exit codes.

    0 pass    1 a gate failed    2 usage, input or stage error    3 not possible on this machine
    4 a requested gate is inconclusive    130 interrupted    143 terminated

Touches: nothing itself. It imports only fast modules before the first `try`, from where on Ctrl-C is handled.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from trtopt.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PASS, EXIT_TERMINATED, TrtoptError

_STOPPED = {EXIT_INTERRUPTED: "interrupted", EXIT_TERMINATED: "terminated"}


def main() -> None:
    """Run the command line and exit with the code of its outcome; 1 always means a failed gate."""
    terminated = []

    def terminate(*_: object) -> None:
        terminated.append(True)
        raise KeyboardInterrupt  # SIGTERM ends a run in the same way as Ctrl-C

    signal.signal(signal.SIGTERM, terminate)
    # The idle threads of NumPy's OpenBLAS spin for 2^26 cycles before they sleep, which costs each core of the machine
    # tens of milliseconds for nothing. 2^4 cycles, the least that OpenBLAS takes, change no result.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    gc.disable()  # imports create many objects and hardly any garbage
    try:
        _own_stdout()
        from trtopt.cli import trtexec
        from trtopt.cli.commands import app

        gc.freeze()
        gc.enable()
        trtexec.refuse(sys.argv[1:])
        code = app(standalone_mode=False) or EXIT_PASS  # the code of a typer.Exit, and 130 after Ctrl-C
        sys.stdout.flush()
    except SystemExit as leave:
        # typer and rich end the program this way when the reader of stdout went away. `finish` and `Narrator` ensure
        # that the verdict is not lost.
        if isinstance(leave.__context__, BrokenPipeError):
            sys.exit(EXIT_PASS)
        sys.exit(leave.code if leave.code in (EXIT_PASS, EXIT_INTERRUPTED) else EXIT_ERROR)  # 0: shell completion
    except TrtoptError as error:
        code = EXIT_TERMINATED if terminated and error.exit_code == EXIT_INTERRUPTED else error.exit_code
        _fail(str(error), code, shown=error.shown)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    except OSError as error:  # stdout on a full disk, a file system that went away
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), EXIT_ERROR)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "show"):  # raised by the command-line library
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # the help
                _fail(error.format_message(), EXIT_ERROR, on_stderr=False)
            _fail(_usage_error(error), EXIT_ERROR)
        if os.environ.get("TRTOPT_DEBUG"):
            raise
        text = next(iter(str(error).splitlines()), "")
        line = f"internal error: {type(error).__name__}: {text}. This is a bug in trtopt: "
        _fail(line + "run again with TRTOPT_DEBUG=1 for the traceback", EXIT_ERROR)
    if code == EXIT_INTERRUPTED:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # another one must not interrupt the message and the exit
        code = EXIT_TERMINATED if terminated else code
        _complain(f"{_STOPPED[code]}; run again to resume after the last completed stage")
    sys.exit(code)


def _usage_error(error: Any) -> str:
    """Return an error of the command-line library as one line, which names the help of the command."""
    message = error.format_message().rstrip(".")
    end = "" if message.endswith("?") else "."
    context = getattr(error, "ctx", None)
    command = f" {context.info_name}" if context is not None and context.parent is not None else ""
    return f"{message[:1].lower()}{message[1:]}{end} See trtopt{command} --help"


def _fail(line: str, code: int, *, shown: bool = False, on_stderr: bool = True) -> NoReturn:
    """Report an error on stderr and, unless it is `shown` there, on stdout in the format asked for; then exit."""
    if on_stderr:
        _complain(line)
    if not shown:
        from trtopt.cli.show import asked_format, failed

        arguments = sys.argv[1:]
        command = next((word for word in arguments if not word.startswith("-")), "")
        try:
            failed(line, code, asked_format(arguments, os.environ), command)
            sys.stdout.flush()
        except OSError:  # the error may be that stdout is full: what is left would fail again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _own_stdout() -> None:
    """Reserve stdout for the result: the output of C++ libraries (such as TensorRT's builder) goes to stderr."""
    if sys.stdout is None:  # the program was started without one (`>&-`)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    try:
        if sys.stdout.fileno() != 1:
            return
    except (AttributeError, OSError, io.UnsupportedOperation):  # closed, or not a file
        return
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    # Names that the encoding cannot represent are escaped, so that a model's names cannot make a report fail.
    stream = io.TextIOWrapper(os.fdopen(ours, "wb"), sys.stdout.encoding, "backslashreplace", line_buffering=True)
    sys.stdout = stream


def _complain(line: str) -> None:
    from rich.markup import escape

    from trtopt.cli.console import stderr_console

    with contextlib.suppress(SystemExit, OSError):  # if nobody reads stderr, the exit code remains
        stderr_console().print(f"[bold red]error:[/] {escape(line)}")


if __name__ == "__main__":
    main()
