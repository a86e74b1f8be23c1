import os
import pathlib
import subprocess
import sys

import pytest

from i3d_jax.datasets import annotations, video_files
from i3d_jax.datasets.annotations import AnnotationError, Row

LABELS = pathlib.Path(annotations.__file__).parents[1] / "labels"
CLASSES = ("air drumming", "massaging person's head", "yoga")
HEADER = "label,youtube_id,time_start,time_end,split"


def class_names(name):
    return (LABELS / f"{name}.txt").read_text("utf-8").splitlines()


def write(path, *lines, end="\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def rows_of(tmp_path, *lines, header=HEADER, classes=CLASSES):
    return annotations.kinetics([write(tmp_path / "train.csv", header, *lines)], classes)


def row(stem="abcdefghijk_000001_000011", label="air drumming", split="train", id=None):
    return Row(id or stem, stem, label, split, 10.0, "train.csv:2")


def found_path(tmp_path, *paths, **about):
    """The preferred file of the clip `row(**about)` among these files."""
    return next(iter(found_paths(tmp_path, *paths, **about)), None)


def found_paths(tmp_path, *paths, **about):
    (clip,) = video_files.clips([row(**about)], touch(tmp_path, *paths))
    return [os.path.relpath(path, tmp_path).replace(os.sep, "/") for path in clip.paths]


@pytest.mark.parametrize(
    "header", [HEADER, HEADER + ",is_cc", "split,is_cc,time_end,youtube_id,label,time_start"]
)
@pytest.mark.parametrize("end,encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_kinetics_rows_in_any_order_of_columns_line_ends_and_with_byte_order_mark(
    tmp_path, header, end, encoding
):
    values = [
        dict(
            label="yoga",
            youtube_id="---QUuC4vJs",
            time_start="84",
            time_end="94",
            split="train",
            is_cc="0",
        ),
        dict(
            label='"air drumming"',
            youtube_id="_0_b-dEfGh_",
            time_start="0.0",
            time_end="7.0",
            split="val",
            is_cc="1",
        ),
    ]
    lines = [",".join(each[name] for name in header.split(",")) for each in values]
    path = write(tmp_path / "train.csv", header, lines[0], "", lines[1], end=end, encoding=encoding)
    assert annotations.kinetics([path], CLASSES) == [
        Row(
            "---QUuC4vJs_000084_000094",
            "---QUuC4vJs_000084_000094",
            "yoga",
            "train",
            10.0,
            "train.csv:2",
        ),
        Row(
            "_0_b-dEfGh__000000_000007",
            "_0_b-dEfGh__000000_000007",
            "air drumming",
            "validation",
            7.0,
            "train.csv:4",
        ),
    ]


def test_kinetics_labels_may_have_underscores_and_splits_several_names(tmp_path):
    names = {
        "train": "train",
        "val": "validation",
        "validate": "validation",
        "validation": "validation",
        "test": "test",
    }
    lines = [f"massaging_person's_head,{name},1,11,{name}" for name in names]
    rows = rows_of(tmp_path, *lines)
    assert {row.label for row in rows} == {"massaging person's head"}
    assert [row.split for row in rows] == list(names.values())


def test_labels_whose_own_names_have_underscores_stay_as_they_are(tmp_path):
    rows = rows_of(
        tmp_path, "sit_up,a,1,2,train", "sit up,b,1,2,train", classes=("sit_up", "sit up")
    )
    assert [row.label for row in rows] == ["sit_up", "sit up"]


def test_a_folder_stands_for_its_csvs_in_order(tmp_path):
    write(tmp_path / "val.csv", HEADER, "yoga,v,1,11,val")
    write(tmp_path / "train.csv", HEADER, "yoga,t,1,11,train")
    write(tmp_path / "._train.csv", "what macOS leaves")
    write(tmp_path / "README.txt", "not a list")
    more = write(tmp_path / "more" / "more.csv", HEADER, "yoga,m,1,11,train")
    assert [row.where for row in annotations.kinetics([tmp_path, more], CLASSES)] == [
        "train.csv:2",
        "val.csv:2",
        "more.csv:2",
    ]


@pytest.mark.parametrize(
    "line,message",
    [
        ("yoga,a,x,11,train", "from 'x' to '11'; wanted two times in seconds"),
        ("yoga,a,1,,train", "from '1' to ''; wanted two times in seconds"),
        (
            "yoga,a,11,11,train",
            "from '11' to '11'; wanted two times in seconds, the end after the start",
        ),
        ("yoga,a,-1,9,train", "from '-1' to '9'"),
        ("yoga,a,1,nan,train", "from '1' to 'nan'"),
        ("yoga,a,1,inf,train", "from '1' to 'inf'"),
        ("yoga,a,1,11,dev", "split 'dev'; wanted one of train, val, validate, validation, test"),
        ("yoga,a,1,11", "4 values; wanted 5"),
        ("yoga,,1,11,train", "youtube_id ''; wanted the start of a file's name"),
        ("yoga,../a,1,11,train", "youtube_id '../a'"),
        ('yoga,a,1,11,"train', "unexpected end of data"),
        ("knitting,a,1,11,train", "label 'knitting' is none of the 3 classes"),
        ("Yogas,a,1,11,train", "label 'Yogas' is none of the 3 classes"),
        ("yoga\udce9,a,1,11,train", "is not UTF-8"),
    ],
)
def test_a_line_of_a_csv_that_cannot_be_used_is_named(tmp_path, line, message):
    path = tmp_path / "train.csv"
    path.write_bytes(f"{HEADER}\nyoga,é,1,11,train\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(AnnotationError) as error:
        annotations.kinetics([path], CLASSES)
    assert str(error.value).startswith(f"{path}:3: ") and message in str(error.value)


def test_unknown_labels_are_counted_over_all_lists(tmp_path):
    write(
        tmp_path / "a.csv",
        HEADER,
        "yoga,a,1,11,train",
        *[f"knitting,{number},1,11,train" for number in range(1500)],
    )
    write(tmp_path / "b.csv", HEADER, "welding,a,1,11,train")
    with pytest.raises(AnnotationError) as error:
        annotations.kinetics([tmp_path], CLASSES)
    assert str(error.value) == (
        f"{tmp_path}/a.csv:3: label 'knitting' is none of the 3 classes; "
        "1,501 rows have such labels, 2 different ones"
    )


def test_columns_that_are_missing_are_named(tmp_path):
    with pytest.raises(
        AnnotationError,
        match=r"train.csv:1: no column time_start, time_end; found label, youtube_id, spl",
    ):
        rows_of(tmp_path, "yoga,a,train", header="label,youtube_id,split")
    with pytest.raises(
        AnnotationError,
        match=r"train.csv:1: no column label; .*held out: name the other files one by",
    ):
        rows_of(tmp_path, "a,1,11,test", header="youtube_id,time_start,time_end,split")
    with pytest.raises(AnnotationError, match=r"empty.csv:1: no column label.*; found none"):
        annotations.kinetics([write(tmp_path / "empty.csv")], CLASSES)


def test_lists_that_are_not_there_or_empty_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"nowhere/train.csv: No such file"):
        annotations.kinetics([tmp_path / "nowhere" / "train.csv"], CLASSES)
    with pytest.raises(AnnotationError, match=r"has no \.csv"):
        annotations.kinetics([tmp_path], CLASSES)
    with pytest.raises(AnnotationError, match=r"no CSV"):
        annotations.kinetics([], CLASSES)
    write(tmp_path / "train.csv", HEADER, "yoga,a,1,11,train")
    write(tmp_path / "val.csv", HEADER, "")
    with pytest.raises(AnnotationError, match=r"val.csv: has no clips"):
        annotations.kinetics([tmp_path], CLASSES)


def test_clips_named_twice_are_kept_once_and_reported(tmp_path):
    same, other = "yoga,a,1,11,train", "air drumming,a,1,11,val"
    rows = rows_of(tmp_path, same, "yoga,b,1,11,train", other, same, "yoga,a,2,12,train")
    assert len(rows) == 5
    assert [row.where for row in annotations.unique(rows)] == [
        "train.csv:2",
        "train.csv:3",
        "train.csv:6",
    ]
    assert [
        (first.where, later.where, later.label) for first, later in annotations.repeated(rows)
    ] == [
        ("train.csv:2", "train.csv:4", "air drumming"),
        ("train.csv:2", "train.csv:5", "yoga"),
    ]
    clips = video_files.clips(rows, touch(tmp_path / "videos", "a_000001_000011.mp4"))
    assert [(clip.label, clip.split, clip.paths == ()) for clip in clips] == [
        ("yoga", "train", False),
        ("yoga", "train", True),
        ("yoga", "train", True),
    ]


def test_what_is_written_can_be_read(tmp_path):
    values = ("massaging person's head", 'x",é', 3, 13, "validation")
    annotations.write_kinetics(
        tmp_path / "own.csv", [dict(zip(annotations.COLUMNS, values, strict=True))]
    )
    (row,) = annotations.kinetics([tmp_path / "own.csv"], CLASSES)
    assert row[:5] == ('x",é_000003_000013', 'x",é_000003_000013', values[0], "validation", 10.0)
    assert annotations.file_name('x",é', 3, 13) == f"{row.stem}.mp4"


def write_ucf101(folder, end="\n"):
    write(
        folder / "classInd.txt",
        *[f"{i} {name}" for i, name in enumerate(class_names("ucf101"), 1)],
        "",
        end=end,
    )
    train = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", "", "YoYo/v_YoYo_g25_c05.avi 101"]
    write(folder / "trainlist01.txt", *train, end=end)
    test = [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c04.avi",
    ]
    write(folder / "testlist01.txt", *test, end=end)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("below", ["", "ucfTrainTestlist"])
def test_ucf101_lists_as_they_are_published(tmp_path, below, end):
    write_ucf101(tmp_path / below, end)
    rows = annotations.ucf101(tmp_path, 1, class_names("ucf101"))
    assert rows[0] == Row(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01",
        "v_ApplyEyeMakeup_g08_c01",
        "ApplyEyeMakeup",
        "train",
        None,
        "trainlist01.txt:1",
    )
    assert [(row.stem, row.label, row.split, row.where) for row in rows[1:]] == [
        ("v_YoYo_g25_c05", "YoYo", "train", "trainlist01.txt:3"),
        ("v_ApplyEyeMakeup_g01_c01", "ApplyEyeMakeup", "test", "testlist01.txt:1"),
        ("v_HandStandPushups_g01_c04", "HandstandPushups", "test", "testlist01.txt:2"),
    ]


@pytest.mark.parametrize(
    "listed", ["HandstandPushups/v_HandstandPushups", "HandStandPushups/v_HandStandPushups"]
)
@pytest.mark.parametrize(
    "there", ["HandstandPushups/v_HandstandPushups", "HandstandPushups/v_HandStandPushups"]
)
def test_ucf101_spells_one_class_in_two_ways(tmp_path, listed, there):
    write_ucf101(tmp_path)
    write(tmp_path / "trainlist01.txt", f"{listed}_g08_c01.avi 37")
    row = annotations.ucf101(tmp_path, 1, class_names("ucf101"))[0]
    assert row.label == "HandstandPushups"
    folder = touch(tmp_path / "UCF-101", f"{there}_g08_c01.avi")
    (clip,) = video_files.clips([row], folder)
    assert clip.paths == (os.path.join(folder, f"{there}_g08_c01.avi"),)
    assert video_files.unused_files([row], video_files.find(folder).files) == []


@pytest.mark.parametrize(
    "name,lines,message",
    [
        ("trainlist01.txt", ["YoYo/v_YoYo_g25_c05.avi 100"], ":1: class number 100; YoYo is 101"),
        ("trainlist01.txt", ["YoYo/v_YoYo_g25_c05.avi"], ":1: class number missing; YoYo is 101"),
        (
            "testlist01.txt",
            ["YoYo/v_YoYo_g01_c01.avi", "v_YoYo_g01_c02.avi"],
            ":2: 'v_YoYo_g01_c02.avi'; wanted <one of",
        ),
        (
            "testlist01.txt",
            ["Yoga/v_Yoga_g01_c01.avi"],
            ":1: 'Yoga/v_Yoga_g01_c01.avi'; wanted <one of 101 classes>",
        ),
        ("testlist01.txt", ["YoYo/"], ":1: 'YoYo/'; wanted"),
        ("testlist01.txt", [""], ": has no clips"),
        (
            "classInd.txt",
            ["1 ApplyEyeMakeup", "3 ApplyLipstick"],
            ":2: class '3 ApplyLipstick'; wanted '2 ApplyLipstick'",
        ),
        ("classInd.txt", ["1 ApplyEyeMakeup"], ": 1 classes; wanted 101"),
    ],
)
def test_a_list_of_ucf101_that_cannot_be_used_is_named(tmp_path, name, lines, message):
    write_ucf101(tmp_path)
    write(tmp_path / name, *lines)
    with pytest.raises(AnnotationError) as error:
        annotations.ucf101(tmp_path, 1, class_names("ucf101"))
    assert str(error.value).startswith(f"{tmp_path / name}{message}")


def test_lists_of_ucf101_that_are_not_there_are_named(tmp_path):
    write_ucf101(tmp_path)
    with pytest.raises(
        AnnotationError, match="has no trainlist02.txt, nor has ucfTrainTestlist in it"
    ):
        annotations.ucf101(tmp_path, 2, class_names("ucf101"))
    with pytest.raises(AnnotationError, match="split 4; wanted 1, 2 or 3"):
        annotations.ucf101(tmp_path, 4, class_names("ucf101"))
    (tmp_path / "testlist01.txt").unlink()
    with pytest.raises(AnnotationError, match="testlist01.txt: No such file"):
        annotations.ucf101(tmp_path, 1, class_names("ucf101"))
    write_ucf101(tmp_path)
    (tmp_path / "classInd.txt").unlink()
    assert len(annotations.ucf101(tmp_path, 1, class_names("ucf101"))) == 4


# As in the lists of HMDB-51, apart from the spaces.
HOSTILE = [
    "(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0",
    "Geena_und_die_Radschl_ge___;-)_cartwheel_f_cm_np1_fr_med_2",
    "jenny_~_rad_cartwheel_f_cm_np1_ri_med_0",
    "#20_Rhythm_cartwheel_u_nm_np1_fr_goo_0",
    "two  words & [more] $HOME `x` 'y'_cartwheel_f_cm_np1_ri_med_1",
]


def write_hmdb51(folder, number=1):
    for name in class_names("hmdb51"):
        lines = [f"April_09_{name}_u_nm_np1_ba_goo_{i}.avi {i % 3} " for i in range(6)]
        if name == "cartwheel":
            lines = [f"{stem}.avi {1 + i % 2} " for i, stem in enumerate(HOSTILE)]
        write(folder / f"{name}_test_split{number}.txt", *lines)


@pytest.mark.parametrize(
    "below",
    [
        "",
        "testTrainMulti_7030_splits",
        "test_train_splits",
        "test_train_splits/testTrainMulti_7030_splits",
    ],
)
def test_hmdb51_lists_as_they_are_published(tmp_path, below):
    write_hmdb51(tmp_path / below)
    rows = annotations.hmdb51(tmp_path, 1, class_names("hmdb51"))
    assert len(rows) == 50 * 4 + len(HOSTILE)
    assert rows[0] == Row(
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1",
        "April_09_brush_hair_u_nm_np1_ba_goo_1",
        "brush_hair",
        "train",
        None,
        "brush_hair_test_split1.txt:2",
    )
    assert [row.split for row in rows[:4]] == ["train", "test", "train", "test"]
    assert [row.stem for row in rows if row.label == "cartwheel"] == HOSTILE


def test_files_with_hostile_names_are_found(tmp_path):
    write_hmdb51(tmp_path / "lists")
    rows = [
        row
        for row in annotations.hmdb51(tmp_path / "lists", 1, class_names("hmdb51"))
        if row.label == "cartwheel"
    ]
    folder = touch(tmp_path / "videos", *[f"cartwheel/{stem}.avi" for stem in HOSTILE])
    paths = [path for clip in video_files.clips(rows, folder) for path in clip.paths]
    assert paths == [os.path.join(folder, f"cartwheel/{stem}.avi") for stem in HOSTILE]


def test_one_name_in_two_classes_of_hmdb51_is_two_clips(tmp_path):
    write_hmdb51(tmp_path / "lists")
    for name in ("sword", "sword_exercise"):
        write(tmp_path / "lists" / f"{name}_test_split1.txt", "fight_sword_0.avi 1 ")
    rows = [
        row
        for row in annotations.hmdb51(tmp_path / "lists", 1, class_names("hmdb51"))
        if "sword_0" in row.stem
    ]
    folder = touch(
        tmp_path / "videos", "sword_exercise/fight_sword_0.avi", "sword/fight_sword_0.avi"
    )
    assert annotations.repeated(rows) == []
    assert [path for clip in video_files.clips(rows, folder) for path in clip.paths] == [
        os.path.join(folder, f"{name}/fight_sword_0.avi") for name in ("sword", "sword_exercise")
    ]


@pytest.mark.parametrize(
    "lines,message",
    [
        (
            ["a_jump_0.avi 1 ", "a_jump_1.avi 3 "],
            ":2: 'a_jump_1.avi 3'; wanted <video> and 0, 1 or 2",
        ),
        (["a_jump_0.avi"], ":1: 'a_jump_0.avi'; wanted <video> and 0, 1 or 2"),
        (["1"], ":1: '1'; wanted <video>"),
        (["a_jump_0.avi 0 "], ": has no clips"),
    ],
)
def test_a_list_of_hmdb51_that_cannot_be_used_is_named(tmp_path, lines, message):
    write_hmdb51(tmp_path)
    path = write(tmp_path / "jump_test_split1.txt", *lines)
    with pytest.raises(AnnotationError) as error:
        annotations.hmdb51(tmp_path, 1, class_names("hmdb51"))
    assert str(error.value).startswith(f"{path}{message}")


def test_every_list_of_hmdb51_must_be_there(tmp_path):
    with pytest.raises(
        AnnotationError,
        match="has no brush_hair_test_split3.txt, nor has testTrainMulti_7030_splits or",
    ):
        annotations.hmdb51(tmp_path, 3, class_names("hmdb51"))
    write_hmdb51(tmp_path, 3)
    (tmp_path / "jump_test_split3.txt").unlink()
    (tmp_path / "brush_hair_test_split3.txt").unlink()
    with pytest.raises(
        AnnotationError,
        match="2 of 51 lists are missing: brush_hair_test_split3.txt, jump_test_split3",
    ):
        annotations.hmdb51(tmp_path, 3, class_names("hmdb51"))


def test_videos_are_all_files_below_a_folder_but_hidden_ones(tmp_path):
    touch(
        tmp_path,
        "b/x.mp4",
        "a/x.mkv",
        "y.tar.mp4",
        "-c/_d/z",
        ".hidden/x.mp4",
        "a/._x.mkv",
        "lost+found/x.mp4",
    )
    assert video_files.find(tmp_path).files == {
        "x": ["a/x.mkv", "b/x.mp4"],
        "y.tar": ["y.tar.mp4"],
        "z": ["-c/_d/z"],
    }


def test_what_is_no_file_is_listed_with_the_reason(tmp_path):
    touch(tmp_path, "a/x.mp4")
    (tmp_path / "a" / "gone.mp4").symlink_to("nothing.mp4")
    (tmp_path / "a" / "itself.mp4").symlink_to("itself.mp4")
    (tmp_path / "a" / "null.mp4").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "a" / "pipe.mp4")
    found = video_files.find(tmp_path)
    assert sorted(found.files) == ["gone", "itself", "null", "pipe", "x"]
    assert found.broken == {
        "a/gone.mp4": "is missing: a dangling link to nothing.mp4",
        "a/itself.mp4": "is missing: a dangling link to itself.mp4",
        "a/null.mp4": "is no file: a device",
        "a/pipe.mp4": "is no file: a FIFO",
    }


