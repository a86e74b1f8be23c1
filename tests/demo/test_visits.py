"""The files of the page's visitors."""

import pytest

from i3d_jax.demo.visits import Visits


@pytest.fixture
def visits(tmp_path):
    return Visits(tmp_path)


def uploaded(visits, content="a video", name="x.mp4"):
    """A file as Gradio stores it: in a folder that is named by its content."""
    path = visits.served / content.replace(" ", "-") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_visitor_who_leaves_leaves_no_file(visits, tmp_path):
    own = visits.begin("ann", uploaded(visits))
    assert own.name == "x.mp4" and own.read_text() == "a video" and visits.is_here("ann")
    download = visits.download("ann", "x.npz")
    download.write_text("features")
    visits.keep("ann", download)
    assert files_of(visits.served) == ["x.mp4", "x.npz"]
    visits.forget("ann")
    assert files_of(tmp_path) == [] and not visits.is_here("ann")


def test_results_that_are_too_old_are_removed(visits, tmp_path):
    visits.forget_owner_of(visits.begin("ann", uploaded(visits)))
    assert files_of(tmp_path) == [] and not visits.is_here("ann")


def test_a_file_that_two_visitors_uploaded_stays_until_both_have_left(visits, tmp_path):
    upload = uploaded(visits)
    visits.begin("ann", upload)
    own = visits.begin("bob", upload)
    visits.forget("ann")
    assert upload.exists() and own.read_text() == "a video"
    visits.forget("bob")
    assert files_of(tmp_path) == []


def test_another_video_replaces_the_first_and_the_same_one_stays(visits):
    first = uploaded(visits)
    visits.begin("ann", first)
    visits.begin("ann", first)
    assert first.exists()
    second = uploaded(visits, "another", "y.mp4")
    visits.begin("ann", second)
    assert not first.exists() and second.exists()


def test_a_download_that_is_made_again_replaces_the_first(visits):
    visits.begin("ann", uploaded(visits))
    paths = []
    for content in "one", "two":
        paths.append(visits.download("ann", "x.npz"))
        paths[-1].write_text(content)
        visits.keep("ann", paths[-1])
    assert not paths[0].exists() and paths[1].read_text() == "two"


def test_files_of_visitors_who_have_left_are_errors(visits):
    with pytest.raises(FileNotFoundError):
        visits.begin("ann", visits.served / "gone" / "x.mp4")
    assert not visits.is_here("ann")
    late = visits.download("ann", "x.npz")
    late.write_text("late")
    with pytest.raises(FileNotFoundError):
        visits.keep("ann", late)
    assert not late.exists()


def test_the_name_of_a_visitor_leads_to_no_other_folder(visits, tmp_path):
    visits.begin("../../served", uploaded(visits))
    visits.forget("../../served")
    visits.forget("..")
    assert visits.served.exists()


def test_only_the_owner_of_the_process_can_look_into_the_folders(visits):
    assert visits.served.stat().st_mode & 0o077 == 0
