"""A person who uses ``tinygptv app`` in a process of its own."""

USER = """
import json, os, signal, sys
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QFileDialog, QLineEdit
from tinygptv.runtime import cli
from tinygptv.runtime.app.window import Window

events, said = [], []
sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith(("socket.", "urllib.")) else None)

def use():
    window = next((widget for widget in QApplication.topLevelWidgets() if isinstance(widget, Window)), None)
    if window and not window.model.busy and steps:
        steps.pop(0)(window)

def say(window):
    said.extend((turn.answer, len(turn.regions)) for turn in window.session.sheet.said)

def choose(window):
    dialog = window.findChild(QFileDialog)
    dialog.findChild(QLineEdit).setText(sys.argv[1])
    dialog.accept()

def begin(window, show=Window.show):
    show(window)
    timer.start()

timer = QTimer(interval=20)
timer.timeout.connect(use)
Window.show = begin
"""
"""Somebody who does ``steps``, one whenever the model is idle."""
