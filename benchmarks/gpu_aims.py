"""The aims for the figures of `gpu`, and the table that compares both."""

from typing import Any

from rich.table import Table

# What is measured, where its figure lies, and the most that it may be; None if the figure has no aim.
AIMS: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
    ("warm refit job, all weights, eager plan, over raw", ("refit", "warm_over_raw"), 1.15),
    ("cold refit job over raw with deserialize", ("refit", "cold_over_raw"), 1.15),
    ("delta refit job, one tensor, lazy plan, finite, s", ("delta", "verified", "median_s"), 0.060),
    ("refit job, plan written, over build job", ("refit", "refit_over_build"), 0.01),
    ("lazy refit job, finite, over build job", ("refit", "lazy_refit_over_build"), 0.01),
    ("build job over raw, 12 layers", ("build", "over_raw"), 1.03),
    ("build job over raw, 24 layers", ("build_large", "over_raw"), 1.03),
    ("packed refit over raw plain refit, 24 layers", ("packed", "refit_over_raw_plain"), 0.6),
    ("packed refit job, plan written, over its build", ("packed", "eager_over_build"), 0.01),
    ("refit job to new weights, lazy, finite, over page-locked by hand", ("staging", "new_over_locked"), 1.5),
    ("the same over the mapped file by hand", ("staging", "new_over_mapped"), None),
    ("refit job back to the version before, over page-locked", ("staging", "switch_back_over_locked"), 1.25),
    ("cold refit job over load and refit by hand", ("staging", "cold_over_raw"), 1.15),
    ("the same over load and page-locked refit by hand", ("staging", "cold_over_raw_locked"), None),
    ("refit job, plan written, over build job, 24 layers", ("staging", "plan_written_over_build"), 0.008),
    ("delta refit job, one tensor of 8 MB, finite, s", ("staging", "median_s", "delta"), 0.020),
    ("run after refits over run before", ("staging", "run_after_over_before"), 1.0),
    ("run of the packed layout over plain", ("packed", "run_over_plain"), 1.0),
    ("run of a refittable engine over one that is not", ("cost", "ratio"), None),
    ("peak memory of a build beyond raw, of 12 layers", ("build", "peak_beyond_raw_of_weights"), 0.10),
    ("the same, beyond what both held before", ("build", "grown_beyond_raw_of_weights"), 0.10),
    ("peak memory of a build beyond raw, of 24 layers", ("build_large", "peak_beyond_raw_of_weights"), 0.10),
    ("the same, beyond what both held before", ("build_large", "grown_beyond_raw_of_weights"), 0.10),
    ("peak memory of a refit beyond raw, of the weights", ("refit", "peak_beyond_raw_of_weights"), 0.10),
    ("default verification over the refit itself", ("refit", "verification_over_refit"), 1.0),
)


def aims_table(figures: dict[str, Any]) -> Table:
    """Return a table of each figure that was measured beside its aim."""
    table = Table("figure", "aim", "measured", "", title="Aims", title_justify="left")
    for name, path, aim in AIMS:
        value: Any = figures
        for part in path:
            value = value.get(part) if value is not None else None
        if value is None:
            continue
        wanted, verdict = ("", "") if aim is None else (f"<= {aim:g}", "met" if value <= aim else "missed")
        table.add_row(name, wanted, f"{value:.4g}", verdict)
    return table
