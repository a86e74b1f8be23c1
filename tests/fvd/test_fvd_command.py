"""`python -m i3d_jax.fvd`: its numbers, its words, and the mistakes of its users."""

import json

import numpy as np
import pytest
from support.small_features import save_video
from support.small_fvd import save_weights

from i3d_jax import fvd
from i3d_jax.fvd import __main__ as command
from i3d_jax.fvd.conventions import CONVENTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sets of videos and of arrays, and the weights of a small network."""
    folder = tmp_path_factory.mktemp("sets")
    save_weights(folder)
    rng = np.random.default_rng(0)
    for name, number in (("a", 20), ("b", 20), ("few", 3)):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (number, 16, 32, 40, 3), np.uint8))
    for number in range(19):
        save_video(folder / "videos" / f"{number:02d}.mp4", 18 + number % 3, number)
    (folder / "videos" / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """A function that runs the command on sets of the folder: status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def call(*arguments, weights="small.safetensors"):
        try:
            status = command.main([*map(str, arguments), "--weights", weights])
        except SystemExit as end:
            status = end.code
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_number_is_the_distance_of_the_logits(run, folder):
    status, out, err = run("a.npy", "b.npy")
    assert status == 0
    real, generated = (
        fvd.features(np.load(folder / name), weights=str(folder / "small.safetensors"))
        for name in ("a.npy", "b.npy")
    )
    first, second = out.splitlines()
    assert first.startswith(f"FVD {fvd.distance(real, generated):.2f} ± ")
    settings = (
        "(reference: small.safetensors Logits; 16 frames; the first clip of each video; 32x32, "
        "aspect ratio not kept, TensorFlow 1's legacy bilinear, no antialias; "
        "batch-norm epsilon 0.001; ddof 1; N 20 real, 20 generated; i3d_jax "
    )
    assert settings in first
    assert second.startswith(f"KVD {fvd.kernel_distance(real, generated).distance:.4g} (reference;")
    assert "20 real clips: 256 at least are advised" in err


def test_all_conventions_are_an_object_a_line(run, folder):
    status, out, err = run("a.npy", "b.npy", "--convention", "all", "--json", "--bootstrap", 5)
    assert status == 0
    found = {each["convention"]: each for each in map(json.loads, out.splitlines())}
    assert [*found] == [*CONVENTIONS]
    for name, row in CONVENTIONS.items():
        features = [
            fvd.features(np.load(folder / each), name, weights=str(folder / "small.safetensors"))
            for each in ("a.npy", "b.npy")
        ]
        one = found[name]
        assert one["fvd"] == pytest.approx(fvd.distance(*features, ddof=row.ddof), rel=1e-9)
        assert one["fvd"] == one["means_term"] + one["covariances_term"]
        assert one["low"] <= one["fvd"] <= one["high"] and one["standard_error"] > 0
        assert one["real"]["clips"] == one["generated"]["clips"] == 20
        assert one["real"]["settings"]["norm_epsilon"] == row.norm_epsilon
        assert row.unknown in " ".join(one["warnings"])
    # What is true of all is said once.
    assert err.count("20 real clips") == 1


def test_saved_sets_give_the_same_number(run):
    _, wanted, _ = run("a.npy", "b.npy", "--json")
    assert run("a.npy", "--save", "out/a.npz")[:2] == (0, "out/a.npz: reference, 20 clips\n")
    for number in 1, 2, 3:
        assert run("b.npy", "--save", f"b{number}.npz", "--shard", f"{number}/3")[0] == 0
    assert run("b1.npz", "b2.npz", "b3.npz", "--save", "b.npz")[0] == 0
    _, out, _ = run("out/a.npz", "b.npz", "--json")
    for key in "fvd", "kvd":
        assert json.loads(out)[key] == pytest.approx(json.loads(wanted)[key], rel=1e-9)
    status, _, err = run("a.npy", "few.npy", "--save", "both.npz", "--frames", 9)
    assert status == 0
    status, _, err = run("out/a.npz", "both.npz", "--save", "c.npz")
    assert (
        status == 2 and "both.npz: reference was measured with frames 9, out/a.npz with 16" in err
    )
    _, out, _ = run("out/a.npz", "b.npz", "--extrapolate", "--bootstrap", 0)
    assert "\nfor infinitely many clips " in out
    assert run("a.npy", "--save", "statistics.npz", "--statistics-only")[0] == 0
    status, _, err = run("statistics.npz", "b.npz", "--extrapolate")
    assert status == 2 and "--extrapolate needs features" in err
    _, out, _ = run("statistics.npz", "b.npy", "--json")
    assert json.loads(out)["fvd"] == pytest.approx(json.loads(wanted)["fvd"], rel=1e-9)
    assert "kvd" not in json.loads(out)


