"""Models that look at pictures: the built-in ones on drawn clips, and toy-size ones of every supported class."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from piying.core.catalog.installed_model import BUILT_IN_ROOT, InstalledModel
from piying.core.catalog.selection import model_choices
from piying.core.controls import family, models, pose
from piying.core.controls.depth import depth
from piying.core.controls.segmentation import class_numbers, segment
from piying.core.errors import PiyingError
from piying.core.executor.model_cache import evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.samples import sample_clip

HOST = HeadlessHost(chosen_device="cpu")
torch.manual_seed(0)


@pytest.fixture(autouse=True)
def clean():
    evict_models()
    yield
    evict_models()


@pytest.fixture(scope="module")
def circle():
    frames, _, _, mask = sample_clip("moving circle")
    return frames[::8], mask[::8]


def overlap(one, other):
    return float(((one > 0.5) & (other > 0.5)).sum() / ((one > 0.5) | (other > 0.5)).sum())


def installed(tmp_path, model, processor, name="mine"):
    folder = tmp_path / "annotators" / name
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return HeadlessHost(models=[tmp_path], chosen_device="cpu")


def test_built_in_depth_puts_the_shape_in_front(circle, caplog):
    frames, mask = circle
    with caplog.at_level(logging.WARNING, logger="piying"):
        made, record = depth(frames, "auto", "per frame", HOST)
    assert made.shape == frames.shape
    assert (float(made.min()), float(made.max())) == (0, 1)
    assert overlap(made[..., 0], mask) > 0.9
    assert record["model"] == "built-in"
    assert "Depth-Anything-V2-Small-hf" in caplog.text


def test_built_in_depth_at_other_sizes():
    frames, _, _, mask = sample_clip("moving circle")
    wide = torch.nn.functional.interpolate(frames[:1].permute(0, 3, 1, 2), (90, 140)).permute(0, 2, 3, 1)
    made, _ = depth(wide, "built-in", "per frame", HOST)
    expected = torch.nn.functional.interpolate(mask[:1, None], (90, 140))[0]
    assert made.shape == wide.shape
    assert overlap(made[..., 0], expected) > 0.85


def test_depth_is_what_transformers_own_pipeline_gives(circle):
    frames, _ = circle
    folder = BUILT_IN_ROOT / "depth"
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    estimate = transformers.pipeline("depth-estimation", model=model, image_processor=processor, device="cpu")
    near = estimate(Image.fromarray((frames[1] * 255).to(torch.uint8).numpy()))["predicted_depth"]
    expected = (near - near.min()) / (near.max() - near.min())
    made, _ = depth(frames[1:2], "built-in", "per frame", HOST)
    assert (made[0, ..., 0] - expected).abs().max() <= 1.01 / 255  # 256 levels, cut off


def test_depth_over_the_whole_clip_and_frame_by_frame(circle):
    empty = torch.zeros_like(circle[0][:1])
    clip = torch.cat([circle[0][:1], empty])
    by_frame, _ = depth(clip, "built-in", "per frame", HOST)
    by_clip, _ = depth(clip, "built-in", "whole clip", HOST)
    assert by_frame[1].max() == 1  # an empty frame is stretched to full contrast
    assert by_clip[1].max() < 0.5
    assert torch.allclose(by_frame[0], by_clip[0], atol=0.1)


def test_built_in_segmentation_finds_shapes_by_name(circle):
    frames, mask = circle
    found, record = segment(frames, "auto", "Circle", HOST)
    assert found.shape == mask.shape
    assert overlap(found, mask) > 0.9
    assert set(found.unique().tolist()) == {0, 1}
    assert segment(frames, "auto", "square, triangle", HOST)[0].mean() < 0.01
    assert segment(frames, "auto", "circle，background", HOST)[0].min() == 1
    assert record["names"] == "Circle"


def test_unknown_names_are_answered_with_near_ones():
    known = {0: "wall", 12: "person;individual, someone", 20: "car"}
    assert class_numbers("Someone , car", known) == [12, 20]
    with pytest.raises(PiyingError, match="names has 'persn', which this model does not know. Nearest: person"):
        class_numbers("persn", known)
    with pytest.raises(PiyingError, match="It knows: wall, person;individual, someone"):
        class_numbers("zzz", known)
    with pytest.raises(PiyingError, match="names is empty"):
        class_numbers(" , ", known)


def test_an_installed_model_is_preferred(tmp_path, circle):
    shutil.copytree(BUILT_IN_ROOT / "depth", tmp_path / "annotators" / "Depth-Anything-V2-Small-hf")
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    assert model_choices(family.DEPTH, host) == ["auto", "annotators/Depth-Anything-V2-Small-hf", "built-in"]
    assert depth(circle[0][:1], "auto", "per frame", host)[1]["model"] == "annotators/Depth-Anything-V2-Small-hf"
    assert depth(circle[0][:1], "built-in", "per frame", host)[1]["model"] == "built-in"
    models.check_model(family.DEPTH, "annotators\\Depth-Anything-V2-Small-hf", host)


def test_midas_is_read_too(tmp_path, circle):
    """DPTForDepthEstimation, which VACE's own depth annotator is."""
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, is_hybrid=False,
    )  # fmt: skip
    processor = transformers.DPTImageProcessorPil(size={"height": 64, "width": 64})
    host = installed(tmp_path, transformers.DPTForDepthEstimation(config), processor)
    made, record = depth(circle[0][:1], "auto", "per frame", host)
    assert record["model"] == "annotators/mine"
    assert made.shape == circle[0][:1].shape


