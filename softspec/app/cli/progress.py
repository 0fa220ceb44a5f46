"""Progress bars of other libraries, which would break into ours."""


def hide_foreign_progress() -> None:
    """Ours are the only bars from here on: transformers draws one for every checkpoint it reads."""
    from transformers.utils import logging

    logging.disable_progress_bar()
