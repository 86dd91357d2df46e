"""The line that says how a run stands, on a terminal and in a log file."""

import io
import os
import re

from pretrain.monitoring.progress_line import COLUMNS, Progress, _duration


def told(steps, seconds, total, tty=False, verdict=None, **figures):
    """What is written of `steps` steps of `seconds` each."""
    log = io.StringIO()
    log.isatty = lambda: tty
    times = iter(i * seconds for i in range(steps + 1))
    progress = Progress(total, 0, log=log, clock=lambda: next(times))
    for step in range(steps):
        line = {"step": step, "loss_over_ln_k": 0.9123, "images_per_s": 52.4, "data_wait": 0.021} | figures
        progress.step(line | ({"rankme": 87.2} if step % 10 == 0 else {}), verdict)
    progress.close()
    return log.getvalue()


def test_a_log_file_has_whole_lines_each_minute_and_the_last():
    lines = told(100, 6, 100).splitlines()
    assert [line.split("/")[0] for line in lines] == ["1", "11", "21", "31", "41", "51", "61", "71", "81", "91", "100"]
    assert lines[1] == "11/100  loss/lnK 0.912  RankMe 87  52 crops/s  wait 2%  8:54 left"
    assert "\r" not in "".join(lines)


def test_a_verdict_takes_the_place_of_the_rank():
    assert "point collapse  52 crops/s" in told(1, 1, 100, verdict="point collapse")


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    written = told(30, 1, 30, tty=True)
    assert "\n" not in written.rstrip("\n")
    assert written.rstrip("\n").split("\r")[-1].startswith("30/30  loss/lnK 0.912")


def test_the_longest_line_fits_and_a_narrow_terminal_keeps_what_matters(monkeypatch):
    huge = {"images_per_s": 123456.0, "data_wait": 1.0, "loss_over_ln_k": -1.234567}
    for line in told(3, 1e5, 10_000_000, verdict="uniform collapse", **huge).splitlines():
        assert len(line) <= COLUMNS
        assert "uniform collapse" in line
        assert line.endswith(" left")
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((40, 24)))
    monkeypatch.delenv("COLUMNS", raising=False)
    for shown in re.split(r"[\r\n]+", told(20, 1, 20, tty=True)):
        assert len(shown.rstrip()) < 40


def test_speed_and_wait_are_of_time_not_of_steps():
    log = io.StringIO()
    progress = Progress(3, 0, log=log, clock=iter([0.0, 1.0, 10.0, 11.0]).__next__)
    for step, (speed, wait) in enumerate([(64.0, 0.0), (64 / 9, 0.9), (64.0, 0.0)]):
        progress.step({"step": step, "loss_over_ln_k": 1.0, "images_per_s": speed, "data_wait": wait}, None)
    assert "17 crops/s  wait 74%  0:00 left" in log.getvalue().splitlines()[-1]  # 192 crops in 11 s, 8.1 s of them


def test_durations():
    assert [_duration(s) for s in (5, 245, 7445, 266_400)] == ["0:05", "4:05", "2:04:05", "3d 2h"]
