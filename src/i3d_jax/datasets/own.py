"""Videos of your own, in folders SPLIT/CLASS: train/jumping/a.mp4, validation/jumping/b.mp4.

SPLIT is one of `annotations.SPLITS`, the classes are the names of the folders below, in alphabetical order; what lies deeper is of
the class too. Whole videos are taken.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from i3d_jax.datasets import annotations, clips, video_files


class Own(clips.ClipBuilder):
    """Videos in folders of their splits and classes."""

    name = "own"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="videos", description="All of them.")]
    ANNOTATED = False

    def classes(self) -> Sequence[str]:
        return sorted({label for _, label, *_ in self._files})

    def clips(self, folder: pathlib.Path) -> list[video_files.Clip]:
        assert self.source is not None, "the command asks for it"
        found = []
        for split, label, path, reason in self._files:
            flows: tuple[str, ...] = ()
            if self.source.flow is not None:  # Where `python -m i3d_jax.flow` puts it.
                its_flow = (self.source.flow / path).with_suffix(".mp4")
                flows = (str(its_flow),) if its_flow.exists() else ()
            place = str(self.source.videos / path)
            broken = ((place, reason),) if reason else ()
            found.append(video_files.Clip(_text(path), label, split, None, (place,), flows, broken))
        return found

    @functools.cached_property
    def _files(self) -> list[tuple[str, str, str, str]]:
        """Split, class and path of every video, sorted, and why it is no file; none where nothing is to be prepared.

        Raises:
          AnnotationError: a video whose folders do not name them, or name a class as no list of classes can.
        """
        if self.source is None:
            return []
        found, there = [], video_files.find(self.source.videos)
        for path in sorted(path for paths in there.files.values() for path in paths):
            if os.path.splitext(path)[1].lower() not in video_files.VIDEO:
                continue
            split, *folders = path.split("/")
            if split not in annotations.SPLITS or len(folders) < 2:
                wanted = f"SPLIT/CLASS/{path.split('/')[-1]}, SPLIT one of {', '.join(annotations.SPLITS)}"
                raise annotations.AnnotationError(f"{self.source.videos / path}: wanted {wanted}")
            label = _text(folders[0])
            if (
                label != label.strip() or len(label.splitlines()) > 1
            ):  # TFDS keeps a class per line, without spaces around it.
                raise annotations.AnnotationError(
                    f"{self.source.videos / split}: a folder is called {label!r}; wanted a class without spaces around it, in one line"
                )
            found.append((annotations.SPLITS[split], label, path, there.broken.get(path, "")))
        if not found:
            raise annotations.AnnotationError(f"{self.source.videos}: has no videos")
        return found


def _text(path: str) -> str:
    """What records have of a name, which need not be text."""
    return os.fsencode(path).decode(errors="backslashreplace")
