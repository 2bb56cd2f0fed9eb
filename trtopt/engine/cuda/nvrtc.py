"""NVRTC of cuda-python, which compiles kernels at run time.

Touches: nothing on disk.
"""

from __future__ import annotations

from trtopt.engine.cuda.backend import CudaError
from trtopt.errors import EnvironmentUnableError, MissingDependencyError
from trtopt.requires import require


def compile(source: str, architecture: tuple[int, int], options: tuple[str, ...]) -> bytes:
    """Compile with NVRTC: to machine code, or to PTX for a GPU that is newer than NVRTC."""
    nvrtc = require("cuda.bindings.nvrtc")
    try:
        _, supported = nvrtc.nvrtcGetSupportedArchs()[:2]
    except RuntimeError as error:
        raise MissingDependencyError(
            "kernels cannot be compiled",
            why="NVRTC cannot be loaded",
            fix="Install it: pip install 'cuda-python[all]', or the CUDA toolkit",
        ) from error
    capability = architecture[0] * 10 + architecture[1]  # 8.6 is 86
    if capability < min(supported):  # CUDA 13 still runs on Volta (7.0), but compiles for 7.5 and later only
        own = require("cuda.bindings").__version__.split(".")[0]
        raise EnvironmentUnableError(
            "kernels cannot be compiled for this GPU",
            why=f"its compute capability is {capability / 10}, and NVRTC supports {min(supported) / 10} and later",
            fix=f"Install an older one: pip install 'cuda-python[all]<{own}'",
        )
    if capability in supported:
        target, image_size, read_image = f"sm_{capability}", nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN
    else:  # the driver compiles PTX of an older architecture for a newer GPU
        newest = max(older for older in supported if older < capability)
        target, image_size, read_image = f"compute_{newest}", nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX
    flags = [flag.encode() for flag in (f"--gpu-architecture={target}", *options)]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        if int(status):
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytearray(size)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CudaError("a CUDA kernel does not compile", why=_first_error(log.decode(errors="replace")))
        image = bytearray(image_size(program)[1])
        read_image(program, image)
        return bytes(image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.strip("\0").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "the compiler gives no reason")
