"""`softspec demo`: train on sources that contradict each other, measure, serve, ask. `story.py` has the order."""

from train.demo.report import format_report
from train.demo.story import DemoSettings, run_demo

__all__ = ["DemoSettings", "format_report", "run_demo"]
