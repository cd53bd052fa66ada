"""Finished windows on their way to disk: beside the sampling, in order, and whole or not at all."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import weakref
from fractions import Fraction

import psutil
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.media import ffmpeg
from piying.core.media.mp4 import write_mp4
from piying.core.media.video import probe
from piying.core.wan.long import video_writer
from piying.core.wan.long.sample import make_long_video
from piying.core.wan.long.window_cache import FinishedWindow, WindowCache

from .test_long_video import FILM, HANDLE, host_in, kept_frames, small, whole

SOON = 60  # seconds that no step here takes
SOUND = {"waveform": torch.sin(torch.arange(16000) / 20)[None, None] / 2, "sample_rate": 8000}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of three windows, with sound."""
    host, _ = host_in(tmp_path_factory.mktemp("film"))
    path, _ = make_long_video(HANDLE, FILM, host, audio=SOUND)
    return host, path


@pytest.fixture
def after_film(film, tmp_path):
    """The windows of the film, in files of its own, oldest first, and a host that finds them."""
    shutil.copytree(film[0].cache_folder(), tmp_path / "cache")
    host, _ = host_in(tmp_path)
    files = (tmp_path / "cache" / "long_video").glob("*.mkv")
    return host, sorted(files, key=lambda path: path.stat().st_mtime_ns)


def encoders():
    """Return the ffmpegs that this process runs."""
    return [child for child in psutil.Process().children(recursive=True) if child.is_running()]


def left_over(folder):
    """Return what lies in the folders of a host beside whole windows and whole videos."""
    files = [path for part in ("temp", "cache/long_video") for path in (folder / part).rglob("*")]
    return [path for path in files if path.name.startswith(".") or (path.is_file() and ".part" in path.name)]


def wait_for(until):
    for _ in range(SOON * 100):
        if until():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


# --- beside, and the same --------------------------------------------------------------------------------------


def test_the_file_is_that_of_writing_it_at_the_end(film, tmp_path):
    host, path = film
    frames = (whole(host, FILM) * 255).round().byte().numpy()
    write_mp4(tmp_path / "end.mp4", iter(frames), Fraction(16), audio=SOUND)
    assert path.read_bytes() == (tmp_path / "end.mp4").read_bytes()


