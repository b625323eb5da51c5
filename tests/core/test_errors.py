"""How a stage ends: a mistake in one message and exit code 1, anything else as it is."""

import signal

import pytest

from eridiff.core.errors import DataError, run_main


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process keeps its own."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def failing(error: BaseException) -> int:
    """The exit code of a stage that ends so."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    return int(str(ended.value.code))


def test_a_mistake_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(DataError("the folder is empty.")) == 1
    assert capsys.readouterr().err == "error: the folder is empty.\n"


@pytest.mark.parametrize("words", ["No available kernel. Aborting execution.", "Invalid backend"])
def test_attention_that_no_kernel_takes(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """torch's own words, and the way out."""
    assert failing(RuntimeError(words)) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: no fused kernel of torch takes this model's attention")
    assert f"({words})" in message and "bf16 or fp16" in message


def test_a_fault_of_ours_is_shown_whole() -> None:
    with pytest.raises(RuntimeError, match="out of range"):
        run_main(lambda: (_ for _ in ()).throw(RuntimeError("out of range")))