def test_videos_follow_links_but_not_for_ever(tmp_path):
    touch(tmp_path, "elsewhere/yoga/x.mp4", "videos/train/y.mp4")
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos" / "train" / "z.mp4").symlink_to(tmp_path / "elsewhere" / "yoga" / "x.mp4")
    for number in range(10):
        (tmp_path / "videos" / f"link {number} to train").symlink_to(tmp_path / "videos" / "train")
    (tmp_path / "videos" / "up").symlink_to(tmp_path / "videos")
    (tmp_path / "elsewhere" / "around").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "itself").symlink_to(tmp_path / "videos" / "itself")
    assert video_files.find(tmp_path / "videos").files == {
        "x": ["linked/yoga/x.mp4"],
        "y": ["train/y.mp4"],
        "z": ["train/z.mp4"],
        "itself": ["itself"],
    }


def test_folders_that_are_not_there_are_named(tmp_path):
    with pytest.raises(AnnotationError, match="nowhere/?: No such file or directory"):
        video_files.find(tmp_path / "nowhere")
    with pytest.raises(AnnotationError, match="x.mp4/?: Not a directory"):
        video_files.find(touch(tmp_path, "x.mp4") / "x.mp4")
    with pytest.raises(AnnotationError, match="flow/?: No such file"):
        video_files.clips([row()], tmp_path, tmp_path / "flow")