def test_upernet_is_read_too(tmp_path, circle):
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, id2label={0: "wall", 1: "person"}
    )
    processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 64})
    host = installed(tmp_path, transformers.UperNetForSemanticSegmentation(config), processor)
    either, _ = segment(circle[0][:1], "auto", "wall, person", host)
    one, _ = segment(circle[0][:1], "auto", "wall", host)
    other, _ = segment(circle[0][:1], "auto", "person", host)
    assert either.min() == 1
    assert torch.equal(one + other, either)


def test_a_damaged_model_is_refused(tmp_path, circle):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "annotators" / "broken"
    shutil.copytree(BUILT_IN_ROOT / "depth", folder)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.conv3.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PiyingError, match=r"broken: cannot be read as a depth model \(1 tensors .* head.conv3.weight"):
        depth(circle[0][:1], "auto", "per frame", host)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(PiyingError, match=r"broken.model.safetensors: it is neither a safetensors, a GGUF"):
        depth(circle[0][:1], "auto", "per frame", host)


def test_weights_that_are_not_finite_are_refused(tmp_path, circle):
    model = transformers.AutoModelForDepthEstimation.from_pretrained(BUILT_IN_ROOT / "depth")
    torch.nn.init.constant_(model.head.conv2.bias, float("nan"))
    host = installed(tmp_path, model, transformers.AutoImageProcessor.from_pretrained(BUILT_IN_ROOT / "depth"))
    with pytest.raises(PiyingError, match=r"annotators/mine: head\.conv2\.bias holds values that are no numbers"):
        depth(circle[0], "auto", "per frame", host)


def test_cancelling_stops_between_frames(circle):
    class Stopped(Exception):
        pass

    class Stop:
        def step(self, done, preview=None):
            raise Stopped(done)

    host = HeadlessHost(chosen_device="cpu", on_progress=lambda phase, total: Stop())
    with pytest.raises(Stopped):
        depth(circle[0], "built-in", "per frame", host)


def test_without_a_pose_model_it_says_what_to_fetch(circle):
    with pytest.raises(PiyingError, match="No pose model is installed, .*vitpose-base-simple into models/annotators/"):
        pose.pose(circle[0], "auto", detector="auto", min_score=0.5, colours="OpenPose", host=HOST)
    assert model_choices(family.POSE, HOST) == ["auto"]


def vitpose(experts=1):
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        mlp_ratio=2, num_experts=experts, part_features=8, out_indices=[2],
    )  # fmt: skip
    return transformers.VitPoseForPoseEstimation(transformers.VitPoseConfig(backbone_config=backbone, num_labels=17))


@pytest.mark.parametrize("experts", [1, 2])
def test_vitpose_runs_on_the_whole_frame(tmp_path, circle, experts):
    host = installed(tmp_path, vitpose(experts), None)
    made, record = pose.pose(circle[0], "auto", detector="auto", min_score=0.5, colours="OpenPose", host=host)
    assert made.shape == circle[0].shape
    assert (record["model"], record["detector"]) == ("annotators/mine", "whole frame")


