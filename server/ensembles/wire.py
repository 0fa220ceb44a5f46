"""Ensembles that come and go in a running server: the bodies of the requests; unknown fields are refused."""

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadEnsembleRequest(_Strict):
    """`path` is a directory on the server's machine."""

    path: str
    replace: bool = False


class UnloadEnsembleRequest(_Strict):
    name: str
