"""Data sets of the hub: which files they have, and local copies of those that are asked for.

huggingface_hub keeps in HF_HOME what was fetched, with the names of all files of the data set, so
that it is found again without network, and a part of it is not taken for the whole.
"""

import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import get_cached_repo_tree, snapshot_download

from utils import distributed

# OWNER/NAME, as the hub allows it, and perhaps a folder of the data set; old ones have no owner.
WORD = r"[A-Za-z0-9_][\w.-]*"
HUB_NAME = re.compile(rf"(?P<name>{WORD}(?:/{WORD})?)(?:/(?P<folder>{WORD}(?:/{WORD})*))?/?")

CARDS = ("README.md", ".huggingface.yaml")  # they list configurations and splits


class HubFiles:
    """The files of a data set of the hub at one commit, or of a folder in it.

    The first process of each node asks the hub; the others, after it, find what it has fetched.

    Args:
        path: OWNER/NAME or OWNER/NAME/FOLDER.
        revision: branch, tag or commit; None: the main branch.

    Attributes:
        root: local folder in which fetched files are.

    Raises:
        OSError, huggingface_hub.errors.HTTPError: the hub does not give it.
    """

    def __init__(self, path: str, revision: str | None = None):
        self.name, self.folder = split_name(path)
        self.cards = [os.path.join(self.folder, card) for card in CARDS]
        snapshot = self._download(revision, self.cards)
        self.commit = os.path.basename(snapshot)
        tree = get_cached_repo_tree(self.name, repo_type="dataset", revision=self.commit)
        self.files = [file.path for file in tree]
        self.root = os.path.join(snapshot, self.folder)

    @contextmanager
    def outline(self) -> Iterator[str]:
        """A folder with the same names, whose files are empty but for the cards, to look at."""
        with TemporaryDirectory() as top:
            for file in self.files:
                place = Path(top, file)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            folder = os.path.join(top, self.folder)
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"it has {self._folders()}")
            for card in set(self.cards) & set(self.files):
                shutil.copy(os.path.join(self.root, os.path.basename(card)), folder)
            try:
                yield folder
            except FileNotFoundError as error:
                raise FileNotFoundError(str(error).replace(top, self.name)) from error

    def fetch(self, names: Sequence[str]) -> None:
        """Have files in the local folder."""
        missing = [name for name in names if not os.path.exists(os.path.join(self.root, name))]
        if missing:
            distributed.log(f"{self.name}: files to fetch from the hub: {len(missing)}")
            patterns = [glob.escape(os.path.join(self.folder, name)) for name in names]
            self._download(self.commit, patterns)

    def _download(self, revision: str | None, patterns: list[str]) -> str:
        """The folder of a snapshot, which then has all files of these names."""
        return snapshot_download(
            self.name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            local_files_only=not distributed.is_first_on_node(),
        )

    def _folders(self) -> str:
        folders = sorted({os.path.dirname(file) for file in self.files} - {""})
        return f"the folders {', '.join(folders[:10])}" if folders else "no folders"


def split_name(path: str) -> tuple[str, str]:
    """The name of the data set and the folder in it, "" for the whole."""
    match = HUB_NAME.fullmatch(path)
    assert match
    return match["name"], match["folder"] or ""


def spell_out(path: str) -> str:
    """What a path names on the hub."""
    name, folder = split_name(path)
    return f"the folder {folder} of the data set {name}" if folder else f"the data set {name}"
