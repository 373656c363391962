"""Merge a newer upstream into an adopted project, without what the adoption took away and without conflicts there.

Both the upstream that the project has and the newer one are changed in git's objects as the adoption changed this
project. The merge of these two has only what is new in the library; git merges it into the branch as usual.
"""

import logging
import os
from pathlib import Path

from cifar_pipeline.adoption import repository
from cifar_pipeline.adoption.adopt import generate
from cifar_pipeline.adoption.plan import RECORD, Plan, Record, read_changes, read_record
from cifar_pipeline.utils.console import clear_status, status
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError
from cifar_pipeline.utils.git import GitError, git_bytes, git_output
from cifar_pipeline.utils.text import count_noun, list_names, redact

log = logging.getLogger(__name__)

REMOTE, BRANCH = "upstream", "main"
FETCH_TIMEOUT_SECONDS = 600.0


def update(url: str = "", branch: str = BRANCH) -> None:
    """Fetch the upstream and merge it in one commit.

    Raises UserError for conflicts, which are left in the working tree as after `git merge`, and for a state that does
    not allow a merge.
    """
    head = repository.require_repository()
    record = read_record()
    if record is None:
        raise UserError(
            "This project was not adopted: `make adopt NAME=flowers` does that, and a clone of cifar-pipeline itself "
            "is updated by `git pull`."
        )
    repository.require_ready_to_commit()
    clear_status()  # git may ask for a password
    new = fetch(url, branch)
    status("Merging")
    old = known_upstream(head, new, record)
    removed = brought_back(head, old, record)
    if old == new == record.commit and not removed:
        log.info(f"{record.name} has upstream's newest commit, {new[:10]}: there is nothing to merge.")
        return
    merge(head, old, new, record, removed)
    finish(new)
    count = int(git_output("rev-list", "--count", f"{old}..{new}"))
    changed = git_bytes("diff", "--name-only", "-z", head, "HEAD").count(b"\0")
    log.info(
        f"Merged upstream's {new[:10]}, {count_noun(count, 'commit')} newer: {count_noun(changed, 'file')} changed. "
        "`make` runs what that changes, `make test` the tests; `git reset --keep HEAD~1` undoes the merge."
    )


def fetch(url: str, branch: str) -> str:
    """Return the newest commit of the upstream. Adds the remote `upstream` where a URL is given."""
    remotes = git_output("remote").decode().split()
    if url and REMOTE in remotes and (present := git_output("remote", "get-url", REMOTE).decode()) != url:
        raise UserError(
            f"The remote {REMOTE} is {redact(present)} already: `git remote set-url {REMOTE} URL` changes it, then run "
            "`make update`."
        )
    if not url and REMOTE not in remotes:
        raise UserError(
            f"There is no remote {REMOTE}: `make update UPSTREAM=URL` adds the repository of cifar-pipeline that you "
            f"cloned (where that is still `origin`, run `git remote rename origin {REMOTE}`)."
        )
    is_new = REMOTE not in remotes
    if is_new:
        git_output("remote", "add", "--", REMOTE, url)
    try:
        git_bytes(
            "fetch", "--quiet", REMOTE, branch, variables={"GIT_TERMINAL_PROMPT": "1"}, timeout=FETCH_TIMEOUT_SECONDS
        )
        return git_output("rev-parse", "--verify", "FETCH_HEAD^{commit}").decode("ascii")
    except GitError as error:
        if is_new:
            git_output("remote", "remove", REMOTE)
        raise EnvironmentFailure(
            f"The branch {branch} of {REMOTE} could not be fetched ({redact(repository.describe_git_error(error))}): "
            "check the address and the network; nothing was changed."
        ) from None


