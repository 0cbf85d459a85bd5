"""Clean files on many machines, and decide about duplicates here, in order.

Each task reads some of the files, cleans and filters their texts, and writes what it found and the
fingerprints of each text into a part of the work folder. Which of two equal texts is the first, no
task can know: this process reads the parts in order and asks that, as it does of its own workers.
So what comes out is what one process would write, byte for byte.

datatrove runs the tasks, as processes of this machine, jobs of Slurm or tasks of Ray, and knows
which ones are complete. It takes a task for complete although its pipeline has changed, so the work
folder is named by a hash of the code, the settings and the files.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfstack.data.cleaning.pipeline import CleanText, JudgedText
from hfstack.data.cleaning.tasks import TaskRunner, run_locally, run_on_ray, run_on_slurm
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.reading.read_report import ReadReport
from hfstack.data.reading.rows import read_rows
from hfstack.data.sources import OnBadRow, ReadSource, Source, SourceLog
from hfstack.disk import atomic_write, hash_text
from hfstack.errors import ConfigError, DataError, HfstackError
from hfstack.logs import get_logger

logger = get_logger(__name__)

Where = Literal["none", "local", "slurm", "ray"]

_RUNNERS: dict[str, Callable[[TaskRunner], None]] = {
    "local": run_locally,
    "slurm": run_on_slurm,
    "ray": run_on_ray,
}


@dataclass
class ClusterArgs:
    """Where files are cleaned, when not in this process."""

    cluster: Where = "none"
    """Where files are cleaned: none (here, by --workers), or by datatrove (extra `cluster`) as
    processes of this machine (local), jobs of Slurm, or tasks of Ray. The output is the same.
    """
    cluster_tasks: int | None = None
    """Tasks that the files are dealt to; one for each file when unset."""
    cluster_workers: int | None = None
    """Tasks that run at the same time; by default all, and with local as many as there are cores.
    """
    cluster_memory_gib: int = 2
    """Memory that Slurm or Ray keeps for a task."""
    cluster_folder: str | None = None
    """Folder that all machines see, for what tasks hand over and their logs; beside the output when
    unset.
    """
    slurm_partition: str | None = None
    """Partition of the jobs."""
    slurm_time: str = "24:00:00"
    """Time limit of a job."""
    slurm_options: list[str] = field(default_factory=list)
    """More options of sbatch, as NAME=VALUE: account=physics."""
    ray_address: str | None = None
    """Address of a Ray cluster, or auto; when unset Ray is started on this machine."""

    def __post_init__(self) -> None:
        if self.cluster == "slurm" and not self.slurm_partition:
            raise ConfigError("--cluster slurm: name the jobs' --slurm_partition")
        if odd := next((one for one in self.slurm_options if "=" not in one), None):
            raise ConfigError(f"--slurm_options {odd!r}: write it as NAME=VALUE")


def cluster_cleaning(
    sources: Sequence[Source],
    args: ClusterArgs,
    *,
    max_rows: int | None,
    workers: int,
    **settings: Any,
) -> "ClusterCleaning | None":
    """Return what cleans on a cluster, None where none is asked for.

    Args:
        max_rows: of a dataset; a cluster reads whole files.
        workers: processes of this machine, which a cluster has no use for.
        settings: of `ClusterCleaning`.

    Raises:
        ConfigError: settings that exclude each other.
    """
    if args.cluster == "none":
        return None
    if workers > 1 or max_rows is not None:
        raise ConfigError(
            f"--cluster {args.cluster} cleans whole files in tasks: leave out --workers and "
            "--max_rows"
        )
    return ClusterCleaning(sources, args, **settings)


class JudgeFiles:
    """Clean and filter the rows of some files: a step of a datatrove pipeline.

    Args:
        files: all files, of which each task takes those behind its rank, in steps of all tasks.
        judge: what is found out about one text.
        text_column: column of the text.
        on_bad_row: what becomes of malformed rows.
        folder: where the parts are written.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        judge: Callable[[str], JudgedText],
        *,
        text_column: str,
        on_bad_row: OnBadRow,
        folder: Path,
    ) -> None:
        self._files, self._judge, self._folder = list(files), judge, folder
        self._text_column = text_column
        self._on_bad_row: OnBadRow = on_bad_row

    def __repr__(self) -> str:
        return f"clean and filter {len(self._files)} files"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write the parts of a task's files that are not there yet."""
        for number in range(rank, len(self._files), world_size):
            if not _summary_file(self._folder, number).exists():
                try:
                    self._write_part(number)
                except HfstackError as error:
                    # the process that waits says this in one line
                    with atomic_write(_error_file(self._folder, rank)) as file:
                        file.write(str(error))
                    raise

    def _write_part(self, number: int) -> None:
        began = time.process_time()
        report = ReadReport()
        rows = read_rows(
            [self._files[number]],
            columns={self._text_column},
            on_bad_row=self._on_bad_row,
            report=report,
        )

        keys: list[str] = []
        with write_jsonl(_part_file(self._folder, number)) as add:
            for row in rows:
                keys = keys or sorted(row)
                text = row.get(self._text_column)
                add({"row": row} | (_as_line(self._judge(text)) if isinstance(text, str) else {}))

        # the last file of a part: where it is, the part is whole
        summary = {"rows": report.rows, "keys": keys, "left_out": sorted(report.left_out)}
        with atomic_write(_summary_file(self._folder, number)) as file:
            json.dump(summary | {"cpu_s": time.process_time() - began}, file)


