"""Small data sets in the original formats, written by hand: what the loaders read where the real ones cannot be had."""

import gzip
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

CINIC_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n01443537", "n01629819", "n01641577")
WRITERS = ("f0000_14", "f0001_41", "f0002_07")


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(values):
    """The idx format: 0, 0, type 8 (unsigned bytes), dimensions, big-endian sizes, values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def fashion_mnist(root, count=40):
    folder = root / "fashion_mnist"
    folder.mkdir(parents=True)
    for seed, part in enumerate(("train", "t10k")):
        images = gzip.compress(idx(pixels(count, 28, 28, seed=seed)))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))


def cifar_record(labels, seed):
    """A label or two, then three planes of 32x32: red, green, blue."""
    return bytes(labels) + pixels(3072, seed=seed).tobytes()


def cifar10(root, count=10):
    """The six files of the binary version; record i of each has label i % 10 and its own pixels."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = [cifar_record([i % 10], seed=1000 * number + i) for i in range(count)]
        (folder / name).write_bytes(b"".join(records))


def cifar100(root, count=40):
    """Both files of the binary version; record i has the coarse label i % 20 and the fine label 99 - i."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for number, name in enumerate(("train.bin", "test.bin")):
        records = [cifar_record([i % 20, 99 - i], seed=1000 * number + i) for i in range(count)]
        (folder / name).write_bytes(b"".join(records))


def write_pickle(path, content):
    """As CIFAR's authors wrote it with Python 2: protocol 2, names and pixels as plain bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar10_python(root, count=10):
    """The images and labels of :func:`cifar10` as the Python version has them."""
    folder = root / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.stack([pixels(3072, seed=1000 * number + i) for i in range(count)])
        names = [b"frog_%d.png" % i for i in range(count)]
        labels = [i % 10 for i in range(count)]
        content = {b"batch_label": b"batch", b"labels": labels, b"data": data, b"filenames": names}
        write_pickle(folder / name, content)


def cifar100_python(root, count=40):
    """The images and fine labels of :func:`cifar100` as the Python version has them."""
    for number, name in enumerate(("train", "test")):
        data = np.stack([pixels(3072, seed=1000 * number + i) for i in range(count)])
        labels = {b"coarse_labels": [i % 20 for i in range(count)], b"fine_labels": [99 - i for i in range(count)]}
        write_pickle(root / "cifar-100-python" / name, {b"data": data, **labels})


def arrays(root, count=40):
    """Images, labels and clients of both parts in one file."""
    root.mkdir(parents=True, exist_ok=True)
    parts = {}
    for seed, part in enumerate(("", "test_")):
        parts[f"{part}images"] = pixels(count, 8, 8, 3, seed=seed)
        parts[f"{part}labels"] = np.arange(count) % 4
        parts[f"{part}clients"] = np.array([f"site {i % 5}" for i in range(count)])
    np.savez(root / "arrays.npz", **parts)
    return parts


