"""Data sets in a remote store (fsspec's memory file system), copied to the cache and read there."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from i3d_jax import datasets
from i3d_jax.datasets import description, moving_shapes, remote
from i3d_jax.datasets.__main__ import main

URL = "memory://bucket/prepared"
NAME = "moving_shapes/images"
VERSION = str(moving_shapes.MovingShapes.VERSION)
FOLDER = f"/bucket/prepared/moving_shapes/images/{VERSION}"
RECORDS = [
    f"moving_shapes-{split}.array_record-00000-of-00001" for split in ("train", "validation")
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder of a small data set, prepared locally."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_shapes, "CLIPS_PER_CLASS", {"images": {"train": 2, "validation": 1}})
        datasets.prepared(NAME, str(folder))
    return folder


@pytest.fixture
def there(here, tmp_path, monkeypatch):
    """The store with that data set, and the files copied from it so far; the cache is empty."""
    monkeypatch.setenv("I3D_JAX_CACHE", str(tmp_path))
    system = fsspec.filesystem("memory")
    system.put(str(here / NAME), f"/bucket/prepared/{NAME}", recursive=True)
    copied, get_file = [], MemoryFileSystem.get_file

    def counted(self, path, *more, **options):
        copied.append(path.rpartition("/")[2])
        return get_file(self, path, *more, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    yield system, copied
    system.rm("/bucket", recursive=True)


def same(builder, here):
    own = datasets.available(NAME, str(here))
    return all(
        list(builder.records(split)) == list(own.records(split))
        for split in ("train", "validation")
    )


def left(tmp_path):
    """The names of the data set's files in the cache, temporary ones included."""
    return {path.name for path in tmp_path.rglob(f"{VERSION}/*")}


@pytest.mark.parametrize("url", [URL, f"{URL}/"])
def test_a_builder_copies_what_describes_the_data_and_no_records(url, there, tmp_path):
    builder = datasets.builder(NAME, url)
    assert builder.class_names == tuple(moving_shapes.SHAPES)
    assert (
        builder.statistics["train"]["used"] == 8
        and builder.info.splits["validation"].num_examples == 4
    )
    assert left(tmp_path) == {*description.FILES, description.CHECKSUMS, "rejected.csv"}


def test_records_are_copied_when_they_are_wanted(here, there, tmp_path):
    _, copied = there
    assert same(datasets.prepared(NAME, URL), here)
    assert sorted(copied) == sorted(left(tmp_path) - {remote.COMPLETE}) and set(RECORDS) < set(
        copied
    )


def test_what_is_copied_is_used_without_looking_there_again(here, there):
    system, copied = there
    datasets.prepared(NAME, URL)
    system.rm("/bucket", recursive=True)
    system.mkdir("/bucket")
    copied.clear()
    assert same(datasets.prepared(NAME, URL), here)
    assert same(datasets.available(NAME, f"{URL}/"), here) and copied == []


@pytest.mark.parametrize("partly", [False, True])
def test_an_interrupted_copy_goes_on_without_copying_whole_files_again(
    partly, here, there, tmp_path, monkeypatch
):
    _, copied = there
    get_file = MemoryFileSystem.get_file

    def broken(self, path, local, **options):
        if path.endswith(RECORDS[1]):
            if partly:
                with open(local, "wb") as file:
                    file.write(b"what came")
            raise OSError("the network is gone")
        return get_file(self, path, local, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", broken)
        with pytest.raises(OSError, match="the network is gone"):
            datasets.prepared(NAME, URL)
    assert RECORDS[0] in left(tmp_path) and not {RECORDS[1], remote.COMPLETE} & left(tmp_path)
    assert not [name for name in left(tmp_path) if RECORDS[1] in name]
    copied.clear()
    assert same(datasets.prepared(NAME, URL), here)
    assert copied == [RECORDS[1]]


def test_a_file_that_comes_short_is_an_error_and_is_not_kept(here, there, tmp_path, monkeypatch):
    def short(self, path, local, **options):
        with open(local, "wb") as file:
            file.write(self.cat_file(path)[:-1])

    datasets.builder(NAME, URL)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", short)
        with pytest.raises(ValueError, match=rf"{FOLDER}/{RECORDS[0]}: \d+ bytes came, wanted \d+"):
            datasets.prepared(NAME, URL)
    assert not [
        name for name in left(tmp_path) if RECORDS[0] in name
    ] and remote.COMPLETE not in left(tmp_path)
    assert same(datasets.prepared(NAME, URL), here)


@pytest.mark.parametrize("call", [datasets.builder, datasets.available, datasets.prepared])
@pytest.mark.parametrize(
    "url,name,message",
    [
        (URL, "kinetics/400", "memory://bucket/prepared: there is no prepared kinetics/400/1.0.0"),
        (
            URL,
            "moving_shapes/videos",
            "memory://bucket/prepared: there is no prepared moving_shapes/videos/",
        ),
        ("memory://nowhere", NAME, "memory://nowhere: there is no prepared moving_shapes/images/"),
        ("swift9://bucket", NAME, "swift9://bucket: Protocol not known: swift9"),
        (URL, "kinetics/4000", "no data set is called 'kinetics/4000'; there are kinetics/400, "),
    ],
)
def test_what_cannot_be_found_is_named(call, url, name, message, there):
    with pytest.raises(ValueError) as error:
        call(name, url)
    assert str(error.value).startswith(message)


def test_a_data_set_without_its_description_is_not_prepared(there):
    system, _ = there
    system.rm(f"{FOLDER}/dataset_info.json")
    with pytest.raises(ValueError, match="there is no prepared"):
        datasets.prepared(NAME, URL)


@pytest.mark.parametrize(
    "name", ["../x", "../../../x", "a/../../x", "/etc/x", "a//x", ".", "a\\x", "a\0x", "a\nx"]
)
def test_a_store_whose_names_lead_out_of_the_folder_is_refused_and_nothing_is_written(
    name, there, tmp_path, monkeypatch
):
    find = MemoryFileSystem.find

    def with_another(self, *given, **named):
        return find(self, *given, **named) | {f"{FOLDER}/{name}": {"size": 4}}

    with monkeypatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(MemoryFileSystem, "find", with_another)
        datasets.prepared(NAME, URL)
    assert str(error.value) == f"{URL}: {name!r} is no name of a file below a folder"
    assert there[1] == [] and left(tmp_path) == set()


def test_two_places_with_one_name_are_two_copies(here, there):
    system, _ = there
    system.put(str(here / NAME), f"/bucket/other/{NAME}", recursive=True)
    first, second = (datasets.prepared(NAME, url).final for url in (URL, "memory://bucket/other"))
    assert (
        first != second and (first / RECORDS[0]).read_bytes() == (second / RECORDS[0]).read_bytes()
    )


def test_commands_read_it_and_say_when_it_is_not_there(there, tmp_path, capsys):
    assert main(["show", NAME, "--data-dir", URL]) == 0
    assert "train: 8 of 8 annotated clips" in capsys.readouterr().out
    assert main(["show", "kinetics/400", "--data-dir", URL]) == 2
    message = "memory://bucket/prepared: there is no prepared kinetics/400/1.0.0\n"
    assert capsys.readouterr().err == f"python -m i3d_jax.datasets: {message}"


@pytest.mark.parametrize("family", datasets.BUILDERS)
def test_data_sets_lie_in_folders_of_their_names(family, tmp_path):
    config = datasets.BUILDERS[family].BUILDER_CONFIGS[0].name
    builder = datasets.builder(f"{family}/{config}", str(tmp_path))
    assert builder.final == tmp_path / family / config / str(builder.version)