def test_windows_are_kept_and_encoded_while_the_next_one_is_sampled(film, tmp_path, monkeypatch):
    sampled, encoded, beside = [threading.Event() for _ in range(3)], threading.Event(), []
    put, write = WindowCache.put, write_mp4

    def slow_put(self, key, window):
        if len(beside) < 2:
            beside.append(sampled[len(beside) + 1].wait(SOON))
        put(self, key, window)

    def told_write(path, frames, *rest, **more):
        def passed():
            for index, frame in enumerate(frames):
                if index:  # one frame on, so the first one is in ffmpeg
                    encoded.set()
                yield frame

        write(path, passed(), *rest, **more)

    def when(done):
        if done % 1000 > 100:
            sampled[done // 1000].set()
        if done > 2100 and not encoded.is_set():
            beside.append(encoded.wait(SOON))

    monkeypatch.setattr(WindowCache, "put", slow_put)
    monkeypatch.setattr(video_writer, "write_mp4", told_write)
    host, _ = host_in(tmp_path, when)
    path, _ = make_long_video(HANDLE, FILM, host, audio=SOUND)
    assert len(beside) >= 2 and all(beside)
    assert path.read_bytes() == film[1].read_bytes()


def test_one_window_waits_however_slow_the_disk_is(tmp_path, monkeypatch):
    windows, in_memory, third, put = weakref.WeakSet(), [], threading.Event(), WindowCache.put
    add, waits = video_writer.VideoWriter.add, iter([3])

    def told_add(self, part, made, needed):
        windows.add(made)
        add(self, part, made, needed)

    def slow_put(self, key, window):
        third.wait(next(waits, 0))
        put(self, key, window)

    def when(done):
        if done > 2000:
            third.set()
        in_memory.append(len(windows))

    monkeypatch.setattr(WindowCache, "put", slow_put)
    monkeypatch.setattr(video_writer.VideoWriter, "add", told_add)
    host, _ = host_in(tmp_path, when)
    make_long_video(HANDLE, FILM, host)
    assert max(in_memory) == 1


def test_encoding_that_is_behind_holds_no_window_up(tmp_path, monkeypatch):
    go_on, write = threading.Event(), write_mp4

    def stuck_write(path, frames, *rest, **more):
        write(path, (frame for frame in frames if go_on.wait(SOON)), *rest, **more)

    monkeypatch.setattr(video_writer, "write_mp4", stuck_write)
    shelf, window = WindowCache(tmp_path / "shelf"), FinishedWindow(torch.zeros(5, 16, 16, 3, dtype=torch.uint8))
    with video_writer.video_writer(shelf, tmp_path / "video.mp4", None, lambda: None) as taker:
        for key in "abc":
            taker.add(video_writer.Segment(key, 1, 5), window, ())
        wait_for(lambda: shelf.has("c", 5))
        assert not go_on.is_set()
        go_on.set()
    assert probe(tmp_path / "video.mp4").frames == 12


@pytest.mark.parametrize("joining", [{"anchor": "colours"}, {"anchor": "reference"}, {"seams": "blended"}])
def test_a_window_goes_on_from_memory_as_it_does_from_disk(tmp_path, joining):
    host, _ = host_in(tmp_path)
    path, _ = make_long_video(HANDLE, small(17, **joining), host)
    files = (tmp_path / "cache" / "long_video").glob("*.mkv")
    max(files, key=lambda path: path.stat().st_mtime_ns).unlink()
    again, record = make_long_video(HANDLE, small(17, **joining), host)
    assert record["windows_kept_from_before"] == 2
    assert again.read_bytes() == path.read_bytes()


def test_a_window_made_again_between_others_stays_in_its_place(film, after_film, monkeypatch):
    put = WindowCache.put
    monkeypatch.setattr(WindowCache, "put", lambda *window: time.sleep(0.5) or put(*window))
    host, files = after_film
    files[1].write_bytes(files[1].read_bytes()[:400])
    path, record = make_long_video(HANDLE, FILM, host, audio=SOUND)
    assert record["windows_kept_from_before"] == 2
    assert path.read_bytes() == film[1].read_bytes()


# --- failures --------------------------------------------------------------------------------------------------


def failing_ffmpeg(folder, sign, times):
    """Return an ffmpeg for which the disk is full the `times`-th time that `sign` is among its arguments."""
    program, seen = folder / "ffmpeg", folder / "seen"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{sign}*) echo x >> {seen}\n'
        f"if [ $(wc -l < {seen}) -eq {times} ]; then\n"
        'head -c 3000 > /dev/null; echo "av_interleaved_write_frame(): No space left on device" >&2; exit 1\n'
        "fi;; esac\n"
        f'exec {ffmpeg.ffmpeg_exe()} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(
    ("sign", "times", "said"),
    [
        ("ffv1", 2, "Cannot keep a finished window in .*long_video: the disk is full. Free some space"),
        ("libx264", 1, "Cannot save the video in .*piying: the disk is full. Free some space"),
    ],
)
def test_a_full_disk_is_told_at_the_next_window_and_leaves_what_is_kept(
    film, tmp_path, monkeypatch, sign, times, said
):
    asked = small(33)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", failing_ffmpeg(tmp_path, sign, times))
    host, bars = host_in(tmp_path, lambda done: time.sleep(0.05))
    with pytest.raises(PiyingError, match=said):
        make_long_video(HANDLE, asked, host)
    made = len({done // 1000 for done in bars[0].steps if done % 1000 == 990})
    kept = kept_frames(host)
    assert made < 5, "it is told before the end"
    assert len(kept) == (made if sign == "libx264" else 1), "nothing that could be kept is lost"
    assert not left_over(tmp_path) and not encoders()
    host, _ = host_in(tmp_path)
    _, record = make_long_video(HANDLE, asked, host)
    assert record["windows_kept_from_before"] == len(kept)
    assert torch.equal(whole(host, asked)[:9], whole(film[0], FILM)[:9])


def test_stopping_while_sampling_keeps_what_is_finished_and_leaves_nothing_running(tmp_path, monkeypatch):
    put = WindowCache.put
    monkeypatch.setattr(WindowCache, "put", lambda *window: time.sleep(0.3) or put(*window))

    def stop_in_the_third(done):
        if done > 2100:
            wait_for(encoders)
            raise KeyboardInterrupt

    host, _ = host_in(tmp_path, stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_long_video(HANDLE, FILM, host, audio=SOUND)
    assert len(kept_frames(host)) == 2, "the second was on its way"
    assert not encoders() and not left_over(tmp_path)
    assert not list((tmp_path / "temp").rglob("*.mp4"))


class Cancelled(Exception):
    """What a host raises when the user has cancelled."""


class CancellableHost(HeadlessHost):
    """Notes which threads ask, and cancels where it is told to."""

    cancelled = False
    asked = frozenset()

    def check_cancelled(self):
        self.asked |= {threading.current_thread()}
        if self.cancelled:
            raise Cancelled


def test_cancelling_while_the_rest_is_encoded(after_film, tmp_path, monkeypatch):
    """Only the thread that samples may ask a host: ComfyUI's forgets that the user has cancelled once it has told."""
    write, taken = write_mp4, []

    def slow_write(path, frames, *rest, **more):
        def passed():
            for frame in frames:
                host.cancelled = len(taken) == 3
                time.sleep(0.2)
                taken.append(frame)
                yield frame

        write(path, passed(), *rest, **more)

    monkeypatch.setattr(video_writer, "write_mp4", slow_write)
    host = CancellableHost(chosen_device="cpu", temp=tmp_path / "temp", cache=tmp_path / "cache")
    with pytest.raises(Cancelled):
        make_long_video(HANDLE, FILM, host, audio=SOUND)
    assert len(taken) < 17, "it does not wait for the end"
    assert host.asked == {threading.current_thread()}
    assert not encoders() and not left_over(tmp_path)


def test_the_next_window_does_not_reach_the_disk_when_one_fails(tmp_path):
    """A later window without the one before it would be of no use, and must not hide that one is missing."""
    window = FinishedWindow(torch.zeros(5, 16, 16, 3, dtype=torch.uint8))
    (tmp_path / "shelf").write_text("a file where the folder should be")
    shelf = WindowCache(tmp_path / "shelf")
    with (
        pytest.raises(PiyingError, match="Cannot keep a finished window in .*shelf: a file stands where"),
        video_writer.video_writer(shelf, tmp_path / "video.mp4", None, lambda: None) as taker,
    ):
        taker.add(video_writer.Segment("a", 0, 5), window, ("a",))
        (tmp_path / "other").mkdir()
        taker.add(video_writer.Segment("b", 0, 5), window, ("a", "b"))
        pytest.fail("the second is not taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "shelf"]
