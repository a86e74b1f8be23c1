"""Your own videos, in folders SPLIT/CLASS: train/jumping/a.mp4, validation/jumping/b.mp4.

SPLIT is one of `annotations.SPLITS`. Classes are the names of the folders below, in alphabetical
order; videos in deeper folders belong to the class too. Whole videos are taken.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from i3d_jax.datasets import annotations, clips, video_files


class Own(clips.ClipBuilder):
    """Videos in folders named by split and class."""

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
            if self.source.flow is not None:  # Where `python -m i3d_jax.flow` writes it.
                flow = (self.source.flow / path).with_suffix(".mp4")
                flows = (str(flow),) if flow.exists() else ()
            paths = (str(self.source.videos / path),)
            broken = ((paths[0], reason),) if reason else ()
            clip = video_files.Clip(_as_text(path), label, split, None, paths, flows, broken)
            found.append(clip)
        return found

    @functools.cached_property
    def _files(self) -> list[tuple[str, str, str, str]]:
        """Every video: split, class, path, and the reason if it cannot be read as a file, or "".

        They are sorted by path. The list is empty if there is no `source`.

        Raises:
          AnnotationError: a video is not below SPLIT/CLASS, or a class cannot be in a list of
            classes.
        """
        if self.source is None:
            return []
        found, listed = [], video_files.find(self.source.videos)
        for path in sorted(path for paths in listed.files.values() for path in paths):
            if os.path.splitext(path)[1].lower() not in video_files.VIDEO:
                continue
            split, *folders = path.split("/")
            if split not in annotations.SPLITS or len(folders) < 2:
                raise annotations.AnnotationError(
                    f"{self.source.videos / path}: wanted SPLIT/CLASS/{path.split('/')[-1]}, "
                    f"SPLIT one of {', '.join(annotations.SPLITS)}"
                )
            label = _as_text(folders[0])
            # TFDS writes a class per line, and strips spaces.
            if label != label.strip() or len(label.splitlines()) > 1:
                raise annotations.AnnotationError(
                    f"{self.source.videos / split}: a folder is called {label!r}; "
                    "wanted a class without spaces around it, in one line"
                )
            found.append((annotations.SPLITS[split], label, path, listed.broken.get(path, "")))
        if not found:
            raise annotations.AnnotationError(f"{self.source.videos}: has no videos")
        return found


def _as_text(path: str) -> str:
    """A path for a record, which holds UTF-8; other bytes are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
