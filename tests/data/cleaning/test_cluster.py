"""Cleaning by tasks of datatrove: the bytes of one process, whatever becomes of the tasks."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hfstack.data.cleaning.cluster import ClusterArgs, ClusterCleaning, cluster_cleaning
from hfstack.data.cleaning.dedup import duplicate_checks
from hfstack.data.cleaning.filters import too_short
from hfstack.data.cleaning.pipeline import CleaningReport, clean_documents
from hfstack.data.sources import Source, SourceLog, iterate_rows
from hfstack.demo.noise import noisy_corpus
from hfstack.errors import ConfigError, DataError, MachineError
from hfstack.runs.record import read_run

FILES = 3


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of three files, with duplicates within and between them."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = list(noisy_corpus(0, 240, share=0.4))
    for number in range(FILES):
        lines = [json.dumps(row) + "\n" for row in rows[number::FILES]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return folder


def cleaning(inputs: Path, *, log: SourceLog | None = None, **changes: Any) -> ClusterCleaning:
    """Return the cleaning of a folder by local tasks, one at a time."""
    settings = {"cluster": "local", "cluster_workers": 1} | changes
    on_bad_row = settings.pop("on_bad_row", "fail")
    identity = settings.pop("identity", [])
    found = cluster_cleaning(
        [Source(str(inputs))],
        ClusterArgs(**settings),
        output_dir=inputs.parent / "out",
        text_column="text",
        on_bad_row=on_bad_row,
        max_rows=None,
        workers=1,
        log={} if log is None else log,
        identity=identity,
    )
    assert found is not None
    return found


def clean(inputs: Path, elsewhere: ClusterCleaning | None, *filters: Any) -> tuple[list, Any, list]:
    """Return rows, the report and the sizes of the duplicate checks' indexes."""
    duplicates = duplicate_checks(True, 0.8, 64)
    report = CleaningReport()
    rows = iterate_rows([Source(str(inputs))], columns={"text"})
    checks = [*filters, too_short, *duplicates]
    found = list(clean_documents(rows, checks, report, elsewhere=elsewhere))
    return found, report, [check.index_bytes for check in duplicates]


