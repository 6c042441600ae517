"""Run an ablation: every row with every seed, into one table: `dmd2 ablate`.

    WORKDIR/teacher        one teacher for all rows and seeds, as only students are compared
    WORKDIR/ROW/seed_N     the run folders of `dmd2 distill`
    WORKDIR/table.json     figures of each finished run, written as they come; table.md, table.png

The same command again skips what is finished and resumes what is not.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.commands.ablate.options import Options
from dmd2_jax.commands.ablate.rows import Ablation, check_seeds, load_ablation
from dmd2_jax.commands.ablate.table import RULE, markdown, summary, terminal, values_of
from dmd2_jax.config.load import plain
from dmd2_jax.config.plugins import nearest_or_stop
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import FROM_DATA
from dmd2_jax.config.text import read_json
from dmd2_jax.evaluate.evaluate import EvaluateOptions, evaluate
from dmd2_jax.evaluate.options import check_options
from dmd2_jax.pictures.seed_points import seed_points
from dmd2_jax.recipe.distillation import trace
from dmd2_jax.recipe.open import build_family, open_recipe, settled
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.folder import open_run, write_json
from dmd2_jax.run.loop import DivergedError
from dmd2_jax.runtime.devices import device_record, say_devices
from dmd2_jax.runtime.distributed import to_host
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.owner import check_free, owned
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.preemption import Interrupted
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.training import student as train_student
from dmd2_jax.training import teacher as train_teacher
from dmd2_jax.training.run import may_differ

__all__ = ["ablate"]

_TABLE = "table.json"
_NOT_COMPARED = ("name", "log", "mesh")
"""Groups of the config that change no figure."""


class _Run(NamedTuple):
    row: str
    seed: int
    config: ConfigDict
    folder: Path

    @property
    def key(self) -> str:
        return f"{self.row}/seed_{self.seed}"


def ablate(options: Options) -> dict[str, Any]:
    """Run what is not finished of an ablation, and print its table.

    Args:
      options: what is asked for.

    Returns:
      What table.json holds: runs; rows and pairs as `table.summary` makes them; teacher,
      real_fid_floor, rule.

    Raises:
      Refused: if the ablation, a row's config, the data or a folder is refused; as far as that
        can be known, before anything is trained.
      Interrupted: if asked to stop; what is finished and what is begun are then saved.
    """
    workdir = path_of(options.workdir)
    ablation = _settled(load_ablation(options.config, options.overrides))
    runs = _chosen(ablation, options, workdir)
    table = _read(workdir, ablation)
    say_devices(make_mesh(ablation.base().mesh))
    _check(ablation, runs, workdir, tracing=options.dry_run)
    if options.dry_run:
        check_free(workdir)
        done = sum(run.key in _current(ablation, table) for run in runs)
        print(f"dry run: {len(runs)} runs can be made, {done} of them finished: {workdir}.")
        return table
    try:
        with owned(workdir):
            table = _read(workdir, ablation)  # which another process may have written meanwhile
            _finish(ablation, runs, table, workdir)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped outside of training; {workdir / _TABLE} has what is finished. The same "
            "command again goes on.",
            130,
        ) from None
    print(f"\n{terminal(ablation, table)}\n\ntable: {workdir / _TABLE}, table.md, table.png")
    return table


def _settled(ablation: Ablation) -> Ablation:
    """Return the ablation whose base says the channels and classes of the data, as its runs do."""
    model = settled(ablation.base()).model
    said = {f"model.{key}": str(model[key]) for key in FROM_DATA if key in model}
    return ablation._replace(base_overrides={**ablation.base_overrides, **said})


def _chosen(ablation: Ablation, options: Options, workdir: Path) -> list[_Run]:
    """Return the runs, all rows of one seed before the next, so that a whole table comes early."""
    for name in options.rows:
        if name not in ablation.rows:
            raise Refused(
                f"--rows={name}, expected some of {','.join(ablation.rows)}"
                f"{nearest_or_stop(name, ablation.rows)}"
            )
    names = [name for name in ablation.rows if not options.rows or name in options.rows]
    seeds = check_seeds(options.seeds, "--seeds") if options.seeds else ablation.seeds
    teacher = str(workdir / "teacher")
    return [
        _Run(name, seed, ablation.config(name, seed, teacher), workdir / name / f"seed_{seed}")
        for seed in seeds
        for name in names
    ]


def _read(workdir: Path, ablation: Ablation) -> dict[str, Any]:
    """Return the table that is there, or a new one."""
    if (workdir / "config.json").exists():
        raise Refused(
            f"workdir {workdir} is the folder of a run, expected one for an ablation; choose "
            f"another --workdir."
        )
    path = workdir / _TABLE
    table: dict[str, Any] = {"ablation": ablation.name, "runs": {}}
    if path.exists():
        try:
            table = read_json(path)
            known = table["ablation"]
            _ = [(run["row"], run["seed"], run["figures"]) for run in table["runs"].values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(
                f"{path} cannot be read ({error}), expected the table of an ablation; move it "
                f"away, and the runs are measured again."
            ) from error
        if known != ablation.name:
            raise Refused(
                f"workdir {workdir} holds the ablation {known!r}, expected {ablation.name!r}; "
                f"choose another --workdir."
            )
    return table | {"title": ablation.title, "rule": RULE}


def _check(ablation: Ablation, runs: list[_Run], workdir: Path, *, tracing: bool) -> None:
    """Refuse what can be refused before anything is trained."""
    check_options(EvaluateOptions(workdir=str(workdir), metrics=ablation.metrics))
    base = ablation.base()
    if base.teacher.weights:
        teacher_file(base)
    elif tracing:  # or else its training checks the same in a moment
        base.teacher.weights = str(workdir / "teacher")
        train_teacher.train(base, workdir / "teacher", dry_run=True)
    rows: set[str] = set()
    for run in runs:
        try:
            if run.row not in rows:
                _check_row(run.config, tracing=tracing)
            rows.add(run.row)
            if (run.folder / "config.json").exists():
                open_run(
                    run.folder,
                    "distill",
                    plain(run.config),
                    may_differ=may_differ(run.config, "distill"),
                    dry_run=True,
                )
        except Refused as error:
            raise Refused(f"row {run.row!r} of {ablation.path}: {error}") from error


def _check_row(config: ConfigDict, *, tracing: bool) -> None:
    recipe = open_recipe(config, config.distill.batch_size)
    for job in train_student.open_students(recipe):
        if tracing:
            trace(job)


def _finish(ablation: Ablation, runs: list[_Run], table: dict[str, Any], workdir: Path) -> None:
    """Make the runs that are not finished, and measure the teacher once."""
    if all(run.key in _current(ablation, table) for run in runs) and table.get("teacher"):
        _write(ablation, table, workdir)
        return
    teacher = _train_teacher(ablation, workdir)
    current = _current(ablation, table, teacher)
    left = [run for run in runs if run.key not in current]
    print(f"\n{len(runs)} runs, {len(runs) - len(left)} of them finished before.", flush=True)
    for number, run in enumerate(left):
        label = ablation.rows[run.row].label
        print(
            f"\nrun {number + 1} of {len(left)}: {label}, seed {run.seed}"
            f"{_remaining(left[number:], table)}",
            flush=True,
        )
        entry = _one(ablation, run, workdir)
        table["runs"][run.key] = entry | {"teacher": teacher}
        _write(ablation, table, workdir, teacher)
    known = table.get("teacher") or {}
    identity = {"digest": teacher, "config": _fingerprint(ablation, ablation.base())}
    if any(known.get(key) != value for key, value in identity.items()):
        found = _measure_teacher(ablation, runs[0], workdir)
        table["real_fid_floor"] = found.get("real_fid_floor")
        table["teacher"] = identity | {"figures": _own(found, "teacher")}
    _write(ablation, table, workdir, teacher)


def _train_teacher(ablation: Ablation, workdir: Path) -> str:
    """Train the teacher, unless the config names one; return the digest of its weights."""
    base = ablation.base()
    if not base.teacher.weights:
        base.teacher.weights = str(workdir / "teacher")
        print(f"\nthe teacher of all rows: {base.teacher.steps} steps", flush=True)
        train_teacher.train(base, workdir / "teacher")
    return params_digest(to_host(load_teacher(base, build_family(base))))


def _one(ablation: Ablation, run: _Run, workdir: Path) -> dict[str, Any]:
    """Train and measure one student; one that diverges is a result too."""
    start = time.perf_counter()
    entry: dict[str, Any] = {"row": run.row, "seed": run.seed}
    entry |= {"config": _fingerprint(ablation, run.config), "figures": None}
    entry["devices"] = device_record(make_mesh(run.config.mesh))
    try:
        train_student.train(run.config, run.folder)
        decays = run.config.optim.ema_decays
        options = EvaluateOptions(
            workdir=str(run.folder),
            which="student",
            ema=decays[-1] if decays else None,
            metrics=ablation.metrics,
            seed=run.seed,
        )
        found = evaluate(options, cache=workdir / "classifier")
        key = f"student_ema_{decays[-1]:g}" if decays else "student"
        entry["figures"] = _own(found, key)
    except DivergedError as error:
        print(f"{run.key} diverged: {error}", flush=True)
        entry["diverged"] = str(error)
    return entry | {"seconds": time.perf_counter() - start}


def _measure_teacher(ablation: Ablation, run: _Run, workdir: Path) -> dict[str, Any]:
    options = EvaluateOptions(
        workdir=str(run.folder),
        which="teacher",
        metrics=ablation.metrics,
        seed=ablation.base().seed,
        out=str(workdir / "teacher_metrics.json"),
    )
    return evaluate(options, cache=workdir / "classifier")


def _own(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    prefix = f"{key}_"
    return {name.removeprefix(prefix): it for name, it in found.items() if name.startswith(prefix)}


def _fingerprint(ablation: Ablation, config: ConfigDict) -> str:
    """Return a digest of all that figures depend on but the teacher's weights."""
    values = {key: it for key, it in plain(config).items() if key not in _NOT_COMPARED}
    # Where the weights lie does not matter; which they are, their own digest says.
    values["teacher"] = {**values["teacher"], "weights": ""}
    values["metrics"] = ablation.metrics
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _current(
    ablation: Ablation, table: Mapping[str, Any], teacher: str | None = None
) -> dict[str, Any]:
    """Return the finished runs that were made as the ablation is now."""
    return {
        key: run
        for key, run in table["runs"].items()
        if run["row"] in ablation.rows
        and run.get("config")
        == _fingerprint(ablation, ablation.config(run["row"], run["seed"], ""))
        and teacher in (None, run.get("teacher"))
    }