class ClusterCleaning:
    """Clean files on a cluster, when called with what to find out about a text.

    Args:
        sources: local files, all of them read whole.
        args: where the tasks run.
        output_dir: of the run.
        text_column: column of the text.
        on_bad_row: what becomes of malformed rows; they cannot be quarantined.
        log: gets the number of rows of each source.
        identity: what the parts depend on beside the files: settings, and the recipe's code.

    Raises:
        ConfigError: the rows are not those of local files one after another.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        args: ClusterArgs,
        *,
        output_dir: Path,
        text_column: str,
        on_bad_row: OnBadRow,
        log: SourceLog,
        identity: Sequence[Any],
    ) -> None:
        self._args, self._log = args, log
        self._files = [(source, _files_of(source)) for source in sources]
        if on_bad_row == "quarantine":
            raise ConfigError("--on_bad_row quarantine: --cluster has fail and skip alone")
        self._text_column = text_column
        self._on_bad_row: OnBadRow = on_bad_row

        files = [file for _, some in self._files for file in some]
        # which tasks are complete says something only of as many tasks
        self._tasks = min(args.cluster_tasks or len(files), len(files))
        stamps = [_stamp(file) for file in files]
        digest = hash_text(json.dumps([_code(), self._tasks, stamps, *identity]))[:12]
        parent = Path(args.cluster_folder or f"{output_dir}.cluster").absolute()
        self._folder = parent / f"clean-{digest}"
        self.cpu_s = 0.0
        """CPU seconds of the tasks, once all rows have been read."""

    def __call__(
        self, judge: Callable[[str], JudgedText]
    ) -> Iterator[tuple[dict[str, Any], JudgedText | None]]:
        """Run the tasks, then yield each row with what was found out about its text.

        Raises:
            DataError: a file cannot be read, or files of one dataset have other columns.
            MachineError: a task ended from outside again and again.
            MissingExtraError: datatrove, or Ray, is not installed.
        """
        parts = self._folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        files = [file for _, some in self._files for file in some]
        for left in parts.glob("*.error"):
            left.unlink()

        logger.info("%s: %d files in %d tasks", self._folder, len(files), self._tasks)
        _RUNNERS[self._args.cluster](
            TaskRunner(
                JudgeFiles(
                    files,
                    judge,
                    text_column=self._text_column,
                    on_bad_row=self._on_bad_row,
                    folder=parts,
                ),
                tasks=self._tasks,
                workers=self._args.cluster_workers,
                folder=self._folder,
                memory_gib=self._args.cluster_memory_gib,
                settings=asdict(self._args),
                error_of=lambda rank: _read_error(parts, rank),
            )
        )

        number = 0
        for source, some in self._files:
            summaries = [_read_summary(parts, number + place) for place in range(len(some))]
            _refuse_other_columns(some, summaries)
            for place in range(len(some)):
                yield from _read_part(_part_file(parts, number + place))
            number += len(some)
            self.cpu_s += sum(one["cpu_s"] for one in summaries)
            rows = sum(one["rows"] for one in summaries)
            self._log[source.key] = ReadSource(files=list(some), rows=rows)

    def remove_parts(self) -> None:
        """Delete what the tasks handed over; their logs stay."""
        for path in (self._folder / "parts").iterdir():
            path.unlink()
        # without its parts no task is complete, and nothing has to start one again
        logs = self._folder / "datatrove"
        for path in (*(logs / "completions").glob("*"), logs / "executor.pik"):
            path.unlink(missing_ok=True)


def _files_of(source: Source) -> tuple[DataFile, ...]:
    """Return the files of a source, once each can be read by itself."""
    if source.weight != 1:
        raise ConfigError(f"dataset {source.path}: --cluster reads every row, so weights must be 1")
    files = () if source.is_saved else tuple(source.find_files())
    if not files:
        raise ConfigError(
            f"dataset {source.path}: --cluster cleans local files; save the rows as files that all "
            "machines see"
        )
    return files


def _refuse_other_columns(files: Sequence[DataFile], summaries: Sequence[dict[str, Any]]) -> None:
    """Refuse files of one dataset with other columns, as one process would."""
    first = summaries[0]
    for file, summary in zip(files, summaries, strict=True):
        if (summary["keys"], summary["left_out"]) != (first["keys"], first["left_out"]):
            raise DataError(
                f"{file} has the columns {', '.join(summary['keys'])}, {files[0]} has "
                f"{', '.join(first['keys'])}, or they change their types: name them as datasets of "
                "their own, or clean them without --cluster"
            )


def _as_line(found: JudgedText) -> dict[str, Any]:
    return {
        "text": found.cleaned.text,
        "changes": sorted(found.cleaned.changes),
        "masked": found.cleaned.masked,
        "fingerprints": found.fingerprints,
        "refusal": found.refusal,
    }


def _read_part(path: Path) -> Iterator[tuple[dict[str, Any], JudgedText | None]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for text in file:
            line = json.loads(text)
            if "text" not in line:
                yield line["row"], None
                continue
            cleaned = CleanText(line["text"], frozenset(line["changes"]), line["masked"])
            yield line["row"], JudgedText(cleaned, line["fingerprints"], line["refusal"])


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jsonl"


def _summary_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _error_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:06d}.error"


def _read_error(folder: Path, rank: int) -> str | None:
    """Return the mistake that a task has found, or None."""
    path = _error_file(folder, rank)
    return path.read_text(encoding="utf-8") if path.exists() else None


def _read_summary(folder: Path, number: int) -> dict[str, Any]:
    return json.loads(_summary_file(folder, number).read_text(encoding="utf-8"))


def _stamp(file: DataFile) -> list[Any]:
    """Return what tells a file from what it was before, without reading it."""
    status = [path.stat() for path in file.paths]
    return [repr(file), *((one.st_size, one.st_mtime_ns) for one in status)]


def _code() -> str:
    """Return a hash of what reads, cleans and filters."""
    package = Path(__file__).parents[1]
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    return hash_text("\0".join([sys.version, *texts]))
