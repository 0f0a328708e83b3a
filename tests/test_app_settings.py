"""Settings of the window: what they change, and what is remembered of them, which is nothing unless it is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QDialogButtonBox
from tinygptv.runtime import TinyGPTV, TinyGPTVError
from tinygptv.runtime.app import theme
from tinygptv.runtime.app.settings import Settings, read_settings, settings_file, write_settings
from tinygptv.runtime.app.settings_dialog import SettingsDialog
from tinygptv.runtime.app.window import Window
from windows import RED, SHAPE, TEAL, ask, idle, open_and_wait, said_of, told

pytest_plugins = "app_fixtures"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for settings, and nobody's own."""
    folder = tmp_path / "config é"
    for name in ("XDG_CONFIG_HOME", "HOME", "LOCALAPPDATA", "APPDATA"):
        monkeypatch.setenv(name, str(folder))
    return folder


def dialog_of(window: Window) -> SettingsDialog:
    QTest.keySequence(window, QKeySequence("Ctrl+,"))
    QTest.qWait(10)
    return next(dialog for dialog in window.findChildren(SettingsDialog) if dialog.isVisible())


def press(dialog: SettingsDialog, button: QDialogButtonBox.StandardButton = QDialogButtonBox.StandardButton.Ok) -> None:
    QTest.mouseClick(dialog.findChild(QDialogButtonBox).button(button), Qt.MouseButton.LeftButton)


def test_the_form_shows_and_gives_what_is_set(window: Window, config: Path) -> None:
    chosen = Settings("", 2, False, 40, 0.5, "dark", False, ("a",))
    window.session.take(chosen)
    dialog = dialog_of(window)
    assert dialog.settings == chosen
    texts = [label.text() for label in dialog.findChildren(type(window.status._doing))]
    assert any(str(settings_file()) in text for text in texts)
    fields = (dialog.bundle, dialog.threads, dialog.length, dialog.temperature, dialog.appearance)
    assert all(field.accessibleName() for field in fields)
    dialog.temperature.setValue(0.7)
    press(dialog, QDialogButtonBox.StandardButton.Cancel)
    assert window.session.settings == chosen
    assert not config.exists()


