"""Plan what a budget buys, or what a recipe takes and whether it fits.

    hfstack run plan --money 500 --price_per_device_hour 3 --memory_gib 141
    hfstack run plan --recipe sft --recipe_options "--model_name_or_path Qwen/Qwen3-0.6B"

reads   a law that scaling_fit has fitted, or the published one; any recipe's settings and its
        model's config.json
writes  run.json with the plan as tables, and the planned model's config.json, in --output_dir
"""

import json
import shlex
from pathlib import Path
from typing import Any

from hfstack.config import command_line
from hfstack.drawing.numbers import compact, number
from hfstack.errors import ConfigError
from hfstack.models.architectures import count_costs
from hfstack.models.loading import find_architecture
from hfstack.planning.measure import measure_step
from hfstack.planning.plan import (
    CHANGE_COLUMNS,
    MEMORY_COLUMNS,
    MIB,
    DeviceArgs,
    change_rows,
    checkpointing_peaks,
    correct_needs,
    cost_of_run,
    find_device,
    memory_rows,
    read_law,
    recipe_metrics,
)
from hfstack.planning.workload import WorkArgs, assess, read_workload
from hfstack.recipe_settings import read_recipe_settings
from hfstack.runs.run import Run, RunArgs
from hfstack.scaling.budget import BudgetArgs, budget_flops, plan_budget
from hfstack.scaling.ladder import Costs, Machine
from hfstack.shipped import without_size


def main(
    budget_args: BudgetArgs, work_args: WorkArgs, device_args: DeviceArgs, run_args: RunArgs
) -> dict[str, float]:
    """Plan for a recipe when one is named, otherwise for a budget."""
    settings = (budget_args, work_args, device_args, run_args)

    with Run.start(__file__, run_args.output_dir, *settings, replace_own=True) as run:
        if work_args.recipe is not None:
            price = budget_args.price_per_device_hour
            return run.finish(plan_recipe(run, work_args, device_args, price=price))

        run.record_inputs(budget_args.fit)
        return run.finish(plan_compute(run, budget_args, device_args))


def plan_recipe(
    run: Run, work: WorkArgs, machine: DeviceArgs, *, price: float | None
) -> dict[str, float]:
    """Return what a recipe takes on one device, and what to change if too much."""
    name = str(work.recipe)
    path = Path(name) if name.endswith(".py") else Path(__file__).with_name(f"{name}.py")
    if not path.is_file():
        raise ConfigError(f"--recipe {name}: no such recipe; `hfstack list` shows them")

    # settings, and the device that they are planned for
    settings = read_recipe_settings(path, shlex.split(work.recipe_options))
    workload = read_workload(
        path.stem, settings, rows=work.train_rows, prompt_tokens=work.prompt_tokens
    )
    device = find_device(
        machine.device_name, memory_gib=machine.memory_gib, bf16=workload.trained.step.bf16
    )
    workload = device.with_allocator(workload)

    # needs: predicted, or corrected by real steps
    planned = assess(workload)
    needs, utilization, metrics = planned, machine.utilization, dict[str, float]()
    if machine.measure:
        if machine.device_name is not None:
            raise ConfigError("--measure takes steps on this machine; leave --device_name out")
        measured = measure_step(workload.trained.config, workload.trained.step, device=device.kind)
        metrics["predicted_peak_mib"] = round(needs.peak / MIB, 1)
        needs, utilization = correct_needs(workload, needs, measured, device)

    metrics |= {"utilization": utilization} | checkpointing_peaks(workload, planned)
    metrics |= recipe_metrics(
        workload, needs, device, devices=machine.devices, utilization=utilization
    )
    if price is not None:
        metrics |= cost_of_run(metrics.get("hours"), price, devices=machine.devices)

    # tables
    show(run, "memory by model", MEMORY_COLUMNS, memory_rows(workload, needs))
    show(run, "plan", ["what", "value"], [[key, value] for key, value in metrics.items()])
    if not metrics["fits"]:
        peak, memory = metrics["peak_mib"], metrics["memory_mib"]
        print(f"it does not fit into {device.name}: {peak:,} of {memory:,} MiB")
        changes = change_rows(workload, device.memory_bytes)
        show(run, "changes that make it fit", CHANGE_COLUMNS, changes)
    return metrics


def plan_compute(run: Run, budget: BudgetArgs, machine: DeviceArgs) -> dict[str, float]:
    """Return the model, data and steps that the law says are best for the budget."""
    template_file = find_architecture(budget.architecture)
    if template_file is None:
        raise ConfigError(
            f"--architecture {budget.architecture}: give a config.json, such as llama-125m.json"
        )

    # budget
    device = find_device(machine.device_name, memory_gib=machine.memory_gib, bf16=True)
    flops = budget_flops(
        budget, peak_flops_per_s=device.peak_flops_per_s, utilization=machine.utilization
    )

    # law, and what it says of this family of models
    family = without_size(template_file.stem)
    law, draws, freedom = read_law(budget.fit, family)
    plan = plan_budget(
        flops,
        law,
        json.loads(template_file.read_text(encoding="utf-8")),
        family=family,
        block_size=budget.block_size,
        count=lambda config: Costs(*count_costs(config, budget.block_size)),
        draws=draws,
        freedom=freedom,
        machine=Machine(processes=machine.devices),
        parameters=budget.parameters,
    )

    if plan.loss_interval is None:
        print("no interval: the published law comes without draws; give a --fit of your own ladder")
    for note in plan.notes:
        print(note)

    # the planned model, for pretrain_clm
    (run.output_dir / "config.json").write_text(
        json.dumps(plan.rung.config, indent=2) + "\n", encoding="utf-8"
    )
    run.add_artifact("config", "config.json")

    rate = device.peak_flops_per_s * machine.utilization * machine.devices
    metrics = plan.metrics | {"hours": plan.rung.flops / rate / 3600}
    show(run, "plan", ["what", "value"], [[key, value] for key, value in metrics.items()])
    return metrics


def show(run: Run, name: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table and keep it for the report."""
    run.add_table(name, columns, rows)
    shown = [[_as_text(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    print(f"\n{name}")
    for first, *others in shown:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join(["", first.ljust(widths[0]), *numbers]))


def _as_text(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return compact(cell) if abs(cell) >= 1e9 else number(cell)


if __name__ == "__main__":
    command_line(main)
