"""The published ways to compute FVD, as a table: what each does to videos before the distance."""

from typing import NamedTuple

SAMPLINGS = {
    "first": "the first clip of each video",
    "random": "a clip of each video, at random",
    "all": "all consecutive clips of each video",
}


class Convention(NamedTuple):
    """How an implementation computes the Fréchet Video Distance.

    The root is always computed exactly, in float64 (`frechet`).

    Attributes:
      code: the implementation.
      resize: one of `resizing.RESIZES`.
      norm_epsilon: of the network's batch norm.
      ddof: covariances are divided by N - ddof.
      clips: of real videos, one of SAMPLINGS.
      generated_clips: of generated videos.
      number: of real clips at most, in the sorted order of the videos; None is all.
      generated_number: of generated clips at most.
      frames: of a clip.
      layer: of the network; its activations are averaged over space and time.
      resolution: of the square frames that videos become before; None: they stay as they are.
      root: how the implementation takes the root of the product of covariances.
      unknown: what of it is not known, and what is taken instead.
    """

    code: str
    resize: str
    norm_epsilon: float
    ddof: int
    clips: str = "first"
    generated_clips: str = "first"
    number: int | None = None
    generated_number: int | None = None
    frames: int = 16
    layer: str = "Logits"
    resolution: int | None = None
    root: str = ""
    unknown: str = ""


# From the implementations' source; docs/howto/fvd.md says where.
CONVENTIONS = {
    "reference": Convention(
        "google-research/google-research, frechet_video_distance",
        resize="legacy",
        norm_epsilon=1e-3,
        ddof=1,
        root="SVD in float64, singular values below 1e-10 not rooted",
    ),
    "stylegan-v": Convention(
        "universome/stylegan-v, fvd2048_16f",
        resize="half-pixel",
        norm_epsilon=1e-3,
        ddof=0,
        clips="random",
        number=2048,
        generated_number=2048,
        root="scipy.linalg.sqrtm in float64",
        unknown="its network is a file whose resize and epsilon are not public: half-pixel "
        "bilinear and 0.001 are assumed",
    ),
    "videogpt": Convention(
        "wilson1yan/VideoGPT",
        resize="crop",
        norm_epsilon=1e-5,
        ddof=1,
        number=256,
        generated_number=256,
        root="SVD in float32",
        unknown="its mean over several draws of 256 videos is not taken",
    ),
    "tats": Convention(
        "songweige/TATS",
        resize="half-pixel",
        norm_epsilon=1e-5,
        ddof=1,
        number=2048,
        generated_number=2048,
        root="SVD in float32",
    ),
    "cd-fvd": Convention(
        "songweige/content-debiased-fvd, model i3d",
        resize="half-pixel",
        norm_epsilon=1e-5,
        ddof=0,
        clips="random",
        generated_clips="random",
        generated_number=2048,
        resolution=256,
        root="scipy.linalg.sqrtm in float64",
        unknown="its random draws; it draws again from fewer than 2048 generated videos, "
        "which is not done here",
    ),
}
# Other distances on other features of the same network; not FVD.
VARIANTS = {
    "vfid": Convention(
        "npurson/fid-metrics, VFID-I3D of virtual try-on",
        resize="half-pixel",
        norm_epsilon=1e-3,
        ddof=1,
        clips="all",
        generated_clips="all",
        frames=10,
        layer="AvgPool",
        root="scipy.linalg.sqrtm in float64",
        unknown="its resize and ddof: half-pixel bilinear and 1 are assumed",
    ),
}
