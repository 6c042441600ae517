"""An export onto the Hugging Face Hub, by the Hub's own client.

The client takes the token of its own login or of HF_TOKEN; nothing here reads or prints it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused, lacks

__all__ = ["check_header", "check_push", "push"]

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def check_push(name: str, *, private: bool) -> bool:
    """Ask the Hub whether a repository can be written, before there is anything to write.

    Args:
      name: of the repository, owner/name.
      private: whether nobody else is to see it.

    Returns:
      Whether the repository is there already.

    Raises:
      Refused: if the name is malformed, huggingface_hub is not installed, nobody is logged in, the
        account may not write there, the repository is public and should not be, or the Hub cannot
        be reached.
    """
    client = _client(name)
    _check_name(name)
    _check_account(name, client)
    return _is_there(name, client, private)


def check_header(name: str, header: str) -> None:
    """Let the Hub judge the header of a README.md, such as a licence that is not of its list.

    Args:
      name: of the repository, owner/name.
      header: the YAML between its lines of dashes, and those.

    Raises:
      Refused: if the Hub does not take it, or cannot be reached.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(header).validate()
    except Exception as error:
        if isinstance(error, ValueError) or _status(error) == 400:
            raise Refused(
                f"`push={name}`: the Hub refuses the header of README.md ({_reason(error)}), "
                "expected values of its lists; correct `license=` or `base_model=`."
            ) from error
        raise _unreachable(name, error) from error


def push(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Put the files of a folder into a repository, which is made if it is not there.

    Files of the same names are replaced, in a commit of their own; others stay.

    Args:
      folder: of this machine; all of it is sent, and nothing else.
      name: of the repository, owner/name.
      private: whether a new one is.
      message: of the commit.

    Returns:
      The address of the repository.

    Raises:
      OSError: if the Hub does not take all of it.
    """
    client = _client(name)
    try:
        # None: as the owner has it, for an organisation may have new ones private.
        address = client.create_repo(name, private=private or None, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # its errors have no common base
        raise OSError(
            f"{name} did not take all of {folder} ({_reason(error)}), which is written and whole. "
            f"`hf upload {name} {folder} .` sends it again."
        ) from error
    return str(address)


def _client(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise Refused(f"{lacks(f'`push={name}`', 'huggingface_hub', 'hub')}.") from error
    return huggingface_hub.HfApi()


def _check_name(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    wrong = "" if name.count("/") == 1 else "not one slash"
    try:
        validate_repo_id(name)
    except ValueError as error:  # HFValidationError is one
        wrong = wrong or str(error)
    if wrong:
        raise Refused(
            f"`push={name}` is no name of a repository ({wrong}), expected owner/name such as "
            "ada/sdxl-four-step; correct it."
        )


def _check_account(name: str, client: Any) -> None:
    """Refuse where nobody is logged in, or somebody who may not write there."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        account = client.whoami()
    except LocalTokenNotFoundError as error:
        raise Refused(f"`push={name}` and nobody is logged in to the Hub; {_LOGIN}.") from error
    except Exception as error:
        if _status(error) == 401:
            raise Refused(f"`push={name}`: the Hub does not know this token; {_LOGIN}.") from error
        raise _unreachable(name, error) from error
    owners = [account["name"], *(it["name"] for it in account.get("orgs") or ())]
    owner = name.partition("/")[0]
    if owner.casefold() not in [it.casefold() for it in owners]:
        raise Refused(
            f"`push={name}` is of {owner}, expected one of {', '.join(owners)}, for whom this "
            "account may write; choose one, or log in as another."
        )
    if _role(account) == "read":
        raise Refused(f"`push={name}` with a token that may only read; {_LOGIN}.")


def _role(account: Mapping[str, Any]) -> str:
    return ((account.get("auth") or {}).get("accessToken") or {}).get("role", "")


def _is_there(name: str, client: Any, private: bool) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = client.model_info(name)
    except RepositoryNotFoundError:
        return False
    except Exception as error:
        raise _unreachable(name, error) from error
    if private and not found.private:
        raise Refused(
            f"`private=` with `push={name}`, which is there and public, expected a private or a "
            "new one; choose another name, or make it private in its settings on the Hub."
        )
    return True


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(name: str, error: Exception) -> Refused:
    return Refused(
        f"`push={name}`: the Hub does not answer ({_reason(error)}), expected a network that "
        "reaches it, without HF_HUB_OFFLINE; try again, or export without `push=` and send the "
        "folder later by `hf upload`."
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
