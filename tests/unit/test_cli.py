"""The command line without a connection: units, arguments, what is drawn and said."""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import random
import re
import resource
from pathlib import Path

import pytest

from fabric._version import VERSION
from fabric.cli import bench, chart, main, serve
from fabric.cli import doctor as doctor_module
from fabric.cli.arguments import UsageError, client_config, server_context
from fabric.cli.connect import Transcript, parse_close
from fabric.cli.load import Measurement, Plan
from fabric.cli.screen import Screen, printable
from fabric.cli.units import (
    format_bytes,
    format_count,
    format_duration,
    format_rate,
    parse_duration,
    parse_duration_or_inf,
    parse_rate,
    parse_size,
)
from fabric.message import Message
from fabric_ext.histogram import Histogram

# Units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        ("10s", 10),
        ("0.5", 0.5),
        (".5 s", 0.5),
        ("500ms", 0.5),
        ("20us", 2e-5),
        ("2m", 120),
        ("1h", 3600),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("32", 32),
        ("1k", 1024),
        ("64KiB", 65536),
        ("64kB", 64000),
        ("1.5M", 1572864),
        ("2g", 2 << 30),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "rate"), [("500", 500), ("10k", 10_000), ("1.5M/s", 1_500_000)])
def test_rates_are_read(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


def test_a_duration_may_be_endless_where_that_makes_sense() -> None:
    assert [parse_duration_or_inf(text) for text in ("0", " inf", "5ms", "2")] == [0, math.inf, 0.005, 2]
    for text in ("-1", "nan", "forever", ""):
        with pytest.raises(ValueError, match="expected"):
            parse_duration_or_inf(text)


@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "10 parsecs", "1e3", "0x10", "nan", "inf"])
@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate])
def test_what_is_no_number_is_refused(parse: object, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)  # type: ignore[operator]


def test_zero_is_no_duration_and_no_rate_and_bytes_are_whole() -> None:
    for parse, text in ((parse_duration, "0"), (parse_rate, "0k"), (parse_size, "0.5")):
        with pytest.raises(ValueError, match="expected"):
            parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (84e-9, "84 ns"),
        (999.6e-9, "1.00 µs"),
        (84.23e-6, "84.2 µs"),
        (999.4e-6, "999 µs"),
        (999.7e-6, "1.00 ms"),
        (1.05e-3, "1.05 ms"),
        (9.996e-3, "10.0 ms"),
        (0.12345, "123 ms"),
        (12.0, "12.0 s"),
        (119.4, "119 s"),
        (200, "3 min 20 s"),
    ],
)
def test_durations_are_written_with_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0"), (950, "950"), (9_999, "9,999"), (12_340, "12.3 k"), (402_113, "402 k"), (999_600, "1.00 M")],
)
def test_rates_are_written_short(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (65536, "64.0 KiB"), (1 << 30, "1.00 GiB")],
)
def test_bytes_are_written_in_binary_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_counts_have_their_thousands_apart() -> None:
    assert format_count(1234567.4) == "1,234,567"


# The chart


