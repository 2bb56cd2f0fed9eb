"""The choice of a TensorRT package, and the reasons why others are not usable."""

import sys

import pytest

from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt import locate
from trtopt.engine.trt.locate import load
from trtopt.engine.trt.versions import RTX
from trtopt.errors import EnvironmentUnableError, UsageError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package `tensorrt` of the given source importable."""

    def make(source):
        folder = tmp_path / "tensorrt"
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        return folder

    yield make
    sys.modules.pop("tensorrt", None)


def test_the_real_rtx_package_is_found():
    trt = tensorrt.find(RTX)
    assert trt.name == RTX
    assert trt.version == trt.module.__version__
    assert (trt.origin / "__init__.py").exists()


def test_a_stub_is_skipped_for_the_next_package(package):
    package("__version__ = '10.14.1'\n")
    assert tensorrt.find().name == RTX


def test_tensorrt_is_preferred_where_there_is_a_gpu(package, monkeypatch):
    folder = package("__version__ = '10.12.0.36'\nBuilder = OnnxParser = object\n")
    monkeypatch.setattr(locate, "has_gpu", lambda: True)
    trt = tensorrt.find()
    assert (trt.name, trt.version, trt.origin) == ("tensorrt", "10.12.0.36", folder)


def test_tensorrt_for_rtx_is_preferred_without_a_gpu(package, monkeypatch):
    package("__version__ = '10.12.0.36'\nBuilder = OnnxParser = object\n")
    monkeypatch.setattr(locate, "has_gpu", lambda: False)
    assert tensorrt.find().name == RTX
    monkeypatch.setitem(sys.modules, RTX, None)
    assert tensorrt.find().name == "tensorrt"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("__version__ = '10.14.1'\n", "is a stub without a builder"),
        ("", "is a stub without a builder"),
        ("__version__ = '8.4.3.1'\nBuilder = OnnxParser = object\n", "8.4.3.1 is too old: 8.5"),
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')\n", "cannot be imported: libnvinfer.so.10"),
        ("import tensorrt_libs_that_are_not_there\n", "lacks its module tensorrt_libs_that_are_not_there"),
    ],
)
def test_the_reason_why_a_package_is_not_usable_is_reported(package, source, reason):
    package(source)
    assert reason in load("tensorrt")
    with pytest.raises(EnvironmentUnableError, match=reason) as error:
        tensorrt.find("tensorrt")
    assert "pip install tensorrt" in error.value.fix


def test_without_a_usable_package_all_reasons_are_listed_and_rtx_is_recommended(package, monkeypatch):
    package("__version__ = '8.4.3.1'\nBuilder = OnnxParser = object\n")
    monkeypatch.setitem(sys.modules, RTX, None)
    with pytest.raises(
        EnvironmentUnableError, match=r"tensorrt_rtx is not installed; tensorrt 8.4.3.1 is too old"
    ) as error:
        tensorrt.find()
    assert "pip install tensorrt-rtx-cu13" in error.value.fix


def test_an_unknown_package_is_a_usage_error():
    with pytest.raises(UsageError, match=r"tensorflow.*Choose tensorrt or tensorrt_rtx"):
        tensorrt.find("tensorflow")
