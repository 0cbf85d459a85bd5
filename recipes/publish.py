"""Publish a finished run with a model card: to the Hub, or into a folder.

    accelerate launch recipes/publish.py --config recipes/publish.yaml --repo me/stories
    hfstack run publish --run runs/sft --repo me/stories --dry_run true  # shows the plan

reads   run.json of the run, of those behind it and of those that measured it; its weights,
        tokenizer or rows
writes  README.md, curves.svg, runs.json, publication.json and run.json in --output_dir; the
        repository or the folder
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from huggingface_hub import constants, get_token

from hfstack.config import command_line
from hfstack.drawing.numbers import size
from hfstack.errors import ConfigError
from hfstack.publishing import folder, hub, staging
from hfstack.publishing.card.author import AuthorFacts, parse_data_licences
from hfstack.publishing.card.metadata import check_card
from hfstack.publishing.card.render import render_card
from hfstack.publishing.lineage import follow_chain, rendering_of
from hfstack.publishing.secret_scan import known_secrets, refuse_secrets
from hfstack.reporting.card_picture import chain_picture
from hfstack.reporting.runs import load_runs
from hfstack.runs.run import Run, RunArgs


@dataclass
class PublishArgs:
    """What is published, and where."""

    run: str = ""
    """Output directory of a finished run: a model, an adapter, a tokenizer, or a dataset such
    as preferences."""
    repo: str = ""
    """Where to: name/model on the Hub, or file:///a/folder. Needs HF_TOKEN or `hf auth login`
    for the Hub."""
    private: bool = True
    """Make the repository private. One that exists stays as it is, and a public one is only
    used with false."""
    dry_run: bool = False
    """Write the card and show the plan, and send nothing anywhere."""
    merge_adapter: bool = False
    """Merge an adapter into its base, and publish the whole model."""
    base_repo: str | None = None
    """Hub id of an adapter's base, where the adapter names a folder of this machine."""
    endpoint: str | None = None
    """Address of the Hub (default: HF_ENDPOINT, else huggingface.co)."""
    measure: bool = True
    """Load the files and measure one number that `verify` can compare, when they are sent; off
    for models too large for this machine."""


@dataclass
class CardArgs:
    """What only you can say; what is left out, the card calls missing."""

    license: str | None = None
    """Licence of what is published, by its id on the Hub, such as apache-2.0."""
    language: list[str] = field(default_factory=list)
    """Languages as ISO 639 codes, such as en."""
    intended_use: str | None = None
    """What it is for, in a sentence."""
    limits: list[str] = field(default_factory=list)
    """Known limits, in sentences."""
    data_licenses: list[str] = field(default_factory=list)
    """Licences of the data as path=licence; the end of a path is enough: raw.jsonl=cc-by-4.0."""
    evaluations: list[str] = field(default_factory=list)
    """Runs that measured it (default: evaluate_lm, win_rate, predict and the like beside it
    that read it)."""


def main(args: PublishArgs, card_args: CardArgs, run_args: RunArgs) -> dict[str, float]:
    """Check, write the card, push, and compare what arrived; return counts."""
    if not args.run or not (args.repo or args.dry_run):
        raise ConfigError(
            "--run and --repo are required, such as --run runs/sft --repo your_name/model"
        )
    author = AuthorFacts(
        card_args.license,
        card_args.language,
        card_args.intended_use,
        card_args.limits,
        parse_data_licences(card_args.data_licenses),
    )

    # the run, those behind it, and where it goes
    chain = follow_chain(Path(args.run), card_args.evaluations)
    kind, files = staging.check_ready(chain)
    repo = args.repo or f"your_name/{chain.last.label.replace('/', '-')}"
    endpoint, token = args.endpoint or constants.ENDPOINT, get_token()
    target = hub.HubRepo(repo, kind.repo_type, endpoint, token, private=args.private)
    if not (args.dry_run or folder.names_folder(repo)):
        hub.check_token(target)  # before the minutes that loading and hashing may take

    settings = (args, card_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings, replace_own=True) as run:
        run.record_inputs(args.run)

        # model
        if args.merge_adapter:
            from hfstack.publishing.merging import merge  # late: torch takes seconds

            whole = staging.fresh_folder(run.output_dir / "merged")
            kind, files = merge(chain.last.directory, kind, whole)
        base = staging.check_base(kind, args.base_repo)

        # card
        picture = chain_picture(load_runs([str(link.directory) for link in chain.links]))
        card = render_card(
            chain,
            kind,
            author,
            repo=str(folder.folder_of(repo)) if folder.names_folder(repo) else repo,
            made=datetime.now(UTC),
            base=base,
            picture=picture and "curves.svg",
            splits=[Path(name).stem for name in files] if kind.name == "dataset" else [],
        )
        check_card(card, dataset=kind.repo_type == "dataset")

        # files
        secrets = known_secrets()
        items = staging.stage_files(
            files,
            run.output_dir,
            chain=chain,
            secrets=list(secrets),
            card=card,
            picture=picture,
            base=base,
        )

        # what `verify` compares: it loads the model, so a dry run leaves it out
        check = None
        if args.measure and not args.dry_run:
            from hfstack.publishing.check_number import measure_check_number  # late, as above

            check = measure_check_number(files, kind)

        rendering = rendering_of(chain)
        items = staging.write_publication(
            items,
            run.output_dir,
            kind=kind,
            repo=repo,
            run_id=chain.last.record.run_id,
            rendering=rendering,
            check=check,
        )
        scanned, total_bytes = refuse_secrets(items, secrets), sum(one.bytes for one in items)
        metrics: dict[str, float] = {"files": scanned, "bytes": total_bytes}
        metrics |= {} if check is None else {check[0]: check[1]}

        # push
        if args.dry_run:
            print(f"{repo}: {kind.name}")
            print("\n".join(f"  {one.path:<28} {size(one.bytes)}" for one in items))
            print(f"{run.output_dir}/README.md is the card; nothing was sent")
        elif folder.names_folder(repo):
            metrics["verified_files"] = folder.push_to_folder(folder.folder_of(repo), items)
        else:
            parent = hub.prepare_repo(target)
            old = hub.find_superseded(target, parent, items, kind=kind.name)
            message = f"Publish {chain.last.label}"
            sha = hub.push(target, items, parent=parent, message=message, delete=old)
            metrics["verified_files"] = hub.check_pushed(target, items, sha)
            print(f"{target.url} is at {sha}")

        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