def parquet(root, rows=12, size=8, column="img", embedded=True, who=None, description=None):
    """As the hub's library writes a data set of images: files in a struct, and names of classes in the head.

    ``who`` are the clients of the rows; ``description`` stands in the head in place of the classes' names.
    """
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow: pip install pyarrow")
    from pyarrow.parquet import write_table

    folder = root / "parquet" / "data"
    folder.mkdir(parents=True)
    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    metadata = {"huggingface": description or json.dumps({"info": {"features": features}})}
    for seed, part in enumerate(("train", "test")):
        images = []
        for i in range(rows):
            image(folder / "x.png", size, 100 * seed + i)
            images.append({"bytes": (folder / "x.png").read_bytes() if embedded else None, "path": f"{i}.png"})
        (folder / "x.png").unlink()
        owners = who or [i // 4 for i in range(rows)]
        columns = {column: images, "label": [i % 2 for i in range(rows)], "who": owners}
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        write_table(table, folder / f"{part}-00000-of-00001.parquet")


def svhn(root, count=40):
    """Both MATLAB files; image i has the digit i % 10, written as 10 where it is 0."""
    folder = root / "svhn"
    folder.mkdir(parents=True)
    labels = (np.arange(count) - 1) % 10 + 1
    for seed, part in enumerate(("train", "test")):
        content = {"X": pixels(32, 32, 3, count, seed=seed), "y": labels.astype(np.uint8)[:, None]}
        savemat(folder / f"{part}_32x32.mat", content, do_compression=True)


def image(path, side=32, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pixels(*(side if isinstance(side, tuple) else (side, side)), *([3] if mode == "RGB" else []), seed=seed)
    Image.fromarray(values).save(path)


def cinic10(root, count=4):
    for number, part in enumerate(("train", "valid", "test")):
        for label, name in enumerate(CINIC_CLASSES):
            for i in range(count):
                path = root / "CINIC-10" / part / name / f"cifar10-{part}-{i}.png"
                image(path, seed=1000 * number + 10 * label + i)


def tiny_imagenet(root, count=14):
    folder = root / "tiny-imagenet-200"
    lines = []
    for label, name in enumerate(WNIDS):
        for i in range(count):
            # The real set has grey images among the coloured ones.
            mode = "RGB" if i else "L"
            image(folder / "train" / name / "images" / f"{name}_{i}.JPEG", 64, 100 * label + i, mode)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
        image(folder / "val" / "images" / f"val_{label}.JPEG", 64, 900 + label)
        lines.append(f"val_{label}.JPEG\t{WNIDS[2 - label]}\t0\t32\t44\t62\n")
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def writing(count, seed):
    """One writer's samples as LEAF has them: 784 numbers of 0 to 1, white paper, and a label."""
    values = pixels(count, 784, seed=seed) / 255
    return {"x": values.tolist(), "y": [(seed + i) % 62 for i in range(count)]}


def leaf(people):
    return {"users": list(people), "num_samples": [len(one["y"]) for one in people.values()], "user_data": people}


def femnist(root, count=12):
    """Two files for training and one for the test; the last writer has no test samples."""
    folder = root / "femnist"
    parts = {"train/all_data_0": WRITERS[1:], "train/all_data_1": WRITERS[:1], "test/all_data_0": WRITERS[:2]}
    for number, (name, writers) in enumerate(parts.items()):
        path = folder / f"{name}_niid_0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        people = {writer: writing(count, 10 * number + WRITERS.index(writer)) for writer in writers}
        path.write_text(json.dumps(leaf(people)))


def folder(root, count=20):
    """Two classes of images of several sizes and formats."""
    for number, part in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                suffix = ("png", "jpg", "bmp")[i % 3]
                path = root / "images" / part / name / f"{i:03}.{suffix}"
                image(path, (20 + i, 30), seed=100 * number + 10 * label + i)


def sentences(count, seed):
    """Lines that a model can learn: each word has one that always follows it."""
    words = ("the king", "will not", "see her", "come again", "to night")
    generator = np.random.default_rng(seed)
    return "".join(f"{words[i]} {words[(i + 1) % len(words)]}\n" for i in generator.integers(0, len(words), count))


def shakespeare(root, count=40):
    """Two plays of two roles each, with stage directions and acts."""
    folder = root / "shakespeare"
    folder.mkdir(parents=True, exist_ok=True)
    for number, play in enumerate(("hamlet_gut", "lear_gut")):
        speeches = [
            f"{role}.\n{sentences(count // 2, 10 * number + i)}\n[Exit.]\n\n"
            for i, role in enumerate(("FOOL", "Kent") * 2)
        ]
        text = f"A PLAY\n\nFOOL, a fool.\n\nACT I.\n\nScene I. A heath.\n\n{''.join(speeches)}"
        (folder / f"{play}.txt").write_text(text)


def tinystories(root, count=20):
    """One file of stories."""
    root.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{sentences(8, seed)}<|endoftext|>\n" for seed in range(count))
    (root / "tinystories.txt").write_text(text)


WRITE = {
    writer.__name__: writer
    for writer in (
        fashion_mnist,
        cifar10,
        cifar100,
        svhn,
        cinic10,
        tiny_imagenet,
        femnist,
        folder,
        arrays,
        parquet,
        shakespeare,
        tinystories,
    )
}
TEXT = ("shakespeare", "tinystories")
