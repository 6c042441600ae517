"""A data set prepared by TensorFlow Datasets: tfds:<name>[/<config>][:<split>].

    --config.data.name=tfds:imagenet_resized/64x64 --config.data.path=~/tensorflow_datasets

`path` is TFDS's data_dir. Data sets prepared as array_record and as tfrecord are read alike, in
any order and without TensorFlow; the latter are indexed first, which reads every file once. The
split is what is trained on ("train" by default; TFDS's own forms such as train[:10%] work); the
test split is "test" or "validation", whichever there is, else `config.data.test_fraction` of the
examples is held out by a fixed seed (of all together: classes are only known by reading).

Classes are numbered as the data set does it, but for those that it names by synsets (ImageNet's
n01440764 ...): they count in the order of their names, as in ILSVRC, folders and EDM's weights.
TFDS has another order in imagenet_resized, in which not one class agrees.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmd2_jax.config.refused import Missing, Refused, lacks
from dmd2_jax.config.sizes import Size
from dmd2_jax.data.reading.classes import are_synsets, in_order, listing_of_parts
from dmd2_jax.data.reading.contract import MissingPackageError, Options
from dmd2_jax.data.reading.dataset import check_holds_out, check_split, held_out
from dmd2_jax.data.reading.decode import CorruptImageError, decode_image, image_size
from dmd2_jax.data.reading.files import files_of_shards
from dmd2_jax.data.reading.records import ArrayRecords, Records, Shard, TFRecords, labels_of
from dmd2_jax.data.reading.source import DecodedSource
from dmd2_jax.runtime.distributed import say_once
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import in_bucket
from dmd2_jax.typing import Shaped

SPEC = "<name>[/<config>][:<split>]"
"""What follows `tfds:` in `config.data.name`."""

_TESTS = ("test", "validation")


class _Keys(NamedTuple):
    """What of a record is read.

    Attributes:
      image: the key of the image.
      label: that of the class; None: there are none.
      numbers: of each class as it is recorded, the number that it counts as.
      names: of the classes, in the order of those numbers; None: they have none.
      formerly: see `Source`.
    """

    image: str
    label: str | None = None
    numbers: tuple[int, ...] = (0,)
    names: tuple[str, ...] | None = None
    formerly: str = ""


def load(
    path: str, split: str = "train", resolution: Size = 64, options: Options | None = None
) -> DecodedSource:
    """Open a prepared data set.

    Args:
      path: TFDS's data_dir.
      split: "train", "test" or "all" (train, then test).
      resolution: that every image must have, or is given where `options.resize` says so.
      options: `spec` names the data set; see `Options`.

    Returns:
      The images, read when they are asked for.

    Raises:
      MissingPackageError: if tensorflow_datasets is not installed.
      FileNotFoundError: if the data set is not prepared in `path`.
      ValueError: if it has no images, no such split, or a file is damaged.
    """
    options = options or Options()
    name, _, train = options.spec.partition(":")
    check_split(split, ("train", "test"), f"tfds:{options.spec}")
    builder = _open_builder(name, path)
    keys = _keys(name, builder.info.features)
    if keys.formerly:
        _say_numbers(name, keys.formerly)
    instructions = _instructions(name, builder.info.splits, train or "train")
    wanted = [part for part in instructions if split in (part, "all") or "test" not in instructions]
    shards = [
        Shard(str(part.filename), part.skip, _taken(part), part.examples_in_shard)
        for key in wanted
        for part in instructions[key]
    ]
    records = _open_records(name, builder.info.file_format.value, shards)
    chosen = np.arange(len(records))
    if "test" not in instructions and split != "all":
        check_holds_out(split, options.test_fraction, f"tfds:{options.spec}")
        mask = held_out(np.zeros(len(records), np.int32), options.test_fraction)
        chosen = np.flatnonzero(mask if split == "test" else ~mask)

    def describe(i: int) -> str:
        return records.describe(int(chosen[i]))

    def read(i: int) -> tuple[Shaped[np.ndarray, "h w c"], int]:
        (record,) = records.read(chosen[i : i + 1])
        data, label = _parse(record, keys)
        return decode_image(data, describe(i), resolution, options.resize), label

    def size_of(i: int) -> tuple[int, int]:
        (record,) = records.read(chosen[i : i + 1])
        return image_size(_parse(record, keys)[0])

    return DecodedSource(
        f"tfds:{name}",
        len(chosen),
        read,
        describe=describe,
        resolution=resolution,
        num_classes=len(keys.numbers),
        options=options,
        class_names=keys.names,
        formerly=keys.formerly,
        size_of=size_of,
        listing=lambda: listing_of_parts(
            [
                builder.info.full_name,
                *((Path(shard.path).name, *shard[1:]) for shard in shards),
                chosen.tobytes().hex(),
                keys.names,
            ]
        ),
        files=lambda: files_of_shards([shard.path for shard in shards], options.digest),
        labels=lambda: labels_of(records, chosen, lambda record: _parse(record, keys)[1]),
    )


def _open_builder(name: str, path: str):
    """Return TFDS's read-only builder of a prepared data set: its files, not its program."""
    if not name:
        raise Refused(f"config.data.name='tfds:' names no data set, expected tfds:{SPEC}.")
    try:
        from tensorflow_datasets.core import read_only_builder, registered
    except ImportError as error:
        raise MissingPackageError(
            lacks("the source tfds", "tensorflow_datasets", "tfds")
        ) from error
    try:
        return read_only_builder.builder_from_files(name, data_dir=_data_dir(path, name))
    except registered.DatasetNotFoundError as error:
        raise Missing(
            f"tfds:{name} is not prepared in config.data.path={path or '(TFDS default)'}, expected "
            f"{name}/<version>/dataset_info.json there; prepare it with: "
            f"tfds build {name} --data_dir=PATH --file_format=array_record"
        ) from error


