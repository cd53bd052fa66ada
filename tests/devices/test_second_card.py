"""Text encoders and VAE on a second device: the results of one device, within the memory of each of them."""

from __future__ import annotations

import gc
from dataclasses import replace

import piying
import pytest
import torch
from piying.core.catalog.selection import ModelHandle
from piying.core.executor import model_cache
from piying.core.host.base import MemoryRules
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.wan.family import WAN_VACE
from piying.core.wan.fast_decoder import with_decoder
from piying.core.wan.long.request import LongRequest
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample as film_of
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.run import sample as video_of
from piying.core.z_image.family import Z_IMAGE
from piying.core.z_image.request import ZImageRequest
from piying.core.z_image.run import sample as paint
from piying.nodes.model_nodes import ModelLoader
from piying.tests.core.test_fast_preview import FILE, Watcher
from piying.tests.core.test_recovery import nothing_kept
from piying.tests.core.test_taehv import CHANNELS, lively
from piying.tests.core.test_wan_video import MODELS, write_model
from piying.tests.core.test_z_image import folder, parts
from safetensors.torch import save_file

from .pretend import attached

__all__ = ["folder", "nothing_kept", "parts"]  # fixtures
GB, MIB = 2**30, 2**20
FIRST, SECOND = "pretend:0", "pretend:1"
FILM = WanRequest("a red circle moves right", "", 32, 32, 5, steps=2, cfg=4.0, shift=5.0, seed=3)
LONG = LongRequest(replace(FILM, num_frames=13, steps=1, cfg=1.0), 9, 5)


@pytest.fixture
def host(tmp_path):
    def make(device=FIRST, second=SECOND, kind=HeadlessHost, **options):
        cache = tmp_path / f"{device} {second}".replace(":", "")
        return kind(chosen_device=device, chosen_second=second, cache=cache, models=[tmp_path], **options)

    return make


def film(host, memory="auto", **handle):
    return film_of(ModelHandle(WAN_VACE, precision="fp32", memory=memory, **handle), FILM, host)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    with torch.no_grad():
        return film(HeadlessHost(chosen_device="cpu", cache=tmp_path_factory.mktemp("cpu")))[0]


def nothing_left(here):
    gc.collect()
    return not any(device.allocated for device in here.devices) and not here.pinned


def vace(host, _folder):
    return film(host)


def hunyuan(host, _folder):
    request = ImageRequest("a red circle", "", 64, 64, steps=2, cfg=3.0, seed=3)
    return draw(ModelHandle(HUNYUAN_DIT, "built-in", precision="fp32"), request, host)


def z_image(host, _folder):
    request = ZImageRequest("a red circle", "", 80, 64, steps=2, cfg=1.0, shift=3.0, seed=7, strength=0.6)
    picture = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(1))
    return paint(ModelHandle(Z_IMAGE, precision="fp32"), request, host, picture)


def image_to_video(host, folder):
    if not (folder / "diffusers" / "toy").exists():
        write_model(folder / "diffusers" / "toy", **MODELS["I2V"])
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    frames, _, record = video_of(ModelHandle(WAN_VIDEO, precision="fp32"), FILM, host, first=picture)
    return frames, record


RUNS = {
    vace: ["encode", "condition", "decode"],
    hunyuan: ["encode", "encode_2", "decode"],
    z_image: ["encode", "condition", "decode"],
    image_to_video: ["encode", "encode_image", "condition", "decode"],
}


@pytest.mark.parametrize("run", RUNS)
def test_all_but_sampling_moves_and_the_result_is_that_of_one_card(run, host, tmp_path, request):
    if run is z_image:
        request.getfixturevalue("folder")
    with attached(8 * GB):
        alone, record = run(host(second=""), tmp_path)
        assert "second" not in record
    model_cache.evict_models()
    with attached(8 * GB, 8 * GB) as here:
        made, record = run(host(), tmp_path)
        assert torch.equal(made, alone)
        assert record["device"] == FIRST
        assert (record["second"]["device"], record["second"]["phases"]) == (SECOND, RUNS[run])
        assert record["plan"].count(f", on {SECOND}") == len(RUNS[run])
        # Nothing but sampling has run on the first.
        assert 0 < here.devices[0].peak / GB == pytest.approx(record["peak_vram_gb"], abs=0.001)
        assert 0 < here.devices[1].peak / GB <= record["second"]["peak_vram_gb"]
        assert nothing_left(here)


