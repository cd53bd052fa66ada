"""The authors' own code, from checkouts of ali-vilab/VACE and Wan-Video/Wan2.1; none of it is in this repository.

VACE_PATH and WAN_PATH name the checkouts.

Its modules are read file by file, since its packages import everything from flash-attn to SAM 2. What the
functions under test do not use of those is stood in for by empty modules.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

PATH = os.environ.get("VACE_PATH")
WAN_PATH = os.environ.get("WAN_PATH")
PACKAGE = "vace_authors"
STRIDE = (4, 8, 8)  # vae_stride and patch_size of wan/configs/wan_t2v_1_3B.py, Wan2.1
PATCH = (1, 2, 2)


def module(name, **contents):
    made = types.ModuleType(name)
    vars(made).update(contents)
    return made


def to_tensor(image):
    """Stand in for torchvision's function of that name, for RGB images."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def absent_modules():
    """Return stand-ins for what the checkout imports beside torch, numpy, Pillow and OpenCV, by name."""
    functional = module("torchvision.transforms.functional", to_tensor=to_tensor)
    transforms = module("torchvision.transforms", functional=functional)
    names = ["T5EncoderModel", "WanVAE", "shard_model", "FlowDPMSolverMultistepScheduler", "get_sampling_sigmas"]
    names += ["retrieve_timesteps", "FlowUniPCMultistepScheduler"]
    text2video = module("wan.text2video", WanT2V=object, **dict.fromkeys(names))
    mask = module("pycocotools.mask")
    return {
        "torchvision": module("torchvision", transforms=transforms),
        "torchvision.transforms": transforms,
        "torchvision.transforms.functional": functional,
        "pycocotools": module("pycocotools", mask=mask),
        "pycocotools.mask": mask,
        "imageio": module("imageio"),
        "wan": module("wan", text2video=text2video),
        "wan.text2video": text2video,
        f"{PACKAGE}.models.wan.modules": module(f"{PACKAGE}.models.wan.modules"),
        f"{PACKAGE}.models.wan.modules.model": module(f"{PACKAGE}.models.wan.modules.model", VaceWanModel=None),
    }


def read(name, monkeypatch):
    """Return a module of the checkout's vace folder, such as "annotators.frameref"."""
    root = Path(PATH) / "vace"
    for missing, stand_in in absent_modules().items():
        monkeypatch.setitem(sys.modules, missing, stand_in)
    parts = name.split(".")
    for depth in range(len(parts)):
        package = module(".".join([PACKAGE, *parts[:depth]]), __path__=[str(root.joinpath(*parts[:depth]))])
        monkeypatch.setitem(sys.modules, package.__name__, package)
    utils = module(f"{PACKAGE}.models.utils", __path__=[str(root / "models" / "utils")])
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    return importlib.import_module(f"{PACKAGE}.{name}")


class VideoFiles:
    """Stands in for decord: files that are arrays [n, h, w, 3] of whole numbers from 0 to 255."""

    def __init__(self, fps=16.0, **files):
        self.files, self.fps = files, fps
        self.bridge = types.SimpleNamespace(set_bridge=lambda name: None)

    def VideoReader(self, name):
        return VideoReader(self.files[name], self.fps)


class VideoReader:
    def __init__(self, frames, fps):
        self.frames, self.fps = frames, fps

    def __len__(self):
        return len(self.frames)

    def get_avg_fps(self):
        return self.fps

    def get_frame_timestamp(self, index):
        return index / self.fps, (index + 1) / self.fps

    def next(self):
        return self.frames[0]

    def get_batch(self, indices):
        return self.frames[indices]


def wan_vae():
    """Return their WanVAE at toy width, drawn at random, and its weights under their names."""
    spec = importlib.util.spec_from_file_location("wan_authors_vae", Path(WAN_PATH) / "wan" / "modules" / "vae.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(0)
    made = code.WanVAE.__new__(code.WanVAE)
    made.model = code.WanVAE_(dim=8, z_dim=16, temperal_downsample=[False, True, True]).eval()
    made.dtype, made.scale = torch.float, [torch.randn(16), torch.rand(16) + 0.5]
    return made


def vace(monkeypatch, vae=None):
    """Return their WanVace with a VAE that takes a list of [3, n, H, W], without its transformer and text encoder."""
    code = read("models.wan.wan_vace", monkeypatch)
    made = code.WanVace.__new__(code.WanVace)
    made.vae, made.vae_stride = vae, STRIDE
    # As WanVace.__init__ makes it.
    made.vid_proc = code.VaceVideoProcessor(
        downsample=tuple(x * y for x, y in zip(STRIDE, PATCH, strict=True)),
        min_area=480 * 832,
        max_area=480 * 832,
        min_fps=16,
        max_fps=16,
        zero_start=True,
        seq_len=32760,
        keep_last=True,
    )
    return made