STEM = "abcdefghijk_000001_000011"


@pytest.mark.parametrize(
    "path",
    [
        f"train/air drumming/{STEM}.mp4",
        f"train/air_drumming/{STEM}.mp4",
        f"train/{STEM}.mp4",
        f"validate/{STEM}.webm",
        f"{STEM}.mp4",
        f"k700/videos/part_3/{STEM}.MKV",
        f"yoga/{STEM}",
    ],
)
def test_a_clip_is_found_in_every_layout(tmp_path, path):
    assert (
        found_path(tmp_path, path, f"train/yoga/{STEM}x.mp4", "train/yoga/abcdefghijk.mp4") == path
    )


@pytest.mark.parametrize(
    "best,others",
    [
        (f"z/{STEM}.mp4", [f"train/air drumming/{STEM}.dat", f"a/{STEM}"]),
        (f"z/air_drumming/{STEM}.avi", [f"train/yoga/{STEM}.mp4", f"train/{STEM}.mp4"]),
        (
            f"train/air drumming/{STEM}.avi",
            [f"test/air drumming/{STEM}.mp4", f"air drumming/{STEM}.mp4"],
        ),
        (f"train/x/{STEM}.webm", [f"a/{STEM}.mp4", f"test/{STEM}.mp4", f"x/{STEM}.mp4"]),
        (f"a/{STEM}.webm", [f"b/{STEM}.mp4", f"{STEM}.mp4"]),
        (f"a/{STEM}.mkv", [f"a/{STEM}.mp4"]),
        (f"z/{STEM}.dat", [f"train/air drumming/{STEM}.json", f"train/air drumming/{STEM}.jpg"]),
    ],
)
def test_of_several_files_the_best_comes_first(tmp_path, best, others):
    assert found_path(tmp_path, best, *others) == best


