"""A first look before any training: the shipped ensemble served, and asked about one thing of each kind.

In: nothing. Out: what a client sees, as text.
"""

import os
import tempfile
from pathlib import Path

from softspec.app.demo.facts import invent_things
from softspec.app.demo.report import format_answers
from softspec.app.demo.served import Questioner, Serve, connect, serving
from softspec.app.demo.settings import DemoSettings
from softspec.app.demo.shipped import SHIPPED
from softspec.app.interruption import interruptible
from softspec.app.smollm2 import local_base
from softspec.artefact.manifest import load_manifest


def try_shipped(serve: Serve = serving) -> str:
    """Serve the shipped ensemble, ask about one thing of each kind, and end the server; returns what came, as text.

    Raises:
        ConfigError: there is no base model. EngineError: the server did not start; its log stays.
    """
    settings = DemoSettings()
    handle, name = tempfile.mkstemp(prefix="softspec-try-", suffix=".log")
    os.close(handle)
    with (
        interruptible("stopped"),
        serve(SHIPPED, str(local_base()), settings.serving, Path(name)) as url,
        connect(url) as client,
    ):
        questioner = Questioner(client, load_manifest(SHIPPED).name, settings.serving.policy)
        answers = questioner.one_of_each_kind(invent_things(settings.seed))
    Path(name).unlink()
    return format_answers(answers)
