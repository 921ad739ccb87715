"""
One night as a scheduler calls it: fetch new files, score them, look at the scores, publish them.

Run with ``python pipelines/nightly_scoring.py night.yaml [--night 2026-11-24]``. Whatever happened
before, the same call brings the night to its end: what is done is kept. Each step is a line of
JSON on standard output.

Exit codes: 0, published, or nothing new; 10, published with something to watch; 11, not published,
a bound of the monitoring is broken; 3 to 6 as for ``riskmtl score``; 1, anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from riskmtl import RiskModel
from riskmtl.cli import exit_code
from riskmtl.files import TableError, read_table, replacing
from riskmtl.panics import without_panics
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.folder import MANIFEST
from riskmtl.scoring.local import score_files
from riskmtl.scoring.monitor import monitor
from riskmtl.scoring.sources import find_files
from riskmtl.validation import Verdict
from riskmtl.yaml_file import Node, read_yaml

_KEYS = ("inbox", "model", "nights", "published", "max_bad", "reasons", "challenger", "settled",
         "monitored", "outcomes", "bounds")  # fmt: skip

Log = Callable[..., None]


@dataclass(frozen=True)
class Plan:
    """
    What a night is made of; the configuration file has the same keys.

    Parameters
    ----------
    inbox : Path
        Folder where new files arrive.
    model : Path
    nights : Path
        Folder with a folder for each night: ``in/``, ``scores/`` and ``monitoring/``.
    published : Path
        A link to the scores that count.
    max_bad : float
        Largest share of refused rows.
    reasons : str
        Rows that get reasons.
    challenger : bool
    settled : float
        Seconds that a file must have been left alone before it is fetched.
    monitored : int
        Nights on the page, the newest of them.
    outcomes : Path, optional
        Parquet file of keys and labels.
    bounds : dict
        Other bounds of alerts.
    """

    inbox: Path
    model: Path
    nights: Path
    published: Path
    max_bad: float = 0.0
    reasons: str = ""
    challenger: bool = False
    settled: float = 60.0
    monitored: int = 30
    outcomes: Path | None = None
    bounds: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a configuration file; its paths are seen from its folder."""
        node = Node(read_yaml(path, ValueError), str(path), _KEYS)
        found: dict[str, Any] = {
            "reasons": node.text("reasons", ""),
            "challenger": node.flag("challenger"),
        }
        for name in ("inbox", "model", "nights", "published"):
            found[name] = path.parent / node.text(name)
        if "outcomes" in node.values:
            found["outcomes"] = path.parent / node.text("outcomes")
        for name in ("max_bad", "settled", "monitored"):
            if name in node.values:
                found[name] = node.scalar(name, (int, float), "a number")
        if "bounds" in node.values:
            found["bounds"] = dict(node.values["bounds"])
        return cls(**found)


def main(arguments: list[str] | None = None) -> int:
    """Run a night, and return its exit code."""
    options = _options(arguments)

    def log(step: str, event: str, **more: Any) -> None:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "night": options.night, "step": step, "event": event, **more}
        print(json.dumps(line, default=str), flush=True)

    try:
        with without_panics():
            return _night(Plan.read(options.config), options.night, log)
    except (ValueError, OSError) as error:
        code = exit_code(error)
        log("night", "failed", code=code, reason=" ".join(str(error).split()))
        return code


def _night(plan: Plan, night: str, log: Log) -> int:
    folder = plan.nights / night
    fetched = fetch(plan, folder, log)
    if not fetched:
        log("night", "nothing new")
        return 0
    model = RiskModel.load(plan.model, with_challenger=plan.challenger)
    _score(plan, model, folder, night, log)
    verdict = _watch(plan, model, folder, log)
    if verdict is Verdict.FAIL:
        log("publish", "held back", scores=folder / "scores")
        return 11
    publish(folder / "scores", plan.published)
    log("publish", "published", scores=folder / "scores", link=plan.published)
    return 10 if verdict is Verdict.WATCH else 0


def fetch(plan: Plan, folder: Path, log: Log) -> list[Path]:
    """
    Copy files that no night has fetched; files that are still being written stay for the next.

    Returns
    -------
    list of Path
        The files of this night, those of an earlier call among them.

    Raises
    ------
    riskmtl.files.TableError
        If a file that was fetched before came again with other content.
    """
    begun = (folder / "scores").exists()
    known = {path.name: path for path in plan.nights.glob("*/in/*") if path.name[0] != "."}
    for path in [] if begun or not plan.inbox.is_dir() else _arrived(plan.inbox):
        found = path.stat()
        if path.name in known:
            copy = known[path.name].stat()
            if (copy.st_size, copy.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                raise TableError(f"{path}: was fetched before with other content: give new rows "
                                 "a file of their own name")  # fmt: skip
        elif time.time() - found.st_mtime < plan.settled:
            log("fetch", "not settled", file=path)
        else:
            with replacing(folder / "in" / path.name) as scratch:
                shutil.copyfile(path, scratch)
                os.utime(scratch, ns=(found.st_atime_ns, found.st_mtime_ns))
            log("fetch", "fetched", file=path, bytes=found.st_size)
    return sorted(path for path in (folder / "in").glob("*") if path.name[0] != ".")


def _arrived(inbox: Path) -> list[Path]:
    return find_files(inbox) if any(inbox.iterdir()) else []


def _score(plan: Plan, model: RiskModel, folder: Path, night: str, log: Log) -> None:
    started = time.perf_counter()
    report = score_files(
        model,
        folder / "in",
        folder / "scores",
        ScoreSettings(reasons=plan.reasons, challenger=plan.challenger),
        max_bad=plan.max_bad,
        resume=True,
        time=datetime.fromisoformat(night),
    )
    log(
        "score",
        "scored",
        rows=report.rows,
        scored=report.scored,
        quarantined=report.quarantined,
        kept=report.kept,
        refusals=report.refusals,
        seconds=round(time.perf_counter() - started, 1),
    )


def _watch(plan: Plan, model: RiskModel, folder: Path, log: Log) -> Verdict:
    """The verdict on this night; later nights are not looked at."""
    others = [path.parent for path in plan.nights.glob(f"*/scores/{MANIFEST}")]
    nights = sorted(path for path in others if path.parent.name <= folder.name)
    outcomes = None if plan.outcomes is None else read_table(plan.outcomes)
    shown = nights[-plan.monitored :]
    report = monitor(model, shown, outcomes=outcomes, bounds=plan.bounds)
    page = report.write(folder / "monitoring")
    alerts = [
        {"section": question.key, "head": finding.head, "what": finding.what,
         "verdict": finding.verdict.value, "value": finding.value}
        for question, result, _ in report.sections
        for finding in result.findings
        if finding.verdict in (Verdict.WATCH, Verdict.FAIL)
    ]  # fmt: skip
    log("monitor", report.verdict.value, page=page, alerts=alerts)
    return report.verdict


def publish(scores: Path, link: Path) -> None:
    """Point a link at finished scores, in one step: a reader sees the old ones or the new."""
    if link.exists() and not link.is_symlink():
        raise ValueError(f"{link}: is no link, choose another place for published scores")
    link.parent.mkdir(parents=True, exist_ok=True)
    scratch = link.with_name(f".{link.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(os.path.relpath(scores.resolve(), link.parent.resolve()))
    scratch.replace(link)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML file; see pipelines/scoring/night.yaml")
    parser.add_argument(
        "--night", type=lambda text: date.fromisoformat(text).isoformat(),
        default=date.today().isoformat(), help="default: today",
    )  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