def test_sets_that_were_measured_in_different_ways_are_not_compared(run):
    assert run("a.npy", "--save", "c.npz", "--frames", 9)[0] == 0
    status, out, err = run("c.npz", "b.npy")
    assert (status, out) == (2, "")
    assert "c.npz: reference was measured with frames 9, and 16 is asked for" in err
    status, out, err = run("c.npz", "b.npy", "--allow-different")
    assert status == 0 and "the sets differ: frames 9 and 16" in err
    status, _, err = run("c.npz", "b.npy", "--convention", "tats")
    assert status == 2 and "c.npz: has no tats; it has reference" in err


def test_videos_that_cannot_be_used_are_named_and_the_rest_is_measured(run):
    status, out, err = run("videos", "b.npy", "--bootstrap", 2)
    assert status == 1 and "N 19 real, 20 generated" in out
    assert "videos/bad.mp4: cannot be decoded" in err
    assert "videos: 1 of 20 videos cannot be used" in err
    assert "19 real and 20 generated clips: the bias depends on both" in err
    status, out, err = run("videos", "b.npy", "--strict")
    assert (status, out) == (2, "") and "videos/bad.mp4" in err
    status, out, _ = run("videos", "b.npy", "--frames", 20, "--bootstrap", 0, "--number", 5)
    assert status == 2  # The arrays have 16 frames.


def test_what_makes_the_number_less_is_said(run, folder):
    copies = np.load(folder / "a.npy")[[0, 0, 1, 2, 3]]
    copies[2] = 7
    np.save(folder / "copies.npy", copies)
    _, _, err = run("a.npy", "copies.npy", "--bootstrap", 0)
    for text in (
        "1 of 5 generated clips are copies of others",
        "1 of 5 generated clips do not move",
        "4 of 5 generated clips are equal to real ones",
        "20 real and 5 generated clips: the bias depends on both",
        "5 of 5 generated videos have a short side of 112 pixels or less",
    ):
        assert text in err
    _, _, err = run("a.npy", "videos", "--bootstrap", 0)
    assert "real and generated videos have other lengths in frames: 16 and 18 to 20" in err


def test_another_layer_is_another_distance(run):
    _, out, _ = run("a.npy", "b.npy", "--convention", "vfid", "--bootstrap", 0)
    assert out.startswith("VFID ") and "AvgPool; 10 frames; all consecutive clips" in out
    _, out, _ = run("a.npy", "b.npy", "--layer", "Mixed_5c", "--bootstrap", 0)
    assert out.startswith("FVD ") and "small.safetensors Mixed_5c" in out


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["a.npy"], "1 sets, wanted two, real and generated, or --save FILE.npz"),
        (["a.npy", "b.npy", "few.npy"], "3 sets, wanted two"),
        (["a.npy", "none"], "none: no such file or folder"),
        (["a.npy", "none/x:test"], "no data set is called 'none/x'"),
        (["a.npy", "b.npy", "--frames", "8"], "clips of 8 frames, but i3d needs 9 at least"),
        (["a.npy", "b.npy", "--shard", "1/2"], "--shard is for --save"),
        (["a.npy", "--save", "x.npy"], "wanted a name that ends with .npz"),
        (
            ["a.npy", "--save", "x.npz", "--shard", "1/2", "--convention", "tats"],
            "give --number all",
        ),
        (["a.npy", "b.npy", "--number", "0"], "'0' is not a positive whole number"),
        (["a.npy", "b.npy", "--bootstrap", "1"], "--bootstrap 1: wanted 0, or 2 at least"),
        (["a.npy", "b.npy", "--layer", "Mixed_9z"], "has no layer 'Mixed_9z'"),
        (["a.npy", "b.npy", "--number", "1"], "1 features have no covariance"),
        (["a.npy", "b.npy", "--frames", "17"], "none of 20 videos can be used"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1] and "Traceback" not in err


def test_weights_of_flow_are_refused(run, folder):
    from support import small_features

    small_features.save_weights(folder, "flow")
    status, _, err = run("a.npy", "b.npy", weights="flow.safetensors")
    assert status == 2 and "flow.safetensors" in err


def test_the_loader_of_files_is_said_where_it_was_used(run):
    flags = "--convention", "cd-fvd", "--bootstrap", 0, "--resolution", 48
    loaded = "48x48 antialiased and cropped, then "
    assert loaded not in run("a.npy", "b.npy", *flags)[1]
    assert f"; (real), {loaded}(generated) 32x32" in run("a.npy", "videos", *flags)[1]
    assert run("videos", "--save", "v.npz", *flags[:2], *flags[4:])[0] == 1
    status, out, _ = run("v.npz", "videos", *flags)
    assert status == 1 and f"; {loaded}32x32" in out
    status, _, err = run("v.npz", "a.npy", *flags[:4], "--resolution", 40)
    assert status == 2 and "was measured with resolution 48, and 40 is asked for" in err
