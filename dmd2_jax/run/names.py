"""The names that a run writes in its folder, and what may stand in their place."""

import fnmatch
from pathlib import Path

from dmd2_jax.config.text import refuse_special
from dmd2_jax.run.sealed_config import RunFolderError
from dmd2_jax.runtime.places import in_bucket

__all__ = ["check_names"]

_FILES = (
    "config.json",
    "data.json",
    "data_files.json.gz",
    "exported.json",
    "metrics.jsonl",
    "speed.jsonl",
    "*.safetensors",
    "grid_*.png",
    "scores_*.png",
    "curves.png",
    "progress.gif",
    "wandb_id.txt",
)
_FOLDERS = ("checkpoints", "teacher_pairs", "classifier", "profile", "tensorboard", "clu")


def check_names(workdir: Path) -> None:
    """Refuse a folder in the place of a file that a run writes, and a file in that of a folder.

    They would end the run when it writes there, which may be after its last step.

    Args:
      workdir: the run folder, which need not be there; a bucket has no folders.

    Raises:
      Refused: naming the first that is in the way.
    """
    if in_bucket(workdir) or not workdir.is_dir():
        return
    for path in sorted(workdir.iterdir()):
        is_file = any(fnmatch.fnmatchcase(path.name, name) for name in _FILES)
        if not is_file and path.name not in _FOLDERS:
            continue
        refuse_special(path)
        if path.exists() and path.is_dir() == is_file:
            got, expected = ("folder", "file") if is_file else ("file", "folder")
            raise RunFolderError(
                f"{path} is a {got}, expected a {expected} that the run writes, or nothing; move "
                "it away, or choose another workdir."
            )