def test_length_and_temperature(
    window: Window, golden_bundle: Callable[[int, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = told(window.model.worker.loaded)
    window.files.open_bundle(golden_bundle(3, "fp32"))
    idle(window)
    dialog = dialog_of(window)
    dialog.length.setValue(4)
    dialog.temperature.setValue(1.5)
    press(dialog)
    assert window.session.settings.options().max_new_tokens == 4
    answered = told(window.model.worker.answered)
    notes = []
    for _ in range(8):
        window.talk.start_over()
        notes.append(ask(idle(window), QUESTION).note)
    answers = [answer for _, answer, _ in answered]
    cut = [answer.finish_reason == "length" for answer in answers]
    assert any(cut)  # not all: the token that ends an answer may be drawn as well
    assert [note == "cut off at the longest length (see Settings)" for note in notes] == cut
    assert [len(answer.token_ids) == 4 for answer in answers] == cut
    assert len({answer.token_ids for answer in answers}) > 1  # drawn at random
    assert len(loaded) == 1  # for these, nothing is loaded again


def test_threads_and_memory(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    load = window.model.worker._load

    def noting(bundle: Path | None, **options: Any) -> TinyGPTV:
        calls.append(options)
        return load(bundle, **options)

    monkeypatch.setattr(window.model.worker, "_load", noting)
    ask(window, SHAPE)
    dialog = dialog_of(window)
    dialog.threads.setValue(1)
    dialog.low_memory.setChecked(True)
    press(dialog)
    idle(window)
    assert calls == [{"threads": 1, "memory": "low"}]
    assert window.model.worker._model._engine.sessions is not None
    said = ask(window, "is it red?")
    assert said.answer == "yes" and said.divider == ""  # it is the same model
    assert len(window.session.sheet.known()) == 2


def test_a_wrong_model_costs_nothing(window: Window, tmp_path: Path) -> None:
    dialog = dialog_of(window)
    dialog.bundle.setText(str(tmp_path))
    press(dialog)
    idle(window)
    assert str(tmp_path) in window.notice.text
    assert window.session.settings.bundle == ""
    assert ask(window, SHAPE).answer == "triangle"


def test_appearance(window: Window) -> None:
    dialog = dialog_of(window)
    dialog.appearance.setCurrentIndex(dialog.appearance.findData("dark"))
    press(dialog)
    assert theme.tokens() == theme.DARK
    window.menus.choose_appearance("light")
    assert theme.tokens() == theme.LIGHT


def test_nothing_is_written_unless_it_is_wanted(window: Window, config: Path) -> None:
    open_and_wait(window, TEAL)
    window.menus.choose_appearance("light")
    dialog = dialog_of(window)
    assert not dialog.remember.isChecked()
    dialog.temperature.setValue(0.5)
    press(dialog)
    assert not config.exists()


def test_what_is_remembered(window: Window, config: Path) -> None:
    dialog = dialog_of(window)
    dialog.remember.setChecked(True)
    dialog.length.setValue(50)
    press(dialog)
    open_and_wait(window, TEAL)
    assert config in settings_file().parents
    assert read_settings() == window.session.settings
    assert read_settings().recent == (TEAL, RED) and read_settings().max_new_tokens == 50
    ask(window, SHAPE)
    text = settings_file().read_text(encoding="utf-8")
    assert 'circle"' not in text and "shape" not in text  # no conversation
    assert [path for path in config.rglob("*") if path.is_file()] == [settings_file()]


@pytest.mark.parametrize("way", ["button", "box"])
def test_forgetting(window: Window, config: Path, way: str) -> None:
    window.session.take(replace(window.session.settings, remember=True))
    assert settings_file().exists()
    dialog = dialog_of(window)
    if way == "button":
        QTest.mouseClick(dialog.forget, Qt.MouseButton.LeftButton)
        assert window.session.settings.recent == () and not dialog.remember.isChecked()
    else:
        dialog.remember.setChecked(False)
    press(dialog)
    assert not settings_file().exists() and not settings_file().parent.exists()
    open_and_wait(window, TEAL)
    assert not settings_file().exists()


def test_settings_that_cannot_be_written(window: Window, config: Path) -> None:
    config.write_text("a file")
    window.session.take(replace(window.session.settings, remember=True))
    assert "settings cannot be remembered" in window.notice.text and "Errno" not in window.notice.text
    assert ask(window, SHAPE).answer == "triangle"


def test_no_settings_are_the_defaults() -> None:
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "cannot be read (it is not UTF-8 text)"),
        (b"nonsense", "holds no settings"),
        (b"[" * 5000, "holds no settings (it is nested too deeply)"),
        (b"[]", "found a list"),
        (json.dumps({"threads": 0}).encode(), "threads is 0"),
        (json.dumps({"temperature": -1}).encode(), "temperature is -1"),
        (json.dumps({"max_new_tokens": "many"}).encode(), 'found "many"'),
        (json.dumps({"appearance": "pink"}).encode(), "'pink'"),
    ],
)
def test_a_damaged_file_of_settings(content: bytes, message: str) -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_bytes(content)
    with pytest.raises(TinyGPTVError, match="Forget now in Settings deletes") as caught:
        read_settings()
    assert message in str(caught.value) and str(settings_file()) in str(caught.value)


def test_forgetting_a_damaged_file(window: Window) -> None:
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text("nonsense")
    QTest.mouseClick(dialog_of(window).forget, Qt.MouseButton.LeftButton)
    assert not settings_file().exists()


def test_names_that_are_no_text_are_remembered() -> None:
    settings = Settings(recent=("/tmp/\udcff.png", "/tmp/ü.png"), remember=True)
    write_settings(settings)
    assert read_settings() == settings


def test_a_model_that_was_chosen_is_the_last_one_loaded(
    window: Window, golden_bundle: Callable[[int, str], Path]
) -> None:
    window.session.take(replace(window.session.settings, remember=True))
    window.files.open_bundle(golden_bundle(4, "int8"))
    idle(window)
    assert read_settings().folder == golden_bundle(4, "int8")
    dialog = dialog_of(window)
    dialog.bundle.clear()
    press(dialog)
    idle(window)
    assert read_settings().folder is None
    assert window.windowTitle() == "red_triangle.png - built-in demo - tinygptv" and said_of(window) == []
