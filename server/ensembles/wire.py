"""The bodies of the requests by which ensembles come and go in a running server; unknown fields are refused."""

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadEnsembleRequest(_Strict):
    """What to serve; `path` is a directory on the server's machine."""

    path: str
    replace: bool = False


class UnloadEnsembleRequest(_Strict):
    """What to serve no longer."""

    name: str