def _remaining(left: list[_Run], table: Mapping[str, Any]) -> str:
    """Guess how long the runs that are left take, from those of their row or from all."""
    took: dict[str, float] = {run["row"]: run["seconds"] for run in table["runs"].values()}
    if not took:
        return ""
    usual = sum(took.values()) / len(took)
    minutes = sum(took.get(run.row, usual) for run in left) / 60
    return f" (about {minutes:.0f} minutes left)" if minutes >= 1 else ""


def _write(
    ablation: Ablation, table: dict[str, Any], workdir: Path, teacher: str | None = None
) -> None:
    """Write table.json, table.md and table.png of what is finished."""
    current = _current(ablation, table, teacher)
    table |= summary(ablation, current)
    write_json(workdir / _TABLE, table)
    with whole_file(workdir / "table.md") as partial:
        partial.write_text(markdown(ablation, table), encoding="utf-8")
    figure = next(
        (it for it in ablation.figures if any(values_of(current, r, it) for r in ablation.rows)), ""
    )
    if not figure:
        return
    lines = {"teacher": (table.get("teacher") or {}).get("figures", {}).get(figure)}
    if figure == "fid":
        lines["real, half to half"] = table.get("real_fid_floor")
    seed_points(
        {row.label: values_of(current, name, figure) for name, row in ablation.rows.items()},
        workdir / "table.png",
        title=ablation.title,
        figure=ablation.figures[figure].heading,
        lines={name: value for name, value in lines.items() if value is not None},
    )
