"""Refuse the name of a model that is nowhere, before torch is imported."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hfstack.errors import CheckpointError
from hfstack.runs.model_folder import refuse_missing_folder, suggest_neighbour


def refuse_missing_model(name: str) -> None:
    """Raise CheckpointError for a model that is not here, and not on the Hub.

    What the Hub answers in another way than that it is not there is for the loading to say.
    """
    refuse_missing_folder(name)
    if Path(name).expanduser().exists():
        return

    # what was loaded before needs no network
    if (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return
    try:
        if HfApi().repo_exists(name):
            return
        why = "it is missing or private there (HF_TOKEN or `hf auth login` opens private ones)"
    except HfHubHTTPError:
        return
    except HFValidationError:
        why = "nor could it be: an id there is NAME or OWNER/NAME"
    except Exception as error:  # of the network, which each of its libraries names in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"it is out of reach: {reason[:160]}"

    run = Path("runs") / name
    hint = f"; did you mean {run}?" if run.is_dir() else suggest_neighbour(Path(name))
    raise CheckpointError(
        f"{name}: no such folder, nor a model of {constants.ENDPOINT}: {why}{hint}"
    )
