"""Fit scaling laws to a ladder or a table, and predict the largest rung.

    hfstack run scaling_fit --runs runs/ladder
    hfstack run scaling_fit --datasets table.csv --parameters_column N_params --output_dir runs/fit

reads   run.json of each rung of a ladder (scaling_ladder), or a table of N, D and loss
writes  parameters, intervals and tables in run.json, pictures, and bootstrap.csv in --output_dir
"""

from dataclasses import asdict, dataclass, field

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, SourceLog, describe_sources
from hfstack.errors import ConfigError
from hfstack.reporting.scaling.pictures import pictures_of
from hfstack.reporting.scaling.read import Counted, load_rungs, read_table, rung_folders
from hfstack.reporting.scaling.tables import draws_table, metrics_of, tables_of
from hfstack.runs.run import Run, RunArgs
from hfstack.scaling.fit import FORMS, fit_ladder
from hfstack.scaling.isoflop import Shape
from hfstack.scaling.parametric import Resample


@dataclass
class TableArgs:
    """What the columns of a table are called."""

    parameters_column: str = "N"
    """Parameters."""
    tokens_column: str = "D"
    """Training tokens."""
    loss_column: str = "loss"
    """Loss, in any unit."""
    flops_column: str | None = None
    """Training compute; 6ND when unset."""
    unique_tokens_column: str | None = None
    """Tokens of the training set, for data that was read more than once."""
    family_column: str | None = None
    """What distinguishes families; each is fitted on its own."""
    excluded_column: str | None = None
    """Leave out the rows where this column is neither empty nor 0."""


@dataclass
class FitArgs:
    """What is fitted, and how."""

    runs: list[str] = field(default_factory=list)
    """Ladders (the --output_dir of scaling_ladder), or folders that hold them; not read where
    --datasets is given."""
    forms: list[str] = field(default_factory=list)
    """What must be fitted, of kaplan, envelope, isoflop, parametric, repeated; unset: whatever
    the rungs can carry."""
    counted: Counted = "full"
    """How the rungs of runs count N and C: full, 6nd, or kaplan (without embeddings)."""
    loss: str = "eval_loss"
    """The metric of the runs that is fitted."""
    draws: int = 400
    """Bootstrap refits."""
    resample: Resample = "rows"
    """What the bootstrap resamples: rows (whole rungs) or residuals."""
    curve: Shape = "parabola"
    """Shape of the IsoFLOP curves: parabola or akima."""
    window: float | None = None
    """Fit IsoFLOP curves to runs within this factor of the best N only; all when unset."""

    def __post_init__(self) -> None:
        if unknown := [form for form in self.forms if form not in FORMS]:
            raise ConfigError(f"--forms {unknown[0]}: no such form; choose of {', '.join(FORMS)}")


def main(
    data_args: DataArgs, table_args: TableArgs, fit_args: FitArgs, run_args: RunArgs
) -> dict[str, float]:
    """Fit every family, save tables and pictures, and return the numbers."""
    if not fit_args.runs and not data_args.datasets:
        raise ConfigError(
            "nothing to fit: give --runs (ladders) or --datasets (a table with columns N, D, loss)"
        )
    settings = (data_args, table_args, fit_args, run_args)

    with Run.start(__file__, run_args.output_dir, *settings, replace_own=True) as run:
        # data: a table, or the rungs of ladders
        if data_args.datasets:
            read: SourceLog = {}
            families = read_table(
                data_args.datasets, **asdict(table_args), on_bad_row=data_args.on_bad_row, log=read
            )
            run.record_inputs(table=describe_sources(data_args.datasets, read))
        else:
            families = load_rungs(fit_args.runs, counted=fit_args.counted, loss=fit_args.loss)
            run.record_inputs(*rung_folders(fit_args.runs))

        # fit
        fits = {
            family: fit_ladder(
                rungs,
                name=family,
                forms=fit_args.forms,
                draws=fit_args.draws,
                seed=run_args.seed,
                resample=fit_args.resample,
                shape=fit_args.curve,
                window=fit_args.window,
            )
            for family, rungs in families.items()
        }

        # tables and pictures
        for name, table in tables_of(fits).items():
            run.add_table(name, *table)
        unit = "loss" if data_args.datasets or fit_args.loss != "eval_loss" else "nats per token"
        for name, picture in pictures_of(fits, unit).items():
            (run.output_dir / f"{name}.svg").write_text(picture, encoding="utf-8")
            run.add_artifact(name, f"{name}.svg")
        (run.output_dir / "bootstrap.csv").write_text(draws_table(fits), encoding="utf-8")
        run.add_artifact("bootstrap", "bootstrap.csv")

        for family, fit in fits.items():
            print(f"{family}: {len(fit.rungs)} rungs; fitted {', '.join(fit.fitted)}")
            refused = [f"no {form}: {reason}" for form, reason in fit.refused.items()]
            for note in [*fit.notes, *refused]:
                print(f"  {note}")

        # finish
        return run.finish(metrics_of(fits))


if __name__ == "__main__":
    command_line(main)