def test_streamed_through_the_second_card(host, on_the_cpu):
    with attached(8 * GB, 8 * GB) as here:
        frames, record = film(host(), "streamed")
        assert torch.equal(frames, on_the_cpu)
        assert f"text_encoder fp32, streamed, whole, on {SECOND}" in record["plan"]
        assert nothing_left(here)


class Tenants(HeadlessHost):
    """Other models hold all of both cards, and leave the one that room is asked for on."""

    machine = None
    asked = None

    def memory_rules(self, device=""):
        return MemoryRules(evictable=self.machine.devices[bool(device)].others)

    def make_room(self, size, device=""):
        self.asked.append(device)
        card = self.machine.devices[bool(device)]
        card.others -= max(0, min(card.others, size - (card.total - card.others - card.allocated)))


def test_room_is_asked_for_on_the_card_that_a_phase_runs_on(host, on_the_cpu):
    with attached(8 * GB, 8 * GB) as here:
        for device in here.devices:
            device.others = 8 * GB
        tenants = host(kind=Tenants)
        tenants.machine, tenants.asked = here, []
        frames, _ = film(tenants)
        assert tenants.asked == [SECOND, SECOND, "", SECOND]
        assert torch.equal(frames, on_the_cpu)


class Display:
    def __init__(self, action=lambda: None):
        self.action = action

    def step(self, done, preview=None):
        self.action()

    def text(self, text):
        pass


def test_out_of_memory_on_the_second_card_goes_on_with_the_first_and_is_remembered(host, on_the_cpu, caplog):
    """Other programs take it as decoding begins, and are gone before the next run."""
    with attached(8 * GB, 8 * GB) as here:

        def begin(name, total):
            here.devices[1].others = 8 * GB - 1 if name == "Decoding" else 0
            return Display()

        frames, record = film(host(on_progress=begin))
        failed = [line for line in caplog.messages if line.startswith("Out of memory (")]
        assert len(failed) == 1 and f"decode: vae fp32, resident, whole, on {SECOND}: {SECOND} out of mem" in failed[0]
        assert torch.equal(frames, on_the_cpu)
        assert record["second"]["phases"] == ["encode", "condition"]
        # With no more of it free than then, it is not tried again.
        here.devices[1].others = 0
        caplog.clear()
        _, record = film(host())
        assert record["second"]["phases"] == ["encode", "condition"] and "Out of memory" not in caplog.text
        assert nothing_left(here)


def test_a_second_card_that_is_too_small_is_left_aside(host, on_the_cpu, caplog):
    with caplog.at_level("INFO", "piying"), attached(8 * GB, MIB) as here:
        frames, record = film(host())
        assert torch.equal(frames, on_the_cpu)
        assert "second" not in record and here.devices[1].peak == 0
    assert "decode: on the first card, because on the second bf16, resident, whole needs " in caplog.text
    assert "MB of the second card, 0 MB can be used." in caplog.text


def test_each_card_has_its_own_limit(host, on_the_cpu):
    limits = set()

    def begin(name, total):
        limits.add(tuple(device.limit for device in here.devices))
        return Display()

    with attached(8 * GB, 8 * GB) as here:
        frames, record = film(host(on_progress=begin, vram=4 * GB, second_vram=2 * GB))
        assert limits == {(4 * GB, 2 * GB)}
        assert [device.limit for device in here.devices] == [8 * GB, 8 * GB]
        assert record["second"]["phases"] == RUNS[vace]
        assert torch.equal(frames, on_the_cpu)


