"""Single images of a network: a folder, a zip or an .npz, with their labels, resumably.

    FOLDER or .zip    00000/img00000000.png ..., dataset.json (EDM's: each image's class, or the
                      number of its prompt) and, of prompts, metadata.jsonl
    .npz              arr_0 uint8 [n, h, w, c] and arr_1 int64 labels [n], as guided-diffusion and
                      consistency models write it

All three begin as a folder of PNGs, each written whole: a killed command is given again and makes
those that lack. What they are made of is noted, and another model's images are never added.
"""

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides, size_of
from dmd2_jax.config.text import read_json
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.data.reading.decode import decode_image, encode_png
from dmd2_jax.run.folder import check_free_space, write_json
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.owner import holds_nothing, owned
from dmd2_jax.runtime.places import in_bucket, upload
from dmd2_jax.runtime.platform import user_cache
from dmd2_jax.runtime.preemption import Interrupted, stoppable
from dmd2_jax.runtime.whole_file import room_for, upload_folder, whole_file
from dmd2_jax.sampling.images import SampledImages
from dmd2_jax.typing import Shaped

__all__ = ["ENDINGS", "write_samples"]

ENDINGS = (".zip", ".npz")
"""Of files of single images; what has neither is a folder."""

_RECORD, _LABELS, _CAPTIONS = ".sampling.json", "dataset.json", "metadata.jsonl"
_END = b"IEND\xaeB`\x82"  # of every PNG
_A_FOLDER, _AT_A_TIME = 1000, 64
_AGAIN = "The same command again goes on."


def write_samples(
    images: SampledImages,
    out: Path,
    made_of: Mapping[str, Any],
) -> bool:
    """Make the images that are not there yet, and put them into their form.

    Args:
      images: what to make.
      out: a folder, or a file ending in .zip or .npz; new, or begun by the same call. What goes
        to a bucket is made in the user's cache first.
      made_of: what of the flags decides how the images look, for JSON. It is noted beside the
        digests of weights and conditions, and compared with what was noted before.

    Returns:
      False: they were all there before.

    Raises:
      Refused: if there is something else at `out`, or an image is not finite.
      Interrupted: at Ctrl-C or SIGTERM.
      OSError: if the disk refuses.
    """
    made_of = json.loads(json.dumps({**made_of, **images.identity()}))  # as it is read back
    return (
        _write_through(images, out, made_of) if in_bucket(out) else _make_at(images, out, made_of)
    )


def _write_through(images: SampledImages, out: Path, made_of: Mapping[str, Any]) -> bool:
    """Make the images on this machine, where they are read again, and upload what is complete."""
    packed = out.suffix.lower() in ENDINGS
    if packed and out.exists():
        _check_same(out, _comment(fetched(out)), made_of)
        return False
    if not packed and not holds_nothing(out):
        _check_begun(out, made_of)
        if (out / _LABELS).exists():
            return False
    name = hashlib.sha256(os.fspath(out).encode()).hexdigest()[:16]
    here = user_cache() / "samples" / name / out.name
    here.parent.mkdir(parents=True, exist_ok=True)
    _make_at(images, here, made_of)
    if packed:
        upload(here, out)
    else:
        upload_folder(here, out)
    shutil.rmtree(here.parent)
    return True


def _make_at(images: SampledImages, out: Path, made_of: Mapping[str, Any]) -> bool:
    """Write what is not there yet on this machine; see `write_samples`."""
    captions = images.captions()
    packed = out.suffix.lower() in ENDINGS
    folder = out.with_name(f"{out.name}.parts") if packed else out
    if packed and out.exists():
        _check_same(out, _comment(out), made_of)
        if (folder / _RECORD).is_file():
            shutil.rmtree(folder)
        return False
    with owned(folder):
        return _fill(images, folder, out, made_of, captions)


def _fill(
    images: SampledImages,
    folder: Path,
    out: Path,
    made_of: Mapping[str, Any],
    captions: Sequence[str] | None,
) -> bool:
    """Make what lacks in a folder, and one file of it where that is wanted; see `write_samples`."""
    packed = folder != out
    _claim(folder, made_of)
    lacking = np.array([not _is_whole(folder / _name(i)) for i in range(len(images))])
    if (folder / _LABELS).exists() and not (packed or lacking.any()):
        return False
    size = len(images) * math.prod(sides(images.resolution)) * images.channels
    check_free_space(folder, 2 * size if packed else size, "the samples")
    try:
        with stoppable(_AGAIN):
            _make(images, folder, lacking)
            labelled = images.conditional or captions is not None
            labels = images.conditions.labels(np.arange(len(images))) if labelled else None
            _describe(folder, len(images), labels, captions)
            if packed:
                shape = (len(images), *sides(images.resolution), images.channels)
                with room_for(out):
                    _pack(folder, out, shape, labels, json.dumps(made_of, sort_keys=True))
                shutil.rmtree(folder)
    except KeyboardInterrupt:
        raise Interrupted(f"the images that are made stay in {folder}. {_AGAIN}", 130) from None
    return True


