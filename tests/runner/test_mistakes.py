"""What a person gets wrong: a sentence, an exit code, nothing half-written, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "PiyingVACESample.steps=1", "--set", "PiyingExpandPrompt.max_new_tokens=2"]


def assert_refused(ran, code, *words):
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("PiyingVACESample.num_frames=10", ["VACE Sample (node", "num_frames is 10", "use 9 or 13"]),
        ("PiyingVACESample.width=100", ["width is 100", "use 96 or 112"]),
        ("PiyingVACESample.height=0", ["height is 0", "use 16"]),
        ("PiyingVACESample.steps=0", ["steps is 0", "at least 1"]),
        ("PiyingVACESample.cfg=nan", ["cfg is 'nan'", "finite number"]),
        ("PiyingVACESample.steps=many", ["steps is 'many'", "whole number"]),
        ("PiyingVACESample.seed=-1", ["seed is -1", "at least 0"]),
        ("PiyingVACESample.seed=18446744073709551616", ["seed is", "at most 18446744073709551615"]),
        ("PiyingVACESample.cfg=1e300", ["cfg is", "at most 30"]),
        ("PiyingVACESample.cfg=-1e300", ["cfg is", "at least "]),
        ("PiyingLoadWanVACE.model=wan9", ["Load Wan VACE", "'wan9' is not installed", "auto, built-in"]),
        ("PiyingLoadWanVACE.precision=int1", ["precision is 'int1'", "auto, bf16, fp16, fp32"]),
        ("PiyingVACESample.framecount=5", ["no input 'framecount'", "num_frames"]),
        ("VACE Sampler.steps=5", ["No node 'VACE Sampler'", "VACE Sample"]),
        ("steps=5", ["NODE.INPUT=VALUE"]),
        ("SaveVideo.filename_prefix=../../escaped", ["Save Video", "filename_prefix", ".."]),
        ("SaveVideo.filename_prefix=/etc/escaped", ["absolute path"]),
    ],
)
def test_wrong_values(command, assignment, words):
    ran = command("workflows/t2v.json", "--set", assignment)
    assert_refused(ran, 2, *words)
    assert not command.output.exists()


@pytest.mark.parametrize(
    "modes",
    [("--check", "--plan"), ("--check", "--export-api=a.json"), ("--plan", "--convert-to-piying=a.json")],
)
def test_two_modes_are_refused_by_name(command, modes):
    ran = command("workflows/t2v.json", *modes)
    assert ran.returncode == 2
    for mode in modes:
        assert mode.partition("=")[0] in ran.stderr.splitlines()[-1]


def test_a_workflow_beside_a_file_to_inspect_is_refused(command):
    ran = command("workflows/t2v.json", "--inspect", "builtin_models/wan_vace/vae")
    assert ran.returncode == 2
    assert "--inspect: not allowed with argument workflow (workflows/t2v.json)" in ran.stderr.splitlines()[-1]


def test_an_input_that_a_class_does_not_declare_is_named(command, write):
    api = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": None, "bogus": 3}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": [1, 2, 3]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefx": "b"}},
    }
    ran = command(write(api), "--check")
    assert ran.returncode == 2
    assert "(node 2): has no input 'bogus'. It has: images, filename_prefix. The value is not used." in ran.stderr
    assert "(node 2): filename_prefix is null, which becomes the text 'None', as in ComfyUI." in ran.stderr
    assert "filename_prefix is [1, 2, 3], which is not a STRING." in ran.stderr
    assert "has no input 'filename_prefx'. Did you mean filename_prefix?" in ran.stderr


def test_a_node_without_its_saved_values_is_named(command, write, t2v):
    sample = next(node for node in t2v["nodes"] if node["type"] == "PiyingVACESample")
    sample["widgets_values"] = None
    ran = command(write(t2v), "--check")
    assert ran.returncode == 0, ran.stderr
    assert f"(node {sample['id']}): the file holds no values for its widgets" in ran.stderr
    assert ran.stderr.count("the file holds no values") == 1


def test_a_config_with_a_byte_order_mark_is_read(command, tmp_path):
    folder = tmp_path / "models" / "diffusers" / "mine"
    shutil.copytree(ROOT / "builtin_models" / "hunyuan_dit", folder)
    config = folder / "transformer" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    values = [
        "PiyingLoadHunyuanDiT.model=diffusers/mine",
        "PiyingHunyuanDiT.width=1024",
        "PiyingHunyuanDiT.height=1024",
    ]
    chosen = [f"--set={value}" for value in values]
    ran = command("workflows/t2i.json", "--check", "--models", tmp_path / "models", *chosen)
    assert ran.returncode == 0, ran.stderr


def test_hunyuan_sizes(command):
    ran = command(
        "workflows/t2i.json", "--set", "PiyingHunyuanDiT.width=1000", "--set", "PiyingHunyuanDiT.height=1000"
    )
    assert_refused(ran, 2, "1000×1000", "Nearest: 1024×1024", "1280×768")


def test_a_size_of_the_toy_is_refused_for_another_model_before_it_runs(command, tmp_path):
    folder = tmp_path / "models" / "diffusers" / "mine"
    shutil.copytree(ROOT / "builtin_models" / "hunyuan_dit", folder)
    for model, code in (("auto", 2), ("diffusers/mine", 2), ("built-in", 0)):
        sizes = [f"--set=PiyingLoadHunyuanDiT.model={model}", "--set=PiyingHunyuanDiT.width=96"]
        ran = command(
            "workflows/t2i.json",
            "--check",
            "--models",
            tmp_path / "models",
            *sizes,
            "--set=PiyingHunyuanDiT.height=64",
        )
        assert ran.returncode == code, ran.stderr
        if code:
            assert_refused(ran, 2, "96×64", "which this model was not trained on. Nearest: 1024×768")


def test_a_number_that_comes_by_wire_is_refused_as_a_widgets_is(command, write):
    number = {"class_type": "PrimitiveInt", "inputs": {"value": 10}}
    loaded = {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}}
    widgets = {"prompt": "a cat", "negative_prompt": "", "width": 32, "height": 32, "steps": 1}
    widgets |= {"cfg": 1.0, "shift": 5.0, "seed": 1}
    sampler = {"class_type": "PiyingVACESample", "inputs": {"model": ["1", 0], "num_frames": ["2", 0], **widgets}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    graph = write({"1": loaded, "2": number, "3": sampler, "4": shown})
    assert_refused(command(graph, "--check"), 2, "VACE Sample (node 3): num_frames is 10", "use 9 or 13")
    assert command(graph, "--check", "--set=2.value=9").returncode == 0


def test_titles_classes_and_ids_name_nodes(command):
    for name in ("VACE Sample", "PiyingVACESample", "5"):
        assert command("workflows/t2v.json", "--check", "--set", f"{name}.steps=3").returncode == 0


def test_an_ambiguous_name_lists_the_candidates(command, write):
    node = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
    graph = {"1": node, "2": node, "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}
    assert_refused(command(write(graph), "--set", "PrimitiveInt.value=2"), 2, "several nodes: 1 (Int), 2 (Int)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ("", ["carries no", "workflow"]),
        ("[]", ["JSON object"]),
        ("{}", ["no nodes"]),
        ('{"1": 5}', ["Node 1"]),
        ('{"1": {"class_type": "PreviewAny", "inputs": []}}', ["inputs is not an object"]),
        ('{"1": {"class_type": "PrimitiveInt", "inputs": {"value": 1}}}', ["no output node"]),
        ('{"1": {"class_type": "PreviewAny", "inputs": {}}}', ["source is missing"]),
        ('{"1": {"class_type": "PreviewAny", "inputs": {"source": ["9", 0]}}}', ["node 9, which is not there"]),
        ('{"1": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}', ["output 0"]),
        ('{"1": {"class_type": "KSampler", "inputs": {}}}', ["'KSampler' is not known here"]),
        ('{"1": {"class_type": "PiyingVaceSample", "inputs": {}}}', ["Did you mean PiyingVACESample?"]),
        ('{"nodes": [5], "links": []}', ["should be an object, not 5"]),
        ('{"nodes": [{"id": 1, "type": "Nope"}], "links": []}', ["'Nope' is not known here"]),
    ],
)
def test_wrong_files(command, write, text, words):
    ran = command(write(text))
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert any(word in ran.stderr for word in words), ran.stderr


@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_texts_of_a_workflow_are_obeyed_by_no_terminal_and_pass_for_no_message(command, write, form):
    hostile = "a\nerror: spoofed\r\x1b]0;title\x07\x9b31m\u202e" + "b" * 100_000
    shown = {"class_type": "PreviewAny", "inputs": {}, "_meta": {"title": hostile}}
    linked = {"class_type": "PreviewAny", "inputs": {"source": [hostile, 0]}}
    number = {"class_type": "PrimitiveInt", "inputs": {"value": hostile}}
    ran = command(write({"1": shown, "2": linked, "3": number, hostile: shown}), "--check", *form)
    text = ran.stdout + ran.stderr
    assert ran.returncode == 2 and "the input source is missing" in text and len(text) < 3000
    assert text.replace("\n", "").isprintable() and "\nerror" not in text


def test_a_circle(command, write):
    graph = {
        "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
    }
    assert_refused(command(write(graph)), 2, "depends on itself")


def test_a_check_of_the_outputs_that_are_valid_names_the_others(command, write):
    shown = {"class_type": "PreviewAny", "inputs": {"source": "a"}}
    wrong = {"class_type": "SaveImage", "inputs": {"images": "a", "filename_prefix": "x"}}
    ran = command(write({"1": shown, "2": wrong}), "--check", "--partial")
    assert ran.returncode == 2
    assert "left out: Save Image (node 2): images is 'a', which is no IMAGE." in ran.stderr
    assert "nothing wrong" not in ran.stderr


def test_deep_nesting(command, write):
    assert_refused(command(write('{"1":' + "[" * 100_000)), 2, "nested too deeply")


def test_a_missing_file(command):
    assert_refused(command("nowhere.json"), 2, "nowhere.json", "cannot be read")


@pytest.mark.parametrize(
    ("node", "name", "content", "words"),
    [
        ("LoadVideo", "x.mp4", b"", "no video"),
        ("LoadVideo", "x.mp4", None, "cut short or no video"),
        ("LoadImage", "x.png", b"", "not an image this pack can read"),
        ("LoadImage", "x.png", None, "is damaged or cut short"),
        ("LoadImageMask", "x.png", None, "is damaged or cut short"),
    ],
)
def test_media_that_cannot_be_read_are_refused_by_a_check(command, write, tmp_path, node, name, content, words):
    samples = ROOT / "builtin_models" / "samples"
    whole = (samples / ("moving_circle.mp4" if name == "x.mp4" else "red_triangle.png")).read_bytes()
    (tmp_path / name).write_bytes(
        whole[: len(whole) // (8 if node == "LoadVideo" else 2)] if content is None else content
    )
    inputs = {"LoadVideo": {"file": name}, "LoadImage": {"image": name}}.get(node, {"image": name, "channel": "red"})
    graph = {"1": {"class_type": node, "inputs": inputs}}
    graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    assert_refused(command(write(graph), "--check", "--input", tmp_path), 2, words)


def test_a_file_without_a_workflow(command, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert_refused(command(tmp_path / "plain.png"), 2, "plain.png")


def test_a_truncated_mp4(finished, command, tmp_path):
    data = Path(finished[1].stdout.strip()).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:300])
    ran = command(tmp_path / "cut.mp4")
    assert_refused(ran, 2, "cut.mp4")


def test_models_that_are_not_there(command):
    assert_refused(command("workflows/t2v.json", "--models", "nowhere"), 2, "nowhere", "no such folder")


@pytest.mark.parametrize("model", ["auto", "diffusers/wan"])
def test_a_damaged_model_is_refused_by_a_check_as_by_a_run(command, tmp_path, model):
    folder = tmp_path / "models" / "diffusers" / "wan"
    shutil.copytree(ROOT / "builtin_models" / "wan_vace", folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    options = [*SMALL, "--models", tmp_path / "models", f"--set=PiyingLoadWanVACE.model={model}"]
    for more in ([], ["--check"]):
        ran = command("workflows/t2v.json", *options, *more)
        assert_refused(ran, 2, "(node ", str(folder), "The file is cut short or damaged")
    assert command.files() == []


def test_a_device_that_is_not_there(command):
    for more in ([], ["--check"]):
        ran = command("workflows/t2v.json", *SMALL, "--device", "cuda:7", *more)
        assert_refused(ran, 2, "'cuda:7' cannot be used here", "cpu")


def test_what_is_no_file_is_not_replaced_by_one(command, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to("real.json")
    workflow, option = "workflows/t2v.json", "--export-api"
    assert_refused(command(workflow, option, tmp_path / "pipe"), 2, str(tmp_path / "pipe"), "is not a file")
    assert (tmp_path / "pipe").is_fifo()
    assert command(workflow, option, tmp_path / "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())


def test_an_output_folder_that_is_a_file(command):
    command.output.write_text("kept")
    assert_refused(command("workflows/t2v.json", *SMALL), 2, "a file stands where a folder is needed")
    assert command.output.read_text() == "kept"


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(command):
    command.output.mkdir(mode=0o500)
    assert_refused(command("workflows/t2v.json", *SMALL), 2, "cannot be written to", "Permission denied")


def test_no_ffmpeg(command, tmp_path):
    environment = os.environ | {"IMAGEIO_FFMPEG_EXE": str(tmp_path / "no-ffmpeg")}
    ran = command("workflows/t2v.json", *SMALL, env=environment)
    assert ran.returncode in (1, 2)
    assert "Traceback" not in ran.stderr
    assert "ffmpeg" in ran.stderr
    assert command.files() == []


@pytest.mark.skipif(os.name == "nt", reason="file size limits are Unix's")
def test_a_full_disk(command):
    """A limit on the size of files stands in for a disk that runs full while the video is written."""
    code = (
        "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.argv = ['runner', *sys.argv[1:]]; runpy.run_module('runner', run_name='__main__')"
    )
    arguments = ["workflows/t2v.json", *SMALL, "--output", str(command.output)]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert_refused(ran, 1, "Save Video (node", str(command.output))
    assert command.files() == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.getuid() != 0, reason="needs to mount a small file system")
def test_a_disk_that_is_really_full(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=8k tmpfs {disk} && exec {sys.executable} -m runner workflows/t2v.json"
    arguments = [*SMALL, "--output", str(disk)]
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{script} "$@"; ls -A {disk}', "sh", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "mount" in ran.stderr or "unshare" in ran.stderr:
        pytest.skip(f"cannot mount here: {ran.stderr.strip()[:80]}")
    assert_refused(ran, 1, "Save Video (node", "full")


def test_verbose_shows_the_traceback(command):
    ran = command("workflows/t2v.json", "--verbose", "--set", "PiyingVACESample.num_frames=10")
    assert ran.returncode == 2
    assert "Traceback" in ran.stderr


def test_an_error_comes_within_two_seconds(command, t2v, write):
    """In time of the processor, which does not depend on what else the machine does."""
    resource = pytest.importorskip("resource", reason="process times are read with the resource module of Unix")
    t2v["nodes"][0]["mode"] = 2
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = command(write(json.dumps(t2v)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 2
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.json": None}, "there is no tokenizer in it"),
        ({"tokenizer.json": "{}"}, "holds no tokenizer"),
        ({"tokenizer.json": "another model's"}, "has 1101 words, and the model's table 150 rows"),
        ({"tokenizer_config.json": '{"pad_token": "<none>"}'}, "pad_token '<none>' is no word of tokenizer.json"),
        ({"tokenizer_config.json": '{"pad_token": null}'}, "pad_token None is no word of tokenizer.json"),
        ({"tokenizer_config.json": '{"eos_token": "<end>"}'}, "eos_token '<end>' is no word of tokenizer.json"),
        ({"tokenizer_config.json": '{"padding_side": "middle"}'}, "padding_side is 'middle'; it is left or right"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json"),
    ],
)
def test_a_tokenizer_of_no_use_is_refused_by_a_check_as_by_a_run(command, tmp_path, changes, words):
    folder = tmp_path / "models" / "diffusers" / "wan"
    shutil.copytree(ROOT / "builtin_models" / "wan_vace", folder)
    for name, text in changes.items():
        file = folder / "tokenizer" / name
        if text is None:
            file.unlink()
        elif text.startswith("another"):
            shutil.copy(ROOT / "builtin_models" / "prompt" / name, file)
        else:
            file.write_text(text)
    for more in ([], ["--check"]):
        ran = command("workflows/t2v.json", *SMALL, "--models", tmp_path / "models", *more)
        assert_refused(ran, 2, str(folder / "tokenizer"), words)


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("tokenizer.json", "{}", 2),
        ("tokenizer_config.json", "[]", 2),
        ("tokenizer_config.json", '{"eos_token": "<end>"}', 2),
        ("tokenizer_config.json", '{"eos_token": null, "pad_token": null}', 0),
        ("chat_template.jinja", None, 2),
        ("chat_template.jinja", "{% for %}", 2),
        ("chat_template.jinja", "{{ messages | unheard }}", 2),
        ("chat_template.jinja", "{{ 9**(9**9) }}", 2),
        ("chat_template.jinja", "{{ 'a' * 1000 * 1000 * 1000 * 1000 }}", 2),
        ("chat_template.jinja", "{{ 'a' | center(10000000000) }}", 2),
        ("chat_template.jinja", "{{ '  ' * loops }}", 0),
        ("chat_template.jinja", "{% for a in messages %}" * 25 + "{% endfor %}" * 25, 2),
        ("chat_template.jinja", "{% generation %}{{ messages[0].content }}{% endgeneration %}", 0),
        ("config.json", '{"layer_types": ["mamba", "mamba", "mamba", "mamba"]}', 2),
    ],
)
def test_a_prompt_model_that_cannot_answer_is_refused_by_a_check(command, tmp_path, name, text, code):
    folder = tmp_path / "models" / "LLM" / "mine"
    shutil.copytree(ROOT / "builtin_models" / "prompt", folder)
    if text is None:
        (folder / name).unlink()
    elif name == "config.json":
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | json.loads(text)))
    else:
        (folder / name).write_text(text)
    choose = "--set=PiyingLoadPromptModel.model=LLM/mine"
    ran = command("workflows/t2i.json", "--check", "--models", tmp_path / "models", choose)
    assert ran.returncode == code, ran.stderr
    if code:
        place = folder if name in ("chat_template.jinja", "config.json") else folder / name
        assert_refused(ran, 2, "model 'LLM/mine' cannot be used", str(place))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of this kind")
def test_a_limit_below_what_torch_needs_is_told_in_a_sentence(tmp_path):
    run = f"ulimit -v 400000; exec {sys.executable} -m runner workflows/t2v.json --output {tmp_path}"
    ran = subprocess.run(["bash", "-c", run], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert_refused(ran, 1, "memory ran out (libtorch", "It is limited to 0.4 GB by ulimit -v")
