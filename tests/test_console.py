"""What is printed: names that can't harm a terminal, any text on any console, progress in a log."""

import io
import subprocess
import sys
from contextlib import redirect_stderr

from tqdm import tqdm

from diffusers_videogpt import console


def test_what_steers_a_terminal_is_written_out():
    assert console.printable("\x1b]0;owned\x07 a\rb \x9b2J") == "\\x1b]0;owned\\x07 a\\rb \\x9b2J"
    assert console.printable("cat\u202egnp.exe") == "cat\\u202egnp.exe"
    assert console.printable("Wölfe 猫 👨\u200d👩\n\ta") == "Wölfe 猫 👨\u200d👩\n\ta"


def test_say_prints_lines(capsys):
    console.say("one", 2, "\x1b[31m")
    assert capsys.readouterr().out == "one\n2\n\\x1b[31m\n"


def test_a_foreign_name_on_an_old_console():
    code = "from diffusers_videogpt.console import allow_any_text, say; allow_any_text(); say('猫.mp4 × ✓')"
    environment = {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": ":".join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert result.stdout.decode("cp1252").strip() == "\\u732b.mp4 × \\u2713", result.stderr


def test_progress_in_a_log_is_lines(monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 1e-9)
    with redirect_stderr(io.StringIO()) as log:  # no terminal
        list(tqdm(range(3), **console.progress_options()))
    lines = log.getvalue().splitlines()
    assert lines[-1].startswith("step 3 of 3, after 00:00") and len(set(lines)) == len(lines)
    assert "\r" not in log.getvalue()


def test_what_is_done_soon_says_nothing():
    with redirect_stderr(io.StringIO()) as log:
        list(tqdm(range(3), **console.progress_options()))
    assert log.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    with redirect_stderr(io.StringIO()) as log:
        monkeypatch.setattr(log, "isatty", lambda: True)
        assert console.progress_options() == {}