def kill_once(text: str, *, marker: Path) -> None:
    """Kill the process that asks first, as a system without memory does."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def note_process(text: str, *, folder: Path) -> None:
    """Leave a file named by the process."""
    (folder / str(os.getpid())).touch()


def test_tasks_that_are_killed_and_none_that_is_complete_is_done_again(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "killed"
    log: SourceLog = {}
    first = cleaning(inputs, log=log)
    found = clean(inputs, first, partial(kill_once, marker=marker))
    assert found == clean(inputs, None)
    assert {"exact_duplicate", "near_duplicate", "too_short"} <= set(found[1].dropped)
    assert "ended with code -9: it is started again" in caplog.text
    assert [(one.rows, len(one.files)) for one in log.values()] == [(len(found[0]), FILES)]
    assert first.cpu_s > 0

    # the parts are there: the tasks do nothing, and the same comes out
    (processes := tmp_path / "processes").mkdir()
    again = clean(inputs, cleaning(inputs), partial(note_process, folder=processes))
    assert again == found and not list(processes.iterdir())

    # another number of tasks deals the files in another way: none of them is complete
    assert clean(inputs, cleaning(inputs, cluster_tasks=2))[0] == clean(inputs, None)[0]

    # other settings, or a file that has changed, is other work
    clean(inputs, cleaning(inputs, identity=["x"]), partial(note_process, folder=processes))
    assert len(list(processes.iterdir())) == FILES
    before = list((tmp_path / "out.cluster").glob("*/parts/*.jsonl"))
    first.remove_parts()
    assert len(before) - len(list((tmp_path / "out.cluster").glob("*/parts/*.jsonl"))) == FILES


def test_a_task_that_always_dies_is_given_up(inputs: Path) -> None:
    def die(text: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MachineError, match="task 0 of 1 ended 4 times before it was complete"):
        clean(inputs, cleaning(inputs, cluster_tasks=1), die)


def test_mistakes_in_the_files_end_it_at_once(inputs: Path) -> None:
    with (inputs / "1.jsonl").open("a") as file:
        file.write("{oops\n")
    lines = (inputs / "1.jsonl").read_text().count("\n")
    with pytest.raises(DataError, match=rf"1\.jsonl line {lines}: column 2: Expecting property"):
        clean(inputs, cleaning(inputs))
    rows, report, _ = clean(inputs, cleaning(inputs, on_bad_row="skip"))
    assert len(rows) == report.documents_in == len(list(noisy_corpus(0, 240, share=0.4)))

    (inputs / "2.jsonl").write_text('{"text": "a text of its own", "language": "en"}\n')
    with pytest.raises(DataError, match=r"2\.jsonl has the columns language, text, .*0\.jsonl has"):
        clean(inputs, cleaning(inputs, on_bad_row="skip"))


def test_what_a_cluster_cannot_read_is_refused(inputs: Path, tmp_path: Path) -> None:
    for source, words in {
        "user/dataset": "--cluster cleans local files",
        "weighted": "weights must be 1",
    }.items():
        named = Source(str(inputs), weight=2) if source == "weighted" else Source(source)
        with pytest.raises(ConfigError, match=words):
            ClusterCleaning(
                [named],
                ClusterArgs(cluster="local"),
                output_dir=tmp_path,
                text_column="text",
                on_bad_row="fail",
                log={},
                identity=[],
            )
    with pytest.raises(ConfigError, match="--cluster has fail and skip alone"):
        cleaning(inputs, on_bad_row="quarantine")
    with pytest.raises(ConfigError, match="name the jobs' --slurm_partition"):
        ClusterArgs(cluster="slurm")
    with pytest.raises(ConfigError, match="'account': write it as NAME=VALUE"):
        ClusterArgs(slurm_options=["account"])


# Stand-ins for Slurm: sbatch runs all tasks of the array before it returns, and kills the first one
# of the first job.
SBATCH = """#!/bin/bash
for script; do :; done
most=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$most"); do
    if [ "$task" = 0 ] && mkdir "$0.once" 2>/dev/null; then continue; fi
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost bash "$script" >>"$0.log" 2>&1
done
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
"$@"
"""


def test_jobs_of_slurm(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_recipe
) -> None:
    """The recipe writes the same files; a lost job is started again, and no pickle is left."""
    (bin_folder := tmp_path / "bin").mkdir()
    nothing = "#!/bin/bash\n"
    programs = {"sbatch": SBATCH, "srun": SRUN, "squeue": nothing, "scancel": nothing}
    programs["scontrol"] = f"{nothing}echo localhost\n"  # the names of the nodes
    for name, text in programs.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")

    shared = [f"--datasets={inputs}", "--eval_fraction=0.2", "--save_dropped=true"]
    one = run_recipe("clean", *shared, f"--output_dir={tmp_path / 'one'}")
    several = run_recipe(
        "clean",
        *shared,
        f"--output_dir={tmp_path / 'several'}",
        "--cluster=slurm",
        "--cluster_tasks=2",
        "--slurm_partition=work",
        "--slurm_options",
        "account=physics",
    )
    names = ("train.jsonl", "eval.jsonl", "dropped.jsonl")
    for name in names:
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    clocks = ("documents_per_s", "bytes_per_cpu_s")
    assert {k: v for k, v in one.items() if k not in clocks} == {
        k: v for k, v in several.items() if k not in clocks
    }
    assert read_run(tmp_path / "several").data == read_run(tmp_path / "one").data

    (work,) = (tmp_path / "several.cluster").iterdir()
    script = (work / "datatrove" / "launch_script.slurm").read_text()
    assert "#SBATCH --array=0-0" in script, "the second array is of the lost task alone"
    assert "#SBATCH --account=physics" in script and "#SBATCH --partition=work" in script
    assert not list((work / "parts").iterdir()) and not list(work.rglob("*.pik"))
    with pytest.raises(ConfigError, match="leave out --workers and --max_rows"):
        run_recipe(
            "clean", *shared, f"--output_dir={tmp_path / 'x'}", "--cluster=local", "--workers=2"
        )


@pytest.mark.slow
def test_tasks_of_ray(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'hfstack[cluster]'")
    marker = tmp_path / "killed"
    found = clean(
        inputs,
        cleaning(inputs, cluster="ray", cluster_memory_gib=1),
        partial(kill_once, marker=marker),
    )
    assert marker.exists() and found == clean(inputs, None)
