"""`softspec try`: what an answer looks like, before any training."""

from importlib.util import find_spec

from cyclopts import App

app = App(
    "try",
    help_epilogue="""\
Examples:
  softspec try
  softspec serve demo --port 8000    # the same ensemble, to ask yourself""",
)


@app.default
def try_shipped() -> None:
    """Serve the ensemble that travels in the package, ask it three questions, and end the server."""
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(name="vllm")
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.app.demo.first_look import try_shipped as run

    hide_foreign_progress()
    print(run())
    print("\nServe it yourself: softspec serve demo. Train your own: softspec demo.")