def test_crops_and_points_are_those_of_transformers():
    """Its image processor for ViTPose, which needs SciPy where this needs OpenCV."""
    pytest.importorskip("scipy", reason="transformers' image processor for ViTPose needs SciPy")
    from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil
    from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120), 3)
    frame, box = np.asarray(smooth), (60.0, 40.0, 95.0, 85.0)
    processor = VitPoseImageProcessorPil(size={"height": 64, "width": 48})
    coco = [[[box[0], box[1], box[2] - box[0], box[3] - box[1]]]]
    theirs = processor(images=smooth, boxes=coco, return_tensors="np")["pixel_values"][0]
    crop = pose.crop_around(box, 48 / 64)
    ours = pose.warp_crop(frame, crop, 48, 64)
    assert np.abs(ours - theirs).max() < 0.06  # OpenCV works in 1/32 of a pixel
    rows, columns = np.mgrid[:16, :12]
    rng = np.random.default_rng(2)
    tops = zip(rng.uniform(2, 9, 17), rng.uniform(2, 13, 17), strict=True)
    heat = np.stack([np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4) for x, y in tops]).astype(np.float32)
    expected = processor.post_process_pose_estimation(
        VitPoseEstimatorOutput(heatmaps=torch.from_numpy(heat[None])), boxes=coco
    )[0][0]
    found = pose.decode_heatmaps(heat, crop)
    assert np.abs(found[:, :2] - expected["keypoints"].numpy()).max() < 0.05
    assert np.allclose(found[:, 2], expected["scores"].numpy().ravel(), atol=1e-5)


def test_points_come_back_to_where_they_were():
    crop = pose.crop_around((30, 20, 90, 110), 48 / 64)
    rows, columns = np.mgrid[:64, :48]
    x, y = 20.3, 33.6
    heat = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)[None].astype(np.float32)
    ((found_x, found_y, sure),) = pose.decode_heatmaps(heat, crop)
    assert found_x == pytest.approx(crop.x + crop.width * (x / 47 - 0.5), abs=0.1)
    assert found_y == pytest.approx(crop.y + crop.height * (y / 63 - 0.5), abs=0.1)
    assert sure == pytest.approx(heat.max())


def rt_detr(names):
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16, encoder_attention_heads=2,
        d_model=16, num_queries=6, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_layers=1,
        decoder_attention_heads=2, num_denoising=0, hidden_expansion=1.0, id2label=names,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def finder(tmp_path, names):
    """Install a detector that takes everything for its first class."""
    detector = rt_detr(names)
    for head in detector.model.decoder.class_embed:
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([5.0, -5.0])
    processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    installed(tmp_path, vitpose(), None)
    return installed(tmp_path, detector, processor, "finder")


def test_people_are_found_first_where_a_detector_is_installed(tmp_path, circle):
    host = finder(tmp_path, {0: "person", 1: "cup"})
    boxes, name = pose.find_people(circle[0], "auto", 0.5, host)
    assert name == "annotators/finder"
    assert [len(around) for around in boxes] == [6] * len(circle[0])  # its six queries
    assert all(len(box) == 4 for around in boxes for box in around)
    _, record = pose.pose(circle[0], "auto", detector="auto", min_score=0.5, colours="OpenPose", host=host)
    assert record["detector"] == "annotators/finder"
    assert pose.find_people(circle[0], "whole frame", 0.5, host)[1] == "whole frame"


def test_other_things_are_nobody(tmp_path, circle):
    host = finder(tmp_path, {0: "cup", 1: "person"})
    assert pose.find_people(circle[0], "annotators/finder", 0.5, host)[0] == [[]] * len(circle[0])
    assert pose.pose(circle[0], "auto", detector="auto", min_score=0.5, colours="OpenPose", host=host)[0].max() == 0


def test_a_detector_of_other_things_is_refused(tmp_path, circle):
    host = finder(tmp_path, {0: "cat", 1: "cup"})
    with pytest.raises(PiyingError, match="no class named person"):
        pose.pose(circle[0], "auto", detector="auto", min_score=0.5, colours="OpenPose", host=host)


def test_another_models_folder_is_no_depth_model(tmp_path):
    folder = tmp_path / "annotators" / "other"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    host = HeadlessHost(models=[tmp_path])
    with pytest.raises(PiyingError, match="is a BertModel, not a DepthAnything"):
        models.check_model(family.DEPTH, "annotators/other", host)


@pytest.mark.parametrize(
    ("name", "settings", "refusal"),
    [
        (
            "config.json",
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.A", "AutoModelForDepthEstimation": "mine.A"}},
            "its configuration says model_type is 'mine'",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.A"}},
            "cannot be read as a depth model",
        ),
    ],
)
def test_python_code_in_a_folder_is_never_run(name, settings, refusal, tmp_path, monkeypatch):
    """Without a word on it, transformers asks at the terminal; here it would be told yes."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "annotators" / "mine", tmp_path / "ran"
    shutil.copytree(BUILT_IN_ROOT / "depth", folder)
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass A: pass\n")
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | settings))
    found = InstalledModel("annotators/mine", folder, 0)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    with pytest.raises(PiyingError, match=refusal):
        models.load(family.DEPTH, found, host), models.image_processor(family.DEPTH, found)
    assert not ran.exists()
