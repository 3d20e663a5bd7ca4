"""What both commands print and how they end: JSON, tables, bars, exit codes."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

from retrieval import errors
from retrieval.terminal import (
    COULD_NOT_RUN,
    INTERRUPTED,
    OK,
    VERDICT_FAILED,
    WRONG_USAGE,
    exit_code_of,
    out,
    print_json,
    print_table,
    progress_bar,
    progress_bars,
    run,
)

FAMILY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.RetrievalError)]


def ends(action: Callable[[], object]) -> int:
    """The exit code of a command that does this."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(action)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command"])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            run(app)
    return int(str(left.value.code))


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_exit_codes_are_documented_numbers() -> None:
    """Scripts and CI depend on these."""
    assert (OK, VERDICT_FAILED, WRONG_USAGE, COULD_NOT_RUN, INTERRUPTED) == (0, 1, 2, 3, 130)


@pytest.mark.parametrize("kind", FAMILY)
def test_exit_code_of_every_error(kind: type[errors.RetrievalError]) -> None:
    """2 if the command or its settings must change, else 3; never 1, which is for verdicts."""
    wrong_usage = issubclass(kind, errors.InvalidInput) or kind is errors.InvalidSettings
    assert exit_code_of(kind("text")) == (2 if wrong_usage else 3)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidImage("no image"), 2),
        (errors.InvalidSettings("no setting"), 2),
        (errors.NotReady("not yet"), 3),
        (OSError(28, "No space left on device", "/full"), 3),
        (typer.Exit(VERDICT_FAILED), 1),
        (typer.BadParameter("wrong"), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(32, "Broken pipe"), 3),
    ],
)
def test_a_command_ends_with_the_code_of_its_error(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known errors are one line on stderr, without a trace."""
    assert ends(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_a_known_error_is_one_line_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Text of users in it stays as it is."""
    ends(raising(errors.UnknownCatalog("catalogue '[red]x[/red]' has no snapshot")))
    assert capsys.readouterr().err == "error: catalogue '[red]x[/red]' has no snapshot\n"


def test_an_error_is_one_line_whatever_names_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Ids of manifests may hold line breaks and codes that control a terminal."""
    ends(raising(errors.InvalidManifest("item 'a\nb\r\x1b[2J\u2028c' is missing")))
    assert capsys.readouterr().err == "error: item 'a b \N{REPLACEMENT CHARACTER}[2J c' is missing\n"


def test_an_argument_that_is_no_utf_8_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """No message to the server can hold it."""
    assert ends(raising(UnicodeEncodeError("utf-8", "m\udcff", 1, 2, "surrogates not allowed"))) == 2
    assert capsys.readouterr().err == "error: 'm\\udcff' cannot be written as utf-8\n"


def test_a_closed_stdout_is_no_failed_verdict() -> None:
    """`retrieval audit ... >&-`: Python has no stdout then, and a crash while it imports would end with 1."""
    program = f"{sys.executable} -c 'from retrieval.terminal import print_json, run; run(lambda: print_json(1))' >&-"
    assert subprocess.run(program, shell=True, check=False, capture_output=True).stderr == b""
    assert subprocess.run(program, shell=True, check=False).returncode == 0


def test_a_crash_is_3_and_shows_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """A defect must not look like a failed verdict, and must be reported with its trace."""
    assert ends(raising(KeyError("a defect"))) == 3
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "error: KeyError: 'a defect'. This is a defect of the program" in message


def test_a_command_that_ends_well_is_0() -> None:
    assert ends(lambda: None) == 0


def test_a_reader_that_goes_away_is_no_failed_verdict() -> None:
    """`retrieval ... | head`: rich and typer would end with 1."""
    program = (
        "import typer; from retrieval.terminal import out, run; app = typer.Typer(pretty_exceptions_enable=False);"
        "app.command()(lambda: [out.print('x' * 1000) for _ in range(1000)]); run(app)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(30) == 3


def test_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Any text passes, long lines are not wrapped, and nothing is taken for markup."""
    value = {"name": "[bold]猫[/bold]", "long": "x" * 500, "none": None}
    print_json(value)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == value
    assert "猫" in captured.out
    assert captured.err == ""


def test_numbers_in_json_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """NumPy's too; what is not finite is null, because `NaN` and `Infinity` are no JSON."""
    rates = {"far": np.float32(0.25), "n": np.int64(3), "passed": np.bool_(True), "all": np.array([1.5, np.nan])}
    print_json({**rates, "low": float("-inf"), "high": np.float64("inf"), "page": Path("a/b.html"), "pair": (1, 2.5)})
    found = json.loads(capsys.readouterr().out, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))
    assert found == {
        "far": 0.25, "n": 3, "passed": True, "all": [1.5, None], "low": None, "high": None, "page": "a/b.html",
        "pair": [1, 2.5],
    }  # fmt: skip
    assert found["passed"] is True


def test_json_escapes_a_file_name_that_is_no_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    """It stays one document of UTF-8 text, from which the name can be read."""
    print_json({"name": "猫\udcff.png"})
    text = capsys.readouterr().out
    assert text.encode()
    assert json.loads(text) == {"name": "猫\udcff.png"}


def test_tables_show_text_of_users_as_it_is() -> None:
    """Markup and control characters in ids and labels do nothing."""
    with out.capture() as captured:
        print_table("items", ("id",), [("[red]boo[/red]",), ("[/]",), ("\x1b[31mred",)])
    text = captured.get()
    assert "[red]boo[/red]" in text
    assert "[/]" in text
    assert "\x1b[31mred" not in text
    assert "\N{REPLACEMENT CHARACTER}[31mred" in text


def test_bars_are_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs of scripts hold no bars."""
    with progress_bar("embedding") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """While the work goes on, not at its end; the same work may begin again; an unknown total prints nothing."""
    with progress_bars(keep=True) as progress:
        progress("reading", 0, 0)
        for done in range(1, 101):
            progress("training", done, 100, f"loss {done}")
            assert len(capsys.readouterr().err.splitlines()) == (done % 10 == 0)
        for _ in range(2):
            progress("evaluating", 1, 2)
            progress("evaluating", 2, 2)
        assert capsys.readouterr().err.splitlines() == ["evaluating 1 of 2", "evaluating 2 of 2"] * 2
    assert capsys.readouterr() == ("", "")


def test_bars_that_are_kept_show_how_far_each_work_came(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of training has the state of each work and its note."""
    with progress_bars(keep=True) as progress:
        progress("reading images", 3, 3)
        progress("training", 5, 8, "loss 0.25")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reading images" in captured.err
    assert "3 of 3" in captured.err
    assert "5 of 8" in captured.err
    assert "loss 0.25" in captured.err