def test_the_other_files_of_a_clip_follow_in_the_order_of_their_paths(tmp_path):
    paths = [
        f"train/air drumming/{STEM}.mp4",
        f"a/{STEM}.mp4",
        f"replacement/{STEM}.mp4",
        f"a/{STEM}.dat",
    ]
    assert found_paths(tmp_path, *paths[::-1]) == paths


def test_files_of_one_name_in_folders_of_other_classes_are_other_videos_where_ids_have_the_class(
    tmp_path,
):
    paths = [f"{folder}/{STEM}.mp4" for folder in ("air drumming", "copy/air_drumming", "yoga", "")]
    paths[3] = f"{STEM}.mp4"
    assert found_paths(tmp_path, *paths, id=f"air drumming/{STEM}") == paths[:2]


@pytest.mark.parametrize("folder", ["val", "validate", "validation"])
def test_folders_of_splits_have_several_names(tmp_path, folder):
    paths = [f"test/{STEM}.mp4", f"train/{STEM}.mp4", f"{folder}/{STEM}.mp4"]
    assert found_path(tmp_path, *paths, split="validation") == paths[2]


def test_what_is_no_video_is_no_clip(tmp_path):
    extensions = (".json", ".jpg", ".png", ".txt", ".vtt", ".srt", ".csv", ".part", ".ytdl", ".JPG")
    assert (
        found_path(tmp_path, *[f"train/air drumming/{STEM}{extension}" for extension in extensions])
        is None
    )