def _claim(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Begin or recognise a folder of samples."""
    if holds_nothing(folder):
        write_json(folder / _RECORD, made_of)
    else:
        _check_begun(folder, made_of)


def _check_begun(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Refuse a folder that does not hold, wholly or in part, what is to be made."""
    if not (folder / _RECORD).exists():
        raise Refused(
            f"{folder} is there and was not made by `dmd2 sample`, expected a new or empty folder; "
            "choose another."
        )
    _check_same(folder, read_json(folder / _RECORD), made_of)


def _check_same(place: Path, there: Any, made_of: Mapping[str, Any]) -> None:
    there = there if isinstance(there, dict) else {}
    pairs = {key: (there.get(key), made_of.get(key)) for key in sorted({*there, *made_of})}
    said = [
        f"{key} {old!r:.60}, now {new!r:.60}" for key, (old, new) in pairs.items() if old != new
    ]
    if said:
        raise Refused(
            f"{place} holds what was made otherwise: {'; '.join(said)}; expected samples of the "
            "same model and flags: remove it, or choose another."
        )


def _make(images: SampledImages, folder: Path, lacking: Bool[np.ndarray, " n"]) -> None:
    """Write the PNG of each image that lacks one."""
    done = int(np.sum(~lacking))
    with (
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="samples") as pool,
        Progress(total=len(images), initial=done, description="sampling") as progress,
    ):
        writing: list[Any] = []

        def finish() -> int:
            for future in writing:
                future.result()
            return len(writing)

        for begin, batch in images.parts(lambda begin, end: bool(lacking[begin:end].any())):
            done += finish()  # so that one batch is written while the next is made
            progress.update(done)
            pixels = _pixels(images, begin, batch["image"])
            wanted = [i for i in range(begin, begin + len(pixels)) if lacking[i]]
            writing = [pool.submit(_write, folder / _name(i), pixels[i - begin]) for i in wanted]
        progress.update(done + finish())


def _pixels(images: SampledImages, begin: int, batch: np.ndarray) -> Shaped[np.ndarray, "b h w c"]:
    finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
    if not finite.all():
        raise Refused(
            f"{images.describe(begin + int(np.argmin(finite)))} is not finite, expected numbers; "
            "the weights are damaged or diverged: choose others."
        )
    return np.asarray(to_uint8(batch))


def _write(file: Path, image: Shaped[np.ndarray, "h w c"]) -> None:
    partial = file.with_suffix(".partial")
    with room_for(file):
        file.parent.mkdir(exist_ok=True)
        partial.write_bytes(encode_png(image))
        os.replace(partial, file)


def _is_whole(file: Path) -> bool:
    """Return whether a PNG is there to its end; a crash of the machine may leave less."""
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_END), os.SEEK_END)
            return opened.read() == _END
    except OSError:
        return False


def _name(number: int) -> str:
    return f"{number // _A_FOLDER:05d}/img{number:08d}.png"


def _describe(
    folder: Path, count: int, labels: np.ndarray | None, captions: Sequence[str] | None
) -> None:
    """Write captions and labels; the latter last of all: they say that the folder is complete."""
    names = [_name(i) for i in range(count)]
    if captions is not None:
        lines = [
            json.dumps({"file_name": name, "text": text}, ensure_ascii=False)
            for name, text in zip(names, captions, strict=True)
        ]
        with whole_file(folder / _CAPTIONS) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = None if labels is None else list(zip(names, labels.tolist(), strict=True))
    with whole_file(folder / _LABELS) as partial:
        partial.write_text(json.dumps({"labels": pairs}) + "\n", encoding="utf-8")


def _pack(
    folder: Path, out: Path, shape: tuple[int, ...], labels: np.ndarray | None, comment: str
) -> None:
    """Make one file of a complete folder; the same images make the same bytes."""
    partial = folder / "packed.partial"  # which goes with the folder, if this is killed
    with zipfile.ZipFile(partial, "w") as archive:
        archive.comment = comment.encode()
        if out.suffix.lower() == ".npz":
            _add(archive, "arr_0", np.dtype(np.uint8), shape, _read_all(folder, shape))
            if labels is not None:
                numbers = labels.astype(np.int64)
                _add(archive, "arr_1", numbers.dtype, numbers.shape, iter([numbers]))
        else:
            others = [name for name in (_LABELS, _CAPTIONS) if (folder / name).is_file()]
            for name in (*(_name(i) for i in range(shape[0])), *others):
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, out)


def _read_all(folder: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    def read(i: int) -> np.ndarray:
        return decode_image((folder / _name(i)).read_bytes(), _name(i), size_of(*shape[1:3]))

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="samples") as pool:
        for begin in range(0, shape[0], _AT_A_TIME):  # map would decode them all
            yield from pool.map(read, range(begin, min(begin + _AT_A_TIME, shape[0])))


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterator[np.ndarray],
) -> None:
    """Write an array into a .npz as numpy.savez does, in parts that follow each other."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part).tobytes())


def _comment(file: Path) -> Any:
    """Return what a zip of ours says it was made of."""
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.comment)
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
        return None