def _data_dir(path: str, name: str) -> str | None:
    """Return TFDS's data_dir on this machine; of one in a bucket this data set alone is copied."""
    if in_bucket(path):
        return str(fetched(f"{path.rstrip('/')}/{name}").parents[name.count("/")])
    return str(fetched(path).expanduser()) if path else None


def _open_records(name: str, kind: str, shards: list[Shard]) -> Records:
    kinds: dict[str, Callable[[list[Shard]], Records]] = {
        "array_record": ArrayRecords,
        "tfrecord": TFRecords,
    }
    if kind not in kinds:
        raise Refused(
            f"tfds:{name} is prepared as {kind}, expected one of {sorted(kinds)}; prepare it again "
            "with: tfds build --file_format=array_record"
        )
    return kinds[kind](shards)


def _keys(name: str, features) -> _Keys:
    """Find the image and the label among the features, and what the classes are called."""
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    images = [key for key, kind in kinds.items() if kind == "Image"]
    labels = [key for key, kind in kinds.items() if kind == "ClassLabel"]
    for keys, preferred in ((images, "image"), (labels, "label")):
        keys.sort(key=lambda key: key != preferred)
    if not images or (len(images) > 1 and images[0] != "image"):
        raise Refused(
            f"tfds:{name} has the features {kinds}, expected one Image, or one called 'image'; "
            "choose another config of the data set."
        )
    if not labels:
        return _Keys(images[0])
    classes = max(1, int(features[labels[0]].num_classes))
    names = tuple(features[labels[0]].names)
    # Where nothing was recorded, TFDS says "0", "1", ...
    if len(names) != classes or names == tuple(map(str, range(classes))):
        return _Keys(images[0], labels[0], tuple(range(classes)))
    order = in_order(names)
    if not are_synsets(names) or list(names) == order or len(order) != classes:
        return _Keys(images[0], labels[0], tuple(range(classes)), names)
    numbers = {synset: number for number, synset in enumerate(order)}
    formerly = f"as TFDS does, 0 being {names[0]}"
    return _Keys(
        images[0], labels[0], tuple(numbers[synset] for synset in names), tuple(order), formerly
    )


def _say_numbers(name: str, formerly: str) -> None:
    say_once(
        f"tfds:{name}: its classes are synsets and count in the order of their names, as in "
        f"ILSVRC, folders and EDM's weights; not {formerly}."
    )


def _instructions(name: str, splits, train: str) -> dict[str, Sequence]:
    """Return TFDS's reading instructions of "train" and, where there is one, "test"."""
    found = {}
    tests = [test for test in _TESTS if test in splits and test != train]
    for ours, theirs in (("train", train), *(("test", test) for test in tests[:1])):
        try:
            found[ours] = splits[theirs].file_instructions
        except (KeyError, ValueError) as error:
            raise Refused(
                f"tfds:{name}:{theirs} does not exist ({error}), expected one of {sorted(splits)}, "
                "or a part of one such as train[:10%]."
            ) from error
    return found


def _taken(part) -> int:
    """Return how many records of a file an instruction takes; -1 there means the rest."""
    return part.take if part.take >= 0 else part.examples_in_shard - part.skip


def _parse(record: bytes, keys: _Keys) -> tuple[bytes, int]:
    """Return (encoded image, class) of a serialised tf.train.Example."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        image = feature[keys.image].bytes_list.value[0]
        label = 0 if keys.label is None else feature[keys.label].int64_list.value[0]
    except (DecodeError, IndexError, KeyError) as error:
        raise CorruptImageError(f"damaged record: {type(error).__name__}: {error}") from error
    if not 0 <= label < len(keys.numbers):
        raise CorruptImageError(f"damaged record: class {label} of {len(keys.numbers)}")
    return image, keys.numbers[label]