def test_clips_carry_what_their_rows_say_and_their_flow(tmp_path):
    touch(tmp_path / "rgb", "train/yoga/a.mp4", "b.mp4")
    touch(tmp_path / "flow", "train/yoga/a.avi", "validation/yoga/a.mp4", "c.mp4")
    rows = [row(stem, "yoga", "validation", f"yoga/{stem}") for stem in "abc"]
    rgb, flow = os.path.join(tmp_path, "rgb"), os.path.join(tmp_path, "flow")
    assert video_files.clips(rows, tmp_path / "rgb", tmp_path / "flow") == [
        (
            "yoga/a",
            "yoga",
            "validation",
            10.0,
            (f"{rgb}/train/yoga/a.mp4",),
            (f"{flow}/validation/yoga/a.mp4", f"{flow}/train/yoga/a.avi"),
            (),
        ),
        ("yoga/b", "yoga", "validation", 10.0, (f"{rgb}/b.mp4",), (), ()),
        ("yoga/c", "yoga", "validation", 10.0, (), (f"{flow}/c.mp4",), ()),
    ]
    assert [clip.flows for clip in video_files.clips(rows, tmp_path / "rgb")] == [(), (), ()]


def test_an_index_that_is_there_is_not_made_again(tmp_path):
    (clip,) = video_files.clips(
        [row()], tmp_path / "nowhere", found=video_files.FolderFiles({STEM: [f"x/{STEM}.mp4"]}, {})
    )
    assert clip.paths == (os.path.join(tmp_path, "nowhere", f"x/{STEM}.mp4"),)