def latencies(rng: random.Random, n: int = 20_000) -> Histogram:
    """Nanoseconds as a network gives them: a body around 60 µs, and a tail of a few milliseconds."""
    histogram = Histogram()
    for _ in range(n):
        histogram.record(int(rng.lognormvariate(11, 0.25)))
    for _ in range(n // 500):
        histogram.record(int(rng.lognormvariate(15, 0.4)))
    return histogram


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_distribution_fits_its_width(rng: random.Random, width: int) -> None:
    lines = chart.distribution(latencies(rng), width=width)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_the_bars_are_highest_where_most_values_are(rng: random.Random) -> None:
    lines = chart.distribution(latencies(rng), width=80, height=8)
    bars, scale = lines[:8], lines[9]
    top = bars[0].index("█") if "█" in bars[0] else min(bars[0].index(c) for c in "▁▂▃▄▅▆▇" if c in bars[0])
    assert scale.index("50 µs") < top < scale.index("100 µs")


def test_each_column_with_a_value_shows_something() -> None:
    histogram = Histogram()
    histogram.record_n(10_000, 1_000_000)
    histogram.record_n(90_000, 2_000)
    lines = chart.distribution(histogram, width=80, height=4)
    assert lines[3].count("█") == 1
    assert lines[3].count("▁") == 1


def test_the_percentiles_stand_at_their_values() -> None:
    histogram = Histogram()
    for value in range(10_000, 1_000_000, 500):
        histogram.record(value)
    axis = chart.Axis.around(histogram.min, histogram.value_at_percentile(99.9), 71)
    lines = chart.distribution(histogram, width=80)
    marks = next(line for line in lines if "▲" in line)
    for percentile in (50, 95, 99, 99.9):
        column = chart.GUTTER + axis.column(histogram.value_at_percentile(percentile))
        assert marks[column] == "▲"


def test_a_far_tail_does_not_squeeze_the_rest() -> None:
    histogram = Histogram()
    for value in range(20_000, 40_000, 10):
        histogram.record(value)
    histogram.record_n(50_000_000, 20)
    lines = chart.distribution(histogram, width=80, height=8)
    assert sum(character != " " for character in lines[7][chart.GUTTER :]) > 15
    marks = next(line for line in lines if "▲" in line)
    assert marks.endswith("▶"), "a percentile beyond the axis is marked at its end"
    assert "20 slower ones, up to 50.0 ms, are not drawn" in lines[-1]


def test_what_is_beyond_the_axis_is_told(rng: random.Random) -> None:
    histogram = latencies(rng)
    histogram.record(2_000_000_000)
    assert "slower ones, up to 2.00 s, are not drawn" in chart.distribution(histogram)[-1]


def test_a_plain_chart_is_ascii(rng: random.Random) -> None:
    text = "\n".join(chart.distribution(latencies(rng), unicode=False))
    assert text.isascii()
    assert "#" in text
    assert "100 us" in text


def test_nothing_measured_is_said() -> None:
    assert chart.distribution(Histogram()) == ["(nothing was measured)"]


@pytest.mark.parametrize("value", [0, 1, 99, 100, 1_000, 1_024, 10**9, 10**12])
def test_a_single_value_can_be_drawn(value: int) -> None:
    histogram = Histogram()
    histogram.record(value)
    lines = chart.distribution(histogram, width=80)
    assert lines[0].count("█") == 1


def test_axes_hold_their_values(rng: random.Random) -> None:
    for _ in range(500):
        least, most = sorted(int(10 ** rng.uniform(0, 12)) for _ in range(2))
        axis = chart.Axis.around(least, most, 70)
        assert axis.low <= max(least, chart.LEAST) * 1.000001
        assert axis.high >= most * 0.999999
        assert axis.high >= chart.FACTOR * axis.low * 0.999999
        assert axis.bounds() == sorted(axis.bounds())
        assert 0 <= axis.column(least) <= axis.column(most) < 70
        assert axis.ticks()


def test_a_table_has_a_row_for_each_histogram(rng: random.Random) -> None:
    head, *rows = chart.table([("a", latencies(rng)), ("longer name", latencies(rng))])
    assert head.split() == ["p50", "p95", "p99", "p99.9", "max"]
    assert len(rows) == 2
    assert len({len(line) for line in (head, *rows)}) == 1


# The screen


class Terminal(io.StringIO):
    """Looks like a terminal that can show everything."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def test_control_characters_from_elsewhere_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\x9bd\u202ee") == "a\\x1b[2Jb\\rc\\x9bd\\u202ee"
    assert printable("tabs\tand\nlines, ä 世 🚀") == "tabs\tand\nlines, ä 世 🚀"


def test_a_live_line_goes_away_before_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), Terminal()
    screen = Screen(out, err)
    screen.progress("half")
    screen.progress("done")
    screen.say("result")
    assert err.getvalue() == "\r\x1b[2Khalf\r\x1b[2Kdone\r\x1b[2K"
    assert out.getvalue() == "result\n"


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    screen = Screen(io.StringIO(), err)
    screen.progress("too early")
    monkeypatch.setattr(screen, "_last_sparse", -1e9)
    screen.progress("first")
    screen.progress("too soon")
    assert err.getvalue() == "first\n"


def test_quiet_leaves_results_and_errors() -> None:
    out, err = io.StringIO(), Terminal()
    screen = Screen(out, err, quiet=True)
    screen.progress("p")
    screen.note("n")
    screen.say("s")
    screen.complain("c")
    assert (out.getvalue(), err.getvalue()) == ("s\n", "c\n")


def test_what_cannot_be_shown_is_written_in_ascii() -> None:
    out = Ascii()
    screen = Screen(out, Ascii())
    assert not screen.unicode
    screen.say("5 µs – 世")
    assert out.getvalue() == "5 us - \\u4e16\n"


def test_style_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen(io.StringIO(), io.StringIO()).style("x", "bold") == "x"
    assert Screen(Terminal(), Terminal()).style("x", "bold") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(Terminal(), Terminal()).style("x", "bold") == "x"


# Arguments


def parse(*argv: str) -> argparse.Namespace:
    return main.build_parser().parse_args(argv)


@pytest.mark.parametrize("command", [[], ["demo"], ["connect"], ["serve"], ["bench"]])
def test_help_says_enough(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse(*command, "--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: fabric")
    # An option without a word on what it does would end its line.
    assert not re.search(r"^  -\S+(, --\S+)?( [A-Z]+)?\n(?! )", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["dance"],
        ["connect"],
        ["bench", "ws://x", "--depth", "0"],
        ["bench", "ws://x", "--size", "big"],
        ["bench", "ws://x", "--duration", "0"],
        ["serve", "--echo", "--discard"],
        ["connect", "ws://x", "--raw", "--json"],
        ["connect", "ws://x", "-H", "no colon"],
        ["demo", "--loop", "trio"],
    ],
)
def test_a_wrong_line_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main.main(argv)
    assert done.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["connect", "http://x"], "expected a URL that starts with ws:// or wss://"),
        (["connect", "ws://x", "-H", "Host: y"], "'Host'"),
        (["connect", "ws://x", "-s", "no spaces"], "invalid subprotocol"),
        (["connect", "wss://x", "--ca", "/nowhere.pem"], "--ca /nowhere.pem: No such file"),
        (["bench", "ws://x", "--rate", "1", "--depth", "2"], "give one of them"),
        (["bench", "ws://x", "--rounds", "3"], "--rounds needs two URLs"),
        (["bench", "ws://x", "--hgrm", "/nowhere/file"], "--hgrm /nowhere/file: No such file"),
        (["serve", "--bind", "8080"], "bind = '8080'"),
        (["serve", "--tls-key", "key.pem"], "--tls-key needs --tls-cert"),
    ],
)
def test_a_users_mistake_is_a_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*argv, "--loop", "asyncio"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith(f"fabric {argv[0]}: ")
    assert err.count("\n") == 1


def test_the_connection_options_make_a_config() -> None:
    line = [
        "connect",
        "host:9000/path",
        "-H",
        "X-A: 1",
        "-H",
        "X-A:2",
        "-s",
        "a",
        "-s",
        "b",
        "--timeout",
        "500ms",
    ]
    arguments = parse(*line, "--origin", "https://example.com", "--no-compression", "--proxy", "env")
    config = client_config(arguments.url, arguments, auto_reconnect=False)
    assert config.url == "ws://host:9000/path"
    assert config.headers.getall("X-A") == ["1", "2"]
    assert config.headers["Origin"] == "https://example.com"
    assert list(config.subprotocols) == ["a", "b"]
    assert config.connection_timeout == 0.5
    assert config.proxy is True
    assert not config.compression.enabled
    assert not config.auto_reconnect


def test_bench_offers_no_compression_unless_asked_and_connect_does() -> None:
    for line, expected in (
        (["bench", "ws://x"], False),
        (["bench", "ws://x", "--compression"], True),
        (["connect", "ws://x"], True),
    ):
        arguments = parse(*line)
        assert client_config("ws://x", arguments).compression.enabled is expected


def test_busy_polling_is_off_unless_asked_for() -> None:
    assert serve._config(parse("serve")).busy_poll == 0
    assert serve._config(parse("serve", "--busy-poll", "inf")).busy_poll == math.inf
    for line in (["bench", "ws://x"], ["demo"]):
        assert parse(*line).busy_poll == 0
        assert parse(*line, "--busy-poll", "500us").busy_poll == pytest.approx(0.0005)


def test_an_insecure_connection_checks_nothing() -> None:
    config = client_config("wss://x", parse("connect", "wss://x", "--insecure"))
    assert config.ssl is not None
    assert not config.ssl.check_hostname


def test_a_server_without_a_certificate_is_plain() -> None:
    assert server_context(None, None) is None
    with pytest.raises(UsageError, match=r"--tls-cert /nowhere\.pem: No such file"):
        server_context("/nowhere.pem", None)


# bench


def test_two_servers_take_turns_so_that_drift_meets_both() -> None:
    assert bench._order(1, 10) == [0]
    assert bench._order(2, 3) == [0, 1, 1, 0, 0, 1]


def test_a_spread_knows_its_quartiles() -> None:
    assert bench.Spread.of([1.5]) == bench.Spread(1.5, 1.5, 1.5, 1.5, 1.5)
    assert bench.Spread.of([5, 1, 4, 2, 3]) == bench.Spread(3, 2, 4, 1, 5)


def test_ratios_are_of_neighbouring_rounds() -> None:
    def measurement(messages: int, latency: int) -> Measurement:
        histogram = Histogram()
        histogram.record(latency)
        return Measurement(messages, 1.0, 0, histogram)

    drifting = [
        [measurement(100 * n, 1000 * n) for n in (1, 2, 4)],
        [measurement(150 * n, 500 * n) for n in (1, 2, 4)],
    ]
    ratios = bench._ratios(drifting)
    assert ratios["throughput"] == bench.Spread(1.5, 1.5, 1.5, 1.5, 1.5)
    assert ratios["p50"].median == pytest.approx(0.5, rel=1e-2)


def test_measurements_add_up() -> None:
    first, second = Histogram(), Histogram()
    first.record_n(1000, 3)
    second.record_n(9000, 1)
    total = Measurement.total([Measurement(3, 1.0, 0, first), Measurement(1, 3.0, 2, second, second)])
    assert (total.messages, total.seconds, total.unanswered, total.rate) == (4, 4.0, 2, 1.0)
    assert total.latency.count == 4
    assert total.service is not None
    assert total.service.count == 1


@pytest.mark.parametrize("size", [0, 1, 32, 1000, 65536])
@pytest.mark.parametrize("text", [True, False])
def test_messages_have_the_size_asked_for(size: int, text: bool) -> None:
    message = Plan(size=size, text=text).message()
    assert len(message) == size
    assert message.is_text is text


def test_hgrm_files_of_two_servers_are_told_apart(tmp_path: Path) -> None:
    assert bench._hgrm_files(None, 2) == []
    assert bench._hgrm_files(tmp_path / "x.hgrm", 1) == [tmp_path / "x.hgrm"]
    assert [path.name for path in bench._hgrm_files(tmp_path / "x.hgrm", 2)] == ["x-a.hgrm", "x-b.hgrm"]


# connect


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (1000, "")), ("4001", (4001, "")), ("4001 so long", (4001, "so long")), (" 1001  x ", (1001, "x"))],
)
def test_close_commands_are_read(text: str, expected: tuple[int, str]) -> None:
    assert parse_close(text) == expected


def test_a_close_code_is_a_number() -> None:
    with pytest.raises(ValueError, match="'now' is not a close code"):
        parse_close("now")


def test_a_transcript_escapes_what_is_received() -> None:
    out = io.StringIO()
    transcript = Transcript(Screen(out, io.StringIO()), "text")
    transcript.message("received", Message.text("\x1b[31mred"))
    transcript.message("sent", Message.binary(bytes(range(40))))
    transcript.pong(0.0001234)
    lines = out.getvalue().splitlines()
    assert lines[0] == "< text, 8 B: \\x1b[31mred"
    assert lines[1].startswith("> binary, 40 B: 00 01 02")
    assert lines[1].endswith("1f ...")
    assert lines[2].startswith("< pong after 123")


# doctor


def doctor(monkeypatch: pytest.MonkeyPatch, *, installed: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code of `fabric doctor` and what it says, where these packages are installed."""
    if installed is not None:
        monkeypatch.setattr(doctor_module, "_version", installed.get)
    out = io.StringIO()
    code = asyncio.run(doctor_module.run(argparse.Namespace(), Screen(out, io.StringIO())))
    return code, out.getvalue()


def test_the_doctor_says_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = doctor(monkeypatch)
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in said.splitlines() if "  " in line)
    assert code == 0
    assert facts["fabric"].startswith(VERSION)
    assert facts["picows"].startswith("2.3.")
    assert re.match(r"\d+\.\d+", facts["uvloop"])
    assert facts["OpenSSL"].startswith("OpenSSL")
    assert re.fullmatch(r"[\d.]+ of Python, zlib-ng [\d.]+", facts["zlib"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["zstd"])
    assert re.search(r"masks with (baseline|avx2)$", facts["processor"])
    assert said.splitlines()[-1] == "no problem found"


def test_the_doctor_finds_the_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = doctor(monkeypatch, installed={"fabric": "3.2.2"})
    assert code == 1
    assert "problem: two packages have been installed" in said
    assert "no problem" not in said


def test_the_doctor_remarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    code, said = doctor(monkeypatch, installed={})
    assert code == 0
    assert "remark: uvloop is not installed" in said
    assert "remark: each connection takes a file descriptor, and 1,024 are allowed" in said
    assert "at most 1,024 open, any number if asked for" in said