def test_previews_stay_on_the_first_card_and_the_fast_decoder_moves(host, tmp_path):
    (tmp_path / "vae_approx").mkdir()
    save_file(lively(CHANNELS, (64, 32, 16, 16)).state_dict(), tmp_path / "vae_approx" / FILE)
    handle = with_decoder(ModelHandle(WAN_VACE, precision="fp32"), FILE, host("cpu", ""))
    expected, _ = film_of(handle, FILM, host("cpu", ""))
    watcher, held = Watcher(), []

    class Looking(Display):
        def step(self, done, preview=None):
            before = here.devices[1].allocated
            watcher.step(done, preview)
            held.append((before, here.devices[1].allocated))

    with attached(8 * GB, 8 * GB) as here:
        made = host(on_progress=lambda name, total: Looking() if name == "Sampling" else Display())
        frames, record = film_of(handle, FILM, made)
        assert torch.equal(frames, expected)
        assert (
            record["second"]["phases"] == RUNS[vace] and f"taehv fp32, resident, whole, on {SECOND}" in record["plan"]
        )
        assert len(watcher.stills) == 2 and set(held) == {(0, 0)}
        assert nothing_left(here)


def test_the_loaders_card_comes_before_that_of_the_host(host, on_the_cpu):
    with attached(8 * GB, 8 * GB, 8 * GB) as here:
        frames, record = film(host(), second_device="pretend:2")
        assert record["second"]["device"] == "pretend:2"
        assert here.devices[1].peak == 0
        assert torch.equal(frames, on_the_cpu)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            "cuda:1",
            "second_device cuda:1: there is no such card here (pretend:0, pretend:1, cpu); the run has one card.",
        ),
        (FIRST, f"second_device {FIRST}: it is the first card; the run has one card."),
    ],
)
def test_a_workflows_card_that_is_not_here_is_said_once_and_left_out(host, on_the_cpu, caplog, named, said):
    with attached(8 * GB, 8 * GB) as here:
        frames, record = film(host(second=""), second_device=named)
        assert torch.equal(frames, on_the_cpu)
        assert "second" not in record and here.devices[1].peak == 0
    assert caplog.messages.count(said) == 1


def test_loaders_offer_the_other_cards():
    """Those of models with parts that move; a language model has none."""
    set_host(HeadlessHost(chosen_device=SECOND))
    with attached(MIB, MIB, MIB):
        loaders = {name: node for name, node in piying.NODE_CLASS_MAPPINGS.items() if issubclass(node, ModelLoader)}
        offered = {name: node.INPUT_TYPES()["optional"].get("second_device") for name, node in loaders.items()}
    set_host(HeadlessHost(chosen_device="cuda:9"))
    assert loaders["PiyingLoadZImage"].INPUT_TYPES()["optional"]["second_device"][0] == ["none"], "the run says why"
    set_host(None)
    assert offered.pop("PiyingLoadPromptModel") is None
    assert len(offered) == 4 and all(choices == ["none", FIRST, "pretend:2"] for choices, _ in offered.values())
    for loader in map(loaders.get, offered):
        assert loader().load("built-in", "auto")[0].second_device == ""
        assert loader().load("built-in", "auto", second_device="cuda:1")[0].second_device == "cuda:1"


def test_no_result_depends_on_it():
    """Windows of long videos are known by the text of their model."""
    handle = ModelHandle(WAN_VACE)
    assert repr(replace(handle, second_device="cuda:1")) == repr(handle)


def test_a_long_video_uses_it_and_its_windows_are_those_of_one_card(host, tmp_path, caplog):
    with_second, alone = (host(second=second, temp=tmp_path / "temp") for second in (SECOND, ""))
    alone.cache = with_second.cache
    with attached(8 * GB, 8 * GB) as here, caplog.at_level("INFO", "piying"):
        make_long_video(ModelHandle(WAN_VACE, precision="fp32"), LONG, with_second)
        assert here.devices[1].peak > 0
        assert sum("VACE Long Video: window " in line for line in caplog.messages) == 2
        caplog.clear()
        make_long_video(ModelHandle(WAN_VACE, precision="fp32"), LONG, alone)
        assert not any("VACE Long Video: window " in line for line in caplog.messages), "they are kept"
