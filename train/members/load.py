"""Members from an ensemble directory, to score them or to train them on.

In: a directory of ordinary PEFT adapters, and their base. Out: `Members`. Needs no peft.
"""

from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel

from softspec.artefact.manifest import adapter_config, load_manifest, member_dir
from softspec.errors import ManifestError
from softspec.train.members.members import Members
from softspec.train.members.spec import resolve_spec

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_members(ensemble_dir: Path, model: PreTrainedModel) -> Members:
    """Install the adapters of an ensemble directory in its base model.

    Raises:
        ManifestError: the directory is not a complete ensemble, or its adapters do not fit this model.
    """
    manifest = load_manifest(ensemble_dir)
    config = adapter_config(ensemble_dir, 0)
    layers = config.get("layers_to_transform")
    spec = resolve_spec(
        model,
        config["r"],
        config["lora_alpha"] * (config["r"] ** 0.5 if config.get("use_rslora") else 1),
        tuple(config["target_modules"]),
        "all" if layers is None else tuple(layers),
    )
    members = Members(model, spec, manifest.num_members)
    for member in range(manifest.num_members):
        folder = member_dir(ensemble_dir, member)
        try:
            members.load_adapter(member, load_file(folder / ADAPTER_WEIGHTS))
        except (KeyError, RuntimeError) as error:
            reason = str(error).split("\n")[0]
            raise ManifestError(
                f"'{folder}' does not fit the base model: {reason}; check base_model"
            ) from error
    return members