def test_label_of_reads_folders_and_no_files():
    labels = {"air drumming", "brush_hair", "yoga"}
    named = {
        "train/air_drumming/x.mp4": "air drumming",
        "train/air drumming/more/x.mp4": "air drumming",
        "brush_hair/x.avi": "brush_hair",
        "brush hair/x.avi": "brush_hair",
        "yoga/air_drumming/x.mp4": "air drumming",
        "train/yoga": None,
        "yoga.mp4": None,
        "Yoga/x.mp4": None,
    }
    assert {path: video_files.label_of(path, labels) for path in named} == named


def test_others_are_the_videos_that_no_row_wants(tmp_path):
    touch(
        tmp_path,
        f"a/{STEM}.mp4",
        f"b/{STEM}.webm",
        f"{STEM}.json",
        "b/other.mp4",
        "z.dat",
        "train.csv",
    )
    found = video_files.find(tmp_path).files
    assert video_files.unused_files([row()], found) == ["b/other.mp4", "z.dat"]
    assert video_files.candidates(STEM, found) == [f"a/{STEM}.mp4", f"b/{STEM}.webm"]
    assert video_files.candidates("nothing", found) == []


@pytest.mark.parametrize(
    "name,count", [("kinetics_700_2020", 700), ("ucf101", 101), ("hmdb51", 51)]
)
def test_class_names_are_as_many_as_the_data_set_has_and_sorted(name, count):
    text = (LABELS / f"{name}.txt").read_bytes().decode("ascii")
    names = text.split("\n")[:-1]
    # UCF-101 sorts its classes without regard to case: Hammering, HammerThrow.
    assert len(set(names)) == count and names == sorted(
        names, key=str.casefold if name == "ucf101" else None
    )
    assert all(each == each.strip() != "" for each in names)


