"""What the loop reports, as metrics on disk and as progress on a screen."""

from __future__ import annotations

import io
import json
import resource
import signal
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from engine.errors import StoreError
from engine.metrics.monitor import Monitor, read_metrics
from engine.metrics.progress import PlainView
from engine.metrics.timeline import read_timeline


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> tuple[float, float]:
        """Let time pass; return it as an interval."""
        self.now += seconds
        return self.now - seconds, self.now


class Desk:
    """A monitor with its clock and all that it printed."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.clock, self.file, self.path = Clock(), io.StringIO(), folder / "metrics.jsonl"
        width = 200 if options.get("live") else 60
        console = Console(file=self.file, force_terminal=bool(options.get("live")), width=width)
        self.monitor = Monitor(folder, console=console, clock=self.clock, **options)  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def train(self, iteration: int, first: int, last: int, loss: float) -> None:
        self.monitor.begin_iteration(iteration, 3)
        for step in range(first, last + 1):
            self.clock.work(1.0)
            self.monitor.step(step, 9, {"loss": loss, "rewards/margins": 0.25}, 1.0)


def test_an_iteration_yields_the_loops_metrics_and_the_times_of_its_stages(tmp_path: Path):
    desk = Desk(tmp_path)
    with desk.monitor as monitor:
        monitor.begin_iteration(1, 3)
        monitor.expect("generate", 2)
        monitor.shard_done("generate", *desk.clock.work(4.0), tokens=100.0)
        monitor.shard_done("generate", *desk.clock.work(4.0), tokens=300.0)
        monitor.busy("deliver", *desk.clock.work(1.0))
        desk.clock.work(1.0)
        figures = monitor.end_iteration({"evaluate/win_rate": 0.75})
    assert figures["evaluate/win_rate"] == 0.75
    assert (figures["time/generate/busy"], figures["time/generate/waiting"], figures["time/wall"]) == (8.0, 2.0, 10.0)
    assert (figures["time/deliver/busy"], figures["time/nothing"]) == (1.0, 1.0)
    assert (figures["generate/tokens"], figures["generate/tokens_per_second"]) == (400.0, 50.0)
    stage, iteration = read_metrics(desk.path)
    assert (stage["kind"], stage["stage"], stage["generate/tokens"]) == ("stage", "generate", 400.0)
    assert (iteration["kind"], iteration["iteration"], iteration["step"]) == ("iteration", 1, None)
    assert {name: iteration[name] for name in figures} == figures


def test_steps_keep_trls_names_and_count_as_busy_time_of_the_learner(tmp_path: Path):
    desk = Desk(tmp_path)
    with desk.monitor as monitor:
        monitor.begin_iteration(2, 3)
        desk.clock.work(5.0)
        monitor.step(1, 4, {"loss": 0.5, "rewards/chosen": 0.1, "logps/rejected": -31.5}, 3.0, tokens=600)
        figures = monitor.end_iteration({})
    step = read_metrics(desk.path)[0]
    assert (step["iteration"], step["step"], step["kind"]) == (2, 1, "step")
    assert (step["rewards/chosen"], step["logps/rejected"], step["time/step"]) == (0.1, -31.5, 3.0)
    assert (figures["time/learn/busy"], figures["learn/tokens_per_second"]) == (3.0, 200.0)


def test_every_line_says_when_in_utc(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.note("hello")
    [note] = read_metrics(desk.path)
    assert datetime.fromisoformat(note["time"]).utcoffset() == timedelta(0)


def test_numbers_that_json_lacks_become_null_and_are_named(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 1)
    desk.monitor.step(1, 1, {"loss": float("nan"), "grad_norm": float("-inf"), "lr": 5e-7}, 1.0)
    line = desk.path.read_text().splitlines()[0]
    step = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (step["loss"], step["grad_norm"], step["lr"]) == (None, None, 5e-7)
    assert step["nonfinite"] == ["loss", "grad_norm"]


def test_a_metric_named_like_a_key_of_the_line_is_refused(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 1)
    with pytest.raises(ValueError, match="kind"):
        desk.monitor.end_iteration({"kind": 1.0})


def test_a_step_outside_of_any_iteration_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="begin_iteration"):
        Desk(tmp_path).monitor.step(1, 2, {"loss": 0.1}, 1.0)


def test_a_line_is_on_disk_as_soon_as_it_is_reported(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.note("the driver may be killed right after this")
    assert "right after this" in desk.path.read_text()


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.note("first")
    size = desk.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # room for ten more bytes
    try:
        with pytest.raises(StoreError, match="make room"):
            desk.monitor.note("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    desk.monitor.note("third")
    assert [record["text"] for record in read_metrics(desk.path)] == ["first", "third"]


def test_steps_done_again_after_a_crash_are_read_once_and_the_last_counts(tmp_path: Path):
    Desk(tmp_path).train(1, 1, 6, loss=0.5)  # killed: never closed
    Desk(tmp_path).train(1, 5, 9, loss=0.25)
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in steps if record["kind"] == "step"] == list(range(1, 10))
    assert [record["loss"] for record in steps if record["kind"] == "step"] == [0.5] * 4 + [0.25] * 5


def test_a_repeated_step_stands_where_it_was_written_last(tmp_path: Path):
    Desk(tmp_path).train(1, 1, 3, loss=0.5)
    again = Desk(tmp_path)
    again.monitor.note("started again")
    again.train(1, 2, 3, loss=0.25)
    assert [record["step"] for record in read_metrics(again.path)] == [1, None, 2, 3]


def test_equal_notes_are_all_kept(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.note("generator 1 replaced")
    desk.monitor.note("generator 1 replaced")
    assert [record["text"] for record in read_metrics(desk.path)] == ["generator 1 replaced"] * 2


def test_a_torn_last_line_is_passed_over(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.train(1, 1, 2, loss=0.5)
    content = desk.path.read_bytes()
    for size in range(content.index(b"\n") + 2, len(content) - 1):
        desk.path.write_bytes(content[:size])
        assert [record["step"] for record in read_metrics(desk.path)] == [1]


def test_a_resumed_run_does_not_write_its_first_line_into_the_torn_one(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.train(1, 1, 2, loss=0.5)
    desk.path.write_bytes(desk.path.read_bytes()[:-20])
    Desk(tmp_path).train(1, 2, 2, loss=0.25)
    assert [(record["step"], record["loss"]) for record in read_metrics(desk.path)] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b"[1]\n", b'{"kind": \n', b"\xff\xfe\n"])
def test_a_damaged_line_amid_others_is_named_and_not_passed_over(tmp_path: Path, damage: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "note", "iteration": null, "text": "fine"}\n' + damage + b'{"kind": "note"}\n')
    with pytest.raises(StoreError, match="line 2"):
        read_metrics(path)


def test_a_run_without_metrics_has_none(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_log_gets_the_end_of_each_stage_and_few_lines_before_it(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 3)
    desk.monitor.expect("generate", 100)
    for _ in range(100):
        desk.monitor.shard_done("generate", *desk.clock.work(0.25), tokens=500.0)
    lines = desk.lines()  # 25 s of work: one line per 5 s and the last
    assert len(lines) == 6
    assert lines[0].startswith("[iteration 1 of 3] generate  1/100 shards  working  2,000 tokens/s")
    assert lines[-1] == "[iteration 1 of 3] generate  100/100 shards  done in 25.0 s  2,000 tokens/s  busy 100%"


def test_two_stages_do_not_take_each_others_lines(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 1)
    desk.monitor.shard_done("generate", *desk.clock.work(1.0))
    desk.monitor.shard_done("score", *desk.clock.work(1.0))
    assert [line.split()[4] for line in desk.lines()] == ["generate", "score"]


def test_the_remaining_time_comes_from_todays_pace_not_from_what_was_done_before(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 1)
    desk.monitor.expect("score", 100, done=90)
    desk.clock.work(10.0)
    desk.monitor.shard_done("score", *desk.clock.work(2.0), pairs=20.0)
    assert desk.lines() == [
        "[iteration 1 of 1] score  90/100 shards  waiting",
        "[iteration 1 of 1] score  91/100 shards  working  10 pairs/s  busy 17%  ETA 18.0 s",
    ]


def test_a_stage_that_was_finished_before_the_restart_says_so(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.begin_iteration(1, 1)
    desk.monitor.expect("generate", 7, done=7)
    assert desk.lines() == ["[iteration 1 of 1] generate  7/7 shards  done before the restart"]


def test_the_learner_shows_its_steps_and_its_loss(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.train(1, 1, 9, loss=0.125)
    last = "[iteration 1 of 3] learn  9/9 steps  done in 9.0 s  1 steps/s  busy 100%  loss 0.125  rewards/margins 0.25"
    assert desk.lines()[-1] == last


def test_a_learner_that_stops_early_is_done_with_the_steps_that_it_took(tmp_path: Path):
    desk = Desk(tmp_path, live=False)
    with desk.monitor as monitor:
        monitor.begin_iteration(1, 3)
        monitor.expect("learn", 9, unit="steps")
        desk.clock.work(2.0)
        monitor.step(4, 9, {"loss": 1.0}, 2.0)
        monitor.end_early("learn")
    assert any("learn  4/4 steps  done in" in line for line in desk.lines())
    assert [r["stage"] for r in read_metrics(desk.path) if r["kind"] == "stage"] == ["learn"]


def test_work_before_the_first_iteration_is_shown_too(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.shard_done("evaluate", *desk.clock.work(1.0))
    assert desk.lines() == ["[start] evaluate  1 shards  working  1 shards/s  busy 100%"]


@pytest.mark.parametrize("live", [False, True])
def test_terminal_commands_in_a_note_are_shown_and_not_obeyed(tmp_path: Path, live: bool):
    desk = Desk(tmp_path, live=live)
    with desk.monitor as monitor:
        monitor.note("answer: \x1b]0;owned\x07\x1b[2J\r\x9b31m [bold]loud[/bold] :smile:\nsecond")
    printed = desk.file.getvalue()
    assert r"answer: \x1b]0;owned\x07\x1b[2J\r\x9b31m [bold]loud[/bold] :smile:\nsecond" in printed
    assert "\x1b]0;" not in printed
    assert "\x1b[2J" not in printed


def test_a_log_holds_no_control_characters_and_wraps_nothing(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.train(1, 1, 9, loss=0.1)
    desk.monitor.note("x" * 300 + "\x1b[31m\x07")
    desk.monitor.end_iteration({})
    printed = desk.file.getvalue()
    assert all(character == "\n" or character.isprintable() for character in printed)
    assert any(len(line) > 300 for line in desk.lines())


def test_a_terminal_gets_one_table_with_every_stage(tmp_path: Path):
    desk = Desk(tmp_path, live=True)
    with desk.monitor as monitor:
        monitor.begin_iteration(2, 3)
        monitor.expect("generate", 4)
        monitor.expect("score", 4)
        monitor.shard_done("generate", *desk.clock.work(2.0), tokens=9000.0)
        monitor.step(1, 5, {"loss": 0.125}, 0.5)
        desk.clock.work(120.0)
    final = desk.file.getvalue().rpartition("iteration 2 of 3")[2]
    for words in ("generate", "1/4 shards", "4,500 tokens/s", "score", "waiting", "1/5 steps", "no news for 2m 00s"):
        assert words in final
    assert "loss 0.125" in final


def test_a_console_that_is_no_terminal_gets_plain_lines_unasked(tmp_path: Path):
    assert isinstance(Desk(tmp_path).monitor._view, PlainView)


def test_closing_twice_is_harmless(tmp_path: Path):
    for live in (False, True):
        desk = Desk(tmp_path, live=live)
        desk.monitor.close()
        desk.monitor.close()


class Recorder:
    """A tracker that keeps the kinds of what it gets."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def write(
        self, kind: str, iteration: int | None, step: int | None, metrics: Mapping[str, float], **labels: str
    ) -> None:
        self.kinds.append(kind)

    def close(self) -> None:
        self.kinds.append("closed")


