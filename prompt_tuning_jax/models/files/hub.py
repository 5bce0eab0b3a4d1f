"""Models by their names on a Hugging Face hub. Only files of known names are downloaded.

A file enters the cache that all programs share (HF_HOME) after its hash is checked, and a download
that was stopped is continued: huggingface_hub does neither.
"""

import functools
import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from prompt_tuning_jax.errors import UserError, hide, nearest, reason_of
from prompt_tuning_jax.models.files.packaged_models import PACKAGED
from prompt_tuning_jax.models.files.tokenizer import FILES, VOCABULARIES
from prompt_tuning_jax.models.files.weights import INDEX, SINGLE, weight_files
from prompt_tuning_jax.storage import atomic_write

BUSY = (408, 429, 500, 502, 503, 504)  # statuses after which the hub is asked again
FAILURES = (errors.HTTPError, OSError, ValueError, TypeError, LookupError)
LOGIN = "log in with `hf auth login` or set HF_TOKEN"

log = logging.getLogger(__name__)
constants.HF_HUB_DISABLE_TELEMETRY = True  # it looks for the program that started this one


@functools.cache
def fetch(repo: str, revision: str, weights: bool = True) -> Path:
    """Downloads what the cache lacks of a model, and returns its folder there. If the hub does not
    answer, an earlier download is used. It has to be complete, or without `weights` to have a
    config.json; else a UserError is raised."""
    hub, hint = hide(constants.ENDPOINT), nearest_model(repo)
    store = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))
    try:
        return _download(repo, revision, store, weights)
    except errors.GatedRepoError:
        wrong = f"is gated: ask for access at {hub}/{repo}, then {LOGIN}"
    except errors.RepositoryNotFoundError:
        wrong = f"does not exist here or on {hub}{hint}: correct it; if private, {LOGIN}"
    except errors.RevisionNotFoundError:
        wrong = f"has no revision '{revision}' on {hub}: give a branch, a tag or a commit"
    except FAILURES as error:
        folder, reason = store / "snapshots" / _commit(store, revision), reason_of(error)
        if _is_whole(folder) if weights else (folder / "config.json").exists():
            if not constants.HF_HUB_OFFLINE:
                log.warning("warning: no download from %s (%s): %s is used", hub, reason, folder)
            return folder
        wrong = f"does not exist here, is not whole in {store.parent}, and was not downloaded from"
        wrong += f" {hub} ({reason}){hint}: check the name, then type the same again"
    raise UserError(f"the model '{repo}' {wrong}.")


def _download(repo: str, revision: str, store: Path, weights: bool) -> Path:
    """Completes the snapshot of a revision; asks again if the hub is busy."""
    for seconds in (1, 2, 4):
        try:
            return _complete(repo, revision, store, weights)
        except errors.HfHubHTTPError as error:
            if error.response.status_code not in BUSY:
                raise
        time.sleep(seconds)
    return _complete(repo, revision, store, weights)


def _complete(repo: str, revision: str, store: Path, weights: bool) -> Path:
    wait = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=wait)
    listed: dict[str, Any] = {each.rfilename: each for each in info.siblings or ()}
    if "config.json" not in listed or not {SINGLE, INDEX} & listed.keys():
        lacks = f"no config.json or no {SINGLE}, and other weights are not read"
        raise UserError(f"the model '{repo}' has {lacks}: give another model.")
    folder = store / "snapshots" / _hash(info.sha)
    for name in listed.keys() & {INDEX, "config.json", "generation_config.json", *FILES}:
        _get(repo, listed[name], folder)
    names = [SINGLE] if SINGLE in listed else [path.name for path in weight_files(folder)]
    names = names if weights else []
    left = sum(listed[name].size for name in names if not (folder / name).exists())
    left -= sum(path.stat().st_size for path in store.glob("blobs/*.incomplete"))
    if left > (free := shutil.disk_usage(folder).free):
        lacks = f"takes {left:,} bytes more and {store.parent} has {free:,} left"
        raise UserError(f"the model '{repo}' {lacks}: set HF_HOME to a folder on another disk.")
    for name in names:
        _get(repo, listed[name], folder)
    ref = store / "refs" / revision
    if _commit(store, revision) != folder.name and (weights or not ref.exists()):
        ref.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(ref, folder.name.encode())
    return folder


def _get(repo: str, file: Any, folder: Path) -> None:
    """Downloads a file that the hub lists into a snapshot, unless it is there."""
    store, place = folder.parents[1], folder / file.rfilename
    digest = _hash(file.lfs.sha256 if file.lfs else file.blob_id)
    blob, partial = (store / "blobs" / f"{digest}{end}" for end in ("", ".incomplete"))
    lock = store.parent / ".locks" / store.name / f"{digest}.lock"
    if place.exists():
        return
    for path in (place, blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            url = hf_hub_url(repo, place.name, revision=folder.name, endpoint=constants.ENDPOINT)
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}
            with partial.open("ab") as data:
                if (done := data.tell()) < file.size:
                    http_get(url, data, resume_size=done, headers=headers)
            # Git's hash, or that of large storage.
            begun = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size)
            with partial.open("rb") as data:
                found = hashlib.file_digest(data, lambda: begun).hexdigest()
            if found != digest:
                partial.unlink()
                raise ValueError(f"{place.name} arrived with another hash than it should have")
            os.replace(partial, blob)
        try:
            place.symlink_to(os.path.relpath(blob, folder))
        except OSError:  # a disk without links
            os.replace(blob, place)


def _hash(value: Any) -> str:
    """Returns a hash that the hub says, which becomes the name of a file here."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(value)):
        raise ValueError("a file has no hash")
    return str(value)


def _is_whole(folder: Path) -> bool:
    try:
        files = [folder / "config.json", *weight_files(folder)]
    except UserError:
        return False
    return all(map(Path.exists, files)) and any((folder / name).exists() for name in VOCABULARIES)


def _commit(store: Path, revision: str) -> str:
    """Returns the commit of a revision when it was last downloaded."""
    ref = store / "refs" / revision
    return ref.read_text() if ref.is_file() else revision


def nearest_model(name: str) -> str:
    """Returns what `nearest` does for a model, among packaged ones and those in the cache."""
    cached = Path(constants.HF_HUB_CACHE).glob("models--*")
    names = {*PACKAGED, *(path.name[8:].replace("--", "/") for path in cached)}
    return nearest(name, sorted(names))