def test_kinetics_700_keeps_all_but_three_classes_of_kinetics_600():
    # Carreira et al. 2019 say so; a fourth is the same class in other letters.
    gone = set(class_names("kinetics_600")) - set(class_names("kinetics_700_2020"))
    assert gone == {
        "bull fighting",
        "chopping vegetables",
        "picking fruit",
        "passing american football (not in game)",
    }
    assert "passing American football (not in game)" in class_names("kinetics_700_2020")


def test_class_numbers_of_ucf101_are_the_published_ones():
    # Taken from lines of the published train lists.
    numbers = {
        "ApplyEyeMakeup": 1,
        "HandstandPushups": 37,
        "HandstandWalking": 38,
        "HeadMassage": 39,
        "HorseRace": 41,
    }
    names = class_names("ucf101")
    assert {name: names.index(name) + 1 for name in numbers} == numbers


def test_lists_are_read_without_the_libraries_that_prepare(tmp_path):
    write(tmp_path / "train.csv", HEADER, "yoga,a,1,11,train")
    code = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("annotations", sys.argv[1])
annotations = sys.modules["annotations"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(annotations)
assert len(annotations.kinetics([pathlib.Path(sys.argv[2])], ["yoga"])) == 1
assert not {"numpy", "jax", "av", "tensorflow_datasets"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, annotations.__file__, str(tmp_path)], check=True)