def test_every_tracker_gets_every_record_and_a_failing_one_can_still_say_so(tmp_path: Path):
    one, other = Recorder(), Recorder()
    desk = Desk(tmp_path, trackers=[one, other])
    desk.train(1, 8, 9, loss=0.5)
    desk.monitor.note("a retry")
    desk.monitor.end_iteration({})
    desk.monitor.close()
    assert one.kinds == other.kinds == ["step", "step", "stage", "note", "iteration", "closed"]
    assert len(read_metrics(desk.path)) == 5


def test_all_work_is_on_the_time_line_with_its_role(tmp_path: Path):
    desk = Desk(tmp_path)
    desk.monitor.busy("prepare", *desk.clock.work(2.0))
    desk.monitor.begin_iteration(1, 1)
    desk.monitor.shard_done("scores", *desk.clock.work(3.0), role="scorer", pairs=9.0)
    desk.monitor.step(1, 2, {"loss": 1.0}, 1.0, end=desk.clock.now + 1.0)
    desk.clock.work(2.0)
    desk.monitor.step(2, 2, {"loss": 1.0}, 1.0)
    desk.monitor.end_iteration({})
    line = read_timeline(tmp_path)
    start = line.processes[0]
    learned = ("learn", "learner", 1)
    named = [(work.stage, work.role, work.iteration) for work in line.work]
    assert named == [("prepare", "driver", None), ("scores", "scorer", 1), learned, learned]
    ends = [(w.start - start, w.end - start) for w in line.work]
    assert ends == [pytest.approx(end, abs=2e-3) for end in ((0, 2), (2, 5), (5, 6), (6, 7))]
    [(iteration, begin, end)] = line.iterations
    assert (iteration, begin - start, end - start) == (1, pytest.approx(2, abs=2e-3), pytest.approx(7, abs=2e-3))