def known_upstream(head: str, new: str, record: Record) -> str:
    """Return the newest commit of the upstream that the project has: by the record, or by a merge with git alone.

    A repository without the upstream's history (a template, an unpacked archive) began with a commit that has the same
    files as one of the upstream.
    """
    candidates = [base for base in (common(record.commit, new), common(head, new)) if base]
    if len(candidates) == 2:
        return candidates[1] if common(*candidates) == candidates[0] else candidates[0]
    if candidates:
        return candidates[0]
    for line in git_output("log", "--format=%H %T", new).decode("ascii").splitlines():
        commit, tree = line.split()
        if tree == record.tree:
            return commit
    raise UserError(
        f"No commit of {REMOTE} has the files that this project began with: write the commit of cifar-pipeline that it "
        f"comes from after `commit:` in {RECORD}, commit that, and try again."
    )


def common(first: str, second: str) -> str:
    """Return the newest commit in both histories, or an empty string."""
    try:
        return git_output("merge-base", first, second).decode("ascii")
    except GitError:
        return ""


def brought_back(head: str, old: str, record: Record) -> set[str]:
    """Return the removed files that a merge with git alone has brought back, unchanged, since the recorded commit."""
    if old == record.commit:
        return set()
    files, theirs = repository.files_of(head), repository.files_of(old)
    removed = read_changes(theirs).removed(theirs, record.keep)
    return {path for path in removed if path in files and files[path].blob == theirs[path].blob}


def merge(head: str, old: str, new: str, record: Record, removed: set[str]) -> None:
    """Merge the changes between two commits of the upstream into the index and the working tree.

    Raises UserError where git does not start to, and after the files in conflict were left for the user.
    """
    plans = [Plan.of(commit, record) for commit in (old, new)]
    base, theirs = (repository.make_commit(plan.tree(), [plan.commit], "as adopted\n") for plan in plans)
    labels = {f"GITHEAD_{head}": "HEAD", f"GITHEAD_{theirs}": f"{REMOTE} {new[:10]}"}
    git_output("update-index", "-q", "--refresh")
    try:
        git_bytes("merge-recursive", base, "--", head, theirs, variables=labels)
        conflicts: list[str] = []
    except GitError as error:
        names = git_bytes("diff", "--name-only", "--diff-filter=U", "-z").split(b"\0")
        conflicts = sorted({os.fsdecode(name) for name in names if name})
        if not conflicts:
            raise UserError(
                f"git did not start the merge ({repository.describe_git_error(error)}): see to it, then try again."
            ) from None
    if removed:
        git_output("rm", "--quiet", "--force", "--ignore-unmatch", "--", *sorted(removed))
    write_record(record.model_copy(update={"commit": new, "tree": repository.tree_of(new)}))
    begin_merge(head, new)
    if conflicts:
        raise UserError(
            f"Upstream and this project changed the same lines of {list_names(conflicts)}: settle them, `git add` them "
            "and run `git commit`, then `make` and `make docs`; or undo the update with `git merge --abort`."
        )


def begin_merge(head: str, new: str) -> None:
    """Tell git that a merge is in progress, so that `git commit` ends it and `git merge --abort` undoes it."""
    message = f"Merge upstream {new[:10]}\n\nMade by `make update`.\n"
    repository.git_path("MERGE_MSG").write_text(message, encoding="utf-8")
    if common(head, new) != new:
        repository.git_path("MERGE_MODE").write_text("no-ff", encoding="utf-8")
        repository.git_path("MERGE_HEAD").write_text(f"{new}\n", encoding="utf-8")


def write_record(record: Record) -> None:
    RECORD.write_text(record.text(), encoding="utf-8", newline="\n")
    git_output("add", "--", str(RECORD))


def finish(new: str) -> None:
    """Make the generated files again, with the merged code, and commit the merge."""
    changes = read_changes(repository.files_of(new))
    try:
        generate(changes, Path())
    except UserError as error:
        log.warning(f"{error} The merge is complete without it; `make` and `make docs` make it again.")
    present = [path for path in changes.generate if Path(path).exists()]
    git_output("add", "--", *present)
    git_output("commit", "--quiet", "--no-verify", "--no-edit", "--file", str(repository.git_path("MERGE_MSG")))
