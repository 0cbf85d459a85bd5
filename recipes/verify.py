"""Verify a publication: the sha256 of every file, and one number measured again.

    accelerate launch recipes/verify.py --config recipes/verify.yaml --repo me/stories
    hfstack run verify --repo me/stories                                # the same, shorter

reads   a repository of the Hub, or a folder, that the publish recipe has made
writes  the files that were fetched, and run.json, in --output_dir
"""

from dataclasses import dataclass

from huggingface_hub import constants

from hfstack.config import command_line
from hfstack.errors import ConfigError
from hfstack.publishing.folder import folder_of, names_folder
from hfstack.publishing.staging import fresh_folder
from hfstack.publishing.verify import check_files, check_number, fetch, publication_digest
from hfstack.runs.run import Run, RunArgs


@dataclass
class VerifyArgs:
    """What to check."""

    repo: str = ""
    """name/model on the Hub, or file:///a/folder."""
    revision: str = "main"
    """Branch or commit."""
    endpoint: str | None = None
    """Address of the Hub (default: HF_ENDPOINT, else huggingface.co)."""
    measure: bool = True
    """Load the files and compare one number; off, only the hashes are compared."""


def main(args: VerifyArgs, run_args: RunArgs) -> dict[str, float]:
    """Fetch, compare and return counts and the number."""
    if not args.repo:
        raise ConfigError(
            "--repo is required, such as --repo your_name/model or --repo file:///a/folder"
        )

    with Run.start(__file__, run_args.output_dir, args, run_args, replace_own=True) as run:
        # fetch
        if names_folder(args.repo):
            folder, commit = folder_of(args.repo), ""
        else:
            folder = fresh_folder(run.output_dir / "files")
            endpoint = (args.endpoint or constants.ENDPOINT).rstrip("/")
            commit = fetch(args.repo, folder, endpoint=endpoint, revision=args.revision)

        # hashes
        publication = check_files(folder, args.repo)
        files, digest = publication["files"], publication_digest(publication)
        place = f"{args.repo} {commit}".strip()
        said = f"{place}: {len(files)} files are as published, sha256 of all {digest}"
        metrics = {"files": len(files), "bytes": sum(entry["bytes"] for entry in files.values())}

        # number
        if args.measure and (found := check_number(folder, publication)) is not None:
            name, published, measured = found
            metrics |= {name: measured, f"published_{name}": published}
            said += f"; {name} is {measured:.6g}, published was {published:.6g}"

        print(said)
        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
