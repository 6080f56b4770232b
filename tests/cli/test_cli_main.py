"""`gruppo` itself: help without torch, exit codes, clean messages."""

import subprocess
import sys

import pytest

from gruppo.cli import main as cli
from gruppo.errors import ConfigError


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from gruppo.cli.main import main; assert main(['--help']) == 0; "
        "print([m for m in ('torch', 'transformers', 'pydantic', 'tyro') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[0] == "gruppo: GRPO post-training of language models"
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_of_train_does_not_import_torch() -> None:
    code = (
        "import sys, atexit; from gruppo.cli.main import main; "
        "atexit.register(lambda: print([m for m in ('torch', 'transformers') if m in sys.modules])); "
        "main(['train', '--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--num-generations INT" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_without_a_command_it_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "gruppo train" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gruppo 0.")


def test_a_mistyped_command_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "gruppo: there is no command 'trian'. Did you mean 'train'? See: gruppo --help\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("beta=-1 cannot be."), 2, "gruppo train: beta=-1 cannot be.\n"),
        (KeyboardInterrupt(), 130, "gruppo train: stopped.\n"),
    ],
)
def test_mistakes_are_one_clean_message(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("gruppo.cli.train.run", fail)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == message


def test_the_home_folder_may_be_short_after_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    received: list[str] = []
    monkeypatch.setattr("gruppo.cli.train.run", lambda argv: received.extend(argv) or 0)
    assert cli.main(["train", "--output=~/page.html", "--text=a=~/b", "--short=~", "~/run", "x=~/y"]) == 0
    assert received == ["--output=/home/someone/page.html", "--text=a=~/b", "--short=~", "~/run", "x=~/y"]


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("gruppo.cli.train.run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_a_closed_pipe_is_no_error() -> None:
    code = "from gruppo.cli import main as cli, plan; import sys; plan.run = lambda argv: print('x' * 10**6) or 0; "
    code += "sys.exit(cli.main(['plan']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait() == 0
