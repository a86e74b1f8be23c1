"""The files of the page's visitors: who left, leaves nothing."""

import contextlib
import hashlib
import os
import pathlib
import secrets
import shutil


class Visits:
    """The files of each visitor, below a folder that only this process uses.

    Gradio keeps uploads and downloads in one folder, where the names of files do not tell whose
    they are, and where two visitors who upload the same file share it. Here each visitor has a
    folder with links to his files, so that they can be removed when he leaves.

    Args:
      root: the folder.

    Attributes:
      served: what Gradio serves to those who know a file's address, which cannot be guessed.
    """

    def __init__(self, root: pathlib.Path):
        self.served, self._own = root / "served", root / "visits"
        for each in self.served, self._own:
            each.mkdir(mode=0o700)

    def begin(self, visitor: str, upload: pathlib.Path) -> pathlib.Path:
        """Forgets what a visitor had, but for a file; returns his own path of this file.

        Args:
          visitor: identifies the visitor.
          upload: the file, in `served`.

        Raises:
          FileNotFoundError: the file is not there any more.
        """
        fresh = self._own / secrets.token_hex(16)
        own = fresh / "video" / upload.name
        own.parent.mkdir(parents=True)
        try:
            _link(upload, own)
        except FileNotFoundError:
            shutil.rmtree(fresh)
            raise
        self.forget(visitor)
        fresh.rename(self._folder(visitor))
        return self._folder(visitor) / "video" / upload.name

    def download(self, visitor: str, name: str) -> pathlib.Path:
        """A path for a new file that a visitor may download; `keep` it once it is written."""
        self._forget_file(self._folder(visitor) / "downloads" / name)
        folder = self.served / secrets.token_hex(32)
        folder.mkdir()
        return folder / name

    def keep(self, visitor: str, path: pathlib.Path) -> None:
        """Has a download removed when its visitor leaves.

        Raises:
          FileNotFoundError: the visitor has left; the file is removed.
        """
        own = self._folder(visitor) / "downloads" / path.name
        try:
            own.parent.mkdir(exist_ok=True)
            _link(path, own)
        except FileNotFoundError:
            path.unlink()
            raise

    def is_here(self, visitor: str) -> bool:
        """Whether a visitor has files."""
        return self._folder(visitor).exists()

    def forget(self, visitor: str) -> None:
        """Removes the files of a visitor, but for those that others have, too."""
        self._forget_folder(self._folder(visitor))

    def forget_owner_of(self, video: pathlib.Path) -> None:
        """Removes the files of the visitor for whom `begin` returned this path."""
        self._forget_folder(video.parents[1])

    def _forget_folder(self, folder: pathlib.Path) -> None:
        for own in folder.glob("*/*"):
            self._forget_file(own)
        shutil.rmtree(folder, ignore_errors=True)

    def _forget_file(self, own: pathlib.Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            mine = own.stat()
            for shared in self.served.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    # Two links: in `served`, and this visitor's.
                    if mine.st_nlink == 2 and shared.samefile(own):
                        shared.unlink()
            own.unlink()

    def _folder(self, visitor: str) -> pathlib.Path:
        # The visitor's browser makes its name.
        return self._own / hashlib.sha256(visitor.encode()).hexdigest()


def _link(path: pathlib.Path, own: pathlib.Path) -> None:
    try:
        os.link(path, own)
    except FileNotFoundError:
        raise
    except OSError:  # A file system without links: Gradio removes its file by age.
        shutil.copyfile(path, own)
