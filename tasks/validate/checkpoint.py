"""Great Expectations at work: frames and suites in, outcomes and Data Docs out.

A context of its own lives in a temporary folder for one run; nothing of the user's is read or
written. Data Docs carry times and ids, the outcomes do not.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd

from tasks.core.tables import SPLITS
from tasks.validate.suites import EACH

EXAMPLES = 3  # unexpected values that are shown


@dataclass(frozen=True)
class Outcome:
    """What became of one expectation in one split, or of one for each pixel, taken together."""

    split: str
    name: str
    severity: str
    success: bool
    observed: str
    why: str
    remedy: str


def run_checkpoint(
    frames: Mapping[str, pd.DataFrame], suites: Mapping[str, list[Any]], docs: Path
) -> list[Outcome]:
    """Put each suite to the frame of the same name; write Data Docs to the folder `docs`."""
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="stillhouse-validate-") as scratch:
        tables, site = Path(scratch) / "tables", Path(scratch) / "docs"
        tables.mkdir()
        context = _context(site)
        source = context.data_sources.add_pandas_filesystem("tables", base_directory=tables)
        definitions = [
            _definition(context, source, tables, name, frames[name], suite)
            for name, suite in suites.items()
        ]
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name="tables",
                validation_definitions=definitions,
                result_format={
                    "result_format": "SUMMARY",
                    "unexpected_index_column_names": ["item"],
                },
            )
        )
        result = checkpoint.run()
        context.build_data_docs(site_names=["tables"])  # once: an action would do it per suite
        _replace(docs, site)
    runs = [list(run.results) for run in result.run_results.values()]
    return _together([outcome for run in runs for one in run for outcome in _outcomes(one)])


def _context(site: Path) -> Any:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name in list(context.get_site_names()):
        context.delete_data_docs_site(name)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)}
    config = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": store,
    }
    context.add_data_docs_site("tables", config)
    return context


def _definition(
    context: Any, source: Any, tables: Path, name: str, frame: pd.DataFrame, suite: list[Any]
) -> Any:
    """One Validation Definition: a frame as a Parquet asset, and the suite put to it."""
    frame.to_parquet(tables / f"{name}.parquet", index=False)
    asset = source.add_parquet_asset(name)
    batch = asset.add_batch_definition_path("whole", path=f"{name}.parquet")
    added = context.suites.add(gx.ExpectationSuite(name=name, expectations=suite))
    definition = gx.ValidationDefinition(name=name, data=batch, suite=added)
    return context.validation_definitions.add(definition)


def _replace(docs: Path, site: Path) -> None:
    if docs.exists():
        shutil.rmtree(docs)
    docs.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(site, docs)


def _outcomes(result: Any) -> list[Outcome]:
    """The outcome of one expectation; of one put to a line per split, an outcome for each."""
    config, found = result.expectation_config, result.result or {}
    meta, column = config.meta, config.kwargs.get("column", "")
    success, error = bool(result.success), _error(result.exception_info or {})
    observed = f"could not be computed: {error}" if error else _observed(found, column)
    by_split = {meta["split"]: (success, observed)}
    lines = found.get("partial_unexpected_index_list") or []
    if meta["split"] == EACH and not success and not lines:
        by_split = dict.fromkeys(SPLITS, (False, observed))  # nobody knows which, so all
    elif meta["split"] == EACH:
        seen = {line["item"]: f"{column} is {line[column]}" for line in lines}
        by_split = {s: (success or s not in seen, seen.get(s, "as asked")) for s in SPLITS}
    severity = str(getattr(config.severity, "value", config.severity))
    return [
        Outcome(split, meta["name"], severity, good, text, meta["why"], meta["remedy"])
        for split, (good, text) in by_split.items()
    ]


def _error(info: Mapping[str, Any]) -> str:
    """The message of an exception, which may be filed below the id of a metric."""
    for one in (info, *(v for v in info.values() if isinstance(v, dict))):
        if one.get("exception_message"):
            return str(one["exception_message"]).splitlines()[0]
    return ""


def _observed(found: Mapping[str, Any], column: str) -> str:
    """What was seen, in few words: a number, or how many lines are unexpected, and which."""
    if "observed_value" in found:
        return _number(found["observed_value"])
    count = found.get("unexpected_count", 0)
    total = found.get("element_count", 0) - (found.get("missing_count") or 0)
    if not count:
        return f"0 of {total}"
    lines = (found.get("partial_unexpected_index_list") or [])[:EXAMPLES]
    shown = [f"{line['item']} ({column} {_number(line[column])})" for line in lines]
    more = ", ..." if count > len(shown) else ""
    return f"{count} of {total}: {', '.join(shown)}{more}"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _together(outcomes: list[Outcome]) -> list[Outcome]:
    """Outcomes of the same name and split become one, which succeeds if all do."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.split, outcome.name), []).append(outcome)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[Outcome]) -> Outcome:
    failed = [outcome for outcome in group if not outcome.success]
    if len(group) == 1 or not failed:
        return replace(
            group[0],
            observed=group[0].observed if len(group) == 1 else f"{len(group)} expectations hold",
        )
    shown = "; ".join(outcome.observed for outcome in failed[:EXAMPLES])
    return replace(failed[0], observed=f"{len(failed)} of {len(group)} expectations fail: {shown}")
