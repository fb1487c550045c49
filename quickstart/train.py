"""Trains the quickstart's digit classifier and writes its network and its two properties.

    python quickstart/train.py [--folder quickstart]

Data: scikit-learn's digits, 1797 images of 8 x 8 pixels with grey values 0 to 16. The network is trained on attacked
images, with a share of interval loss (Gowal et al., 2018, "On the effectiveness of interval bound propagation for
training verifiably robust models") so that its robustness can be proved. The results lie in the repository: train
again only to change them. Every claim made about the two properties is checked here, by means of its own: interval
arithmetic in float64 for the one that holds, onnxruntime on the written file for the one that does not.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

RADIUS = 0.05  # of the properties: grey values are scaled to [0, 1], so less than one of their 16 steps
TRAINED_RADIUS = 0.06
INTERVAL_SHARE = 0.05  # of the loss: more is easier to prove and less accurate
EPOCHS, RAMP, BATCH = 40, 15, 70
TRAINING_IMAGES = 1400


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [n, 1, 8, 8] in [0, 1], their labels [n], and their places in scikit-learn's order [n]."""

    images: Tensor
    labels: Tensor
    places: Tensor


def load() -> tuple[Digits, Digits]:
    """Training and test images, always the same ones."""
    raw = load_digits()
    images = torch.tensor(raw.data / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(raw.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return Digits(images[train], labels[train], train), Digits(images[test], labels[test], test)


def build() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def margins(net: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the label minus the best other score: [n]. Positive means classified rightly."""
    scores = net(images)
    own = scores.gather(1, labels[:, None])[:, 0]
    return own - scores.scatter(1, labels[:, None], -torch.inf).amax(1)


def interval_margins(net: nn.Sequential, lo: Tensor, hi: Tensor, labels: Tensor) -> Tensor:
    """Lower bounds of score(label) - score(j) over the boxes [lo, hi], by interval arithmetic: [n, 10], 0 at the label.

    The last layer is merged with the differences, which loses nothing that intervals of the scores would keep.
    """
    for layer in net[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            centre, radius = layer((lo + hi) / 2), _radius(layer, (hi - lo) / 2)
            lo, hi = centre - radius, centre + radius
        else:
            lo, hi = layer(lo), layer(hi)  # ReLU and Flatten keep the order
    last = net[-1]
    weight = last.weight[labels][:, None] - last.weight[None]
    bias = last.bias[labels][:, None] - last.bias[None]
    centre = torch.einsum("njh,nh->nj", weight, (lo + hi) / 2)
    return centre - torch.einsum("njh,nh->nj", weight.abs(), (hi - lo) / 2) + bias


def _radius(layer: nn.Conv2d | nn.Linear, radius: Tensor) -> Tensor:
    """How far a linear layer's outputs can move when its inputs move by `radius`."""
    if isinstance(layer, nn.Linear):
        return F.linear(radius, layer.weight.abs())
    return F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)


def box(images: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    return (images - radius).clamp(0, 1), (images + radius).clamp(0, 1)


def attack(net: nn.Sequential, digits: Digits, radius: float, steps: int) -> Tensor:
    """Images within `radius` that the network finds hard, by projected gradient ascent (Madry et al., 2018)."""
    lo, hi = box(digits.images, radius)
    found = lo + (hi - lo) * torch.rand_like(lo)
    for step in range(steps):
        found.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(net(found), digits.labels, reduction="sum"), found)
        length = radius / 2 if step < steps / 2 else radius / 8
        found = torch.minimum(torch.maximum(found.detach() + length * slope.sign(), lo), hi)
    return found


def train(digits: Digits) -> nn.Sequential:
    net = build()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    for epoch in range(EPOCHS):
        radius = TRAINED_RADIUS * min(1.0, (epoch + 1) / RAMP)
        for chosen in torch.randperm(len(digits.images)).split(BATCH):
            batch = Digits(digits.images[chosen], digits.labels[chosen], digits.places[chosen])
            attacked = F.cross_entropy(net(attack(net, batch, radius, steps=3)), batch.labels)
            worst = -interval_margins(net, *box(batch.images, radius), batch.labels)
            loss = (1 - INTERVAL_SHARE) * attacked + INTERVAL_SHARE * F.cross_entropy(worst, batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net


def export(net: nn.Sequential, path: Path) -> None:
    """Plain operators, any number of images at once."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
    )


def choose_robust(net: nn.Sequential, digits: Digits) -> int:
    """The test image whose property interval arithmetic proves with most room to spare, in float64."""
    exact = copy.deepcopy(net).double()
    lower = interval_margins(exact, *box(digits.images.double(), RADIUS), digits.labels)
    proved = lower.scatter(1, digits.labels[:, None], torch.inf).amin(1)
    if float(proved.max()) < 1.0:
        raise SystemExit(f"no image is provably robust with room to spare: best margin {float(proved.max()):.3f}")
    return int(proved.argmax())


def choose_fragile(net: nn.Sequential, digits: Digits) -> tuple[int, Tensor]:
    """The test image that is read most clearly rightly as it is and wrongly when attacked; and its attacked form."""
    right = margins(net, digits.images, digits.labels)
    wrong, best = torch.full_like(right, -torch.inf), digits.images.clone()
    for _ in range(10):
        found = attack(net, digits, RADIUS, steps=40)
        miss = -margins(net, found, digits.labels)
        best[miss > wrong] = found[miss > wrong]
        wrong = torch.maximum(wrong, miss)
    score = torch.minimum(right, wrong)
    if float(score.max()) < 0.3:
        raise SystemExit(f"no image is clearly fragile: best margin {float(score.max()):.3f}")
    chosen = int(score.argmax())
    return chosen, best[chosen]


def write_property(path: Path, digits: Digits, chosen: int) -> None:
    """VNN-LIB 1.0: the counterexamples of 'every image within RADIUS of this one has its label's score on top'."""
    label, grey = int(digits.labels[chosen]), (digits.images[chosen].flatten() * 16).round().int().tolist()
    lines = [
        f"; Robustness of image {int(digits.places[chosen])} of scikit-learn's digits.",
        f"; label {label}",
        f"; radius {RADIUS}",
        *(f"; pixels {' '.join(f'{value:2d}' for value in grey[row : row + 8])}" for row in range(0, 64, 8)),
        "",
        *(f"(declare-const X_{i} Real)" for i in range(64)),
        *(f"(declare-const Y_{j} Real)" for j in range(10)),
        "",
    ]
    for i, value in enumerate(grey):
        lo, hi = max(0.0, value / 16 - RADIUS), min(1.0, value / 16 + RADIUS)
        lines += [f"(assert (>= X_{i} {lo:.4f}))", f"(assert (<= X_{i} {hi:.4f}))"]
    others = "\n".join(f"  (and (>= Y_{j} Y_{label}))" for j in range(10) if j != label)
    path.write_text("\n".join([*lines, "", f"(assert (or\n{others}\n))", ""]), encoding="utf-8")


def check(path: Path, net: nn.Sequential, digits: Digits, chosen: int, attacked: Tensor) -> None:
    """onnxruntime on the written file: same scores as the trained network, and the attacked image is misread."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": digits.images.numpy()})
    if not np.allclose(scores, net(digits.images).detach().numpy(), rtol=1e-4, atol=1e-4):
        raise SystemExit(f"{path}: onnxruntime does not agree with the trained network")
    (scores,) = session.run(None, {"image": attacked[None].numpy()})
    if int(scores.argmax()) == int(digits.labels[chosen]):
        raise SystemExit(f"{path}: onnxruntime reads the attacked image rightly")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the three files are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order, so that another run on the same machine gives the same network
    torch.use_deterministic_algorithms(True)
    training, test = load()
    net = train(training).eval().requires_grad_(False)
    robust = choose_robust(net, test)
    fragile, attacked = choose_fragile(net, test)
    export(net, folder / "digits.onnx")
    check(folder / "digits.onnx", net, test, fragile, attacked)
    write_property(folder / "robust.vnnlib", test, robust)
    write_property(folder / "fragile.vnnlib", test, fragile)
    lower = interval_margins(net, *box(test.images, RADIUS), test.labels)
    proved = (lower.scatter(1, test.labels[:, None], torch.inf).amin(1) > 0).float().mean()
    accuracy = (margins(net, test.images, test.labels) > 0).float().mean()
    print(f"test images read rightly: {accuracy:.1%}; proved within {RADIUS} by intervals alone: {proved:.1%}")
    print(f"robust:  image {int(test.places[robust])}, a {int(test.labels[robust])}")
    print(f"fragile: image {int(test.places[fragile])}, a {int(test.labels[fragile])}")


if __name__ == "__main__":
    main()
