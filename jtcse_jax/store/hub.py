"""Uploads exported folders to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from jtcse_jax.errors import UserError


def push(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder as the model repository `name` and returns the address of the commit.

    Creates the repository if it does not exist, private if `private`; an existing one keeps its
    visibility. Files of the same name are replaced, others stay. Raises UserError with the hub's
    reason: no token, not allowed, not reachable.
    """
    try:
        api = huggingface_hub.HfApi()
        # To a name without a user the hub adds the token's user.
        repository = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        return str(api.upload_folder(folder_path=folder, repo_id=repository))
    except Exception as error:  # a dozen types of the hub, httpx and ssl
        raise UserError(
            f"--push {name}: {_reason(error)}; the folder is complete, push it later with: "
            f"hf upload {name} {folder}"
        ) from error


def check_name(name: str) -> None:
    """Raises UserError if `name` cannot be the name of a repository."""
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name} cannot name a repository: give USER/NAME.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "no token: log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return "the hub rejects the token (401): log in with `hf auth login`"
    if status == 403:
        return "not allowed (403): use a token with write access to this name"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"
