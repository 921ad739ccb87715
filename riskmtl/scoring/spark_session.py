"""A Spark session for a job, and one sentence where there can be none or where Spark gives up."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Of the job alone, whatever the rest of the session does.
_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Spark reads no nanoseconds; as integers they can be made microseconds.
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
# Partitions are scored side by side, so nothing within one is.
_ONE_THREAD = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")


class SparkError(ValueError):
    """A job that Spark cannot begin or finish; the message says why."""


def require_spark() -> None:
    """
    Refuse a machine that cannot drive Spark.

    Raises
    ------
    SparkError
        If there is no pyspark, or no Java.
    """
    try:
        import pyspark  # noqa: F401
    except ImportError as error:
        raise SparkError(
            "scoring with Spark needs pyspark, an optional extra: pip install 'riskmtl[spark]'"
        ) from error
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=None if home is None else str(Path(home) / "bin"))
    if java is None:
        where = "the PATH" if home is None else f"JAVA_HOME, {home}"
        raise SparkError(f"scoring with Spark needs Java 17 or later, which is not on {where}")


@contextmanager
def spark_session(master: str | None = None) -> Iterator[SparkSession]:
    """
    Give a session with the settings of a job.

    Parameters
    ----------
    master : str, optional
        Of a new session, such as ``local[2]``; default: as Spark is configured. A session that is
        there already is used, and left open.

    Yields
    ------
    pyspark.sql.SparkSession

    Raises
    ------
    SparkError
        If Spark does not start, or a session has another master.
    """
    from pyspark import SparkContext

    if SparkContext._active_spark_context is not None:
        yield _of_job(_running(master))
        return
    started = _started(master)
    try:
        yield _of_job(started)
    finally:
        started.stop()


def _running(master: str | None) -> SparkSession:
    from pyspark.sql import SparkSession

    session: SparkSession = SparkSession.builder.getOrCreate()
    found = session.sparkContext.master
    if master not in (None, found):
        raise SparkError(f"a Spark session is open with master {found}: stop it to use {master}")
    return session


def _of_job(session: SparkSession) -> SparkSession:
    own = session.newSession()
    for name, value in _SETTINGS.items():
        own.conf.set(name, value)
    return own


def _started(master: str | None) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("riskmtl score")
    if master is not None:
        builder = builder.master(master)
    if master is None or master.startswith("local"):
        # Else workers on this machine would be those of the first python3 on the PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name in _ONE_THREAD:
        builder = builder.config(f"spark.executorEnv.{name}", "1")
    with in_a_sentence():
        session: SparkSession = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Say in one sentence why Spark gave up; its own traces fill pages."""
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException, PythonException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error.java_exception if isinstance(error, Py4JJavaError) else error)
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [
            type(error).__name__
        ]
        # The trace of a Python worker ends with its exception.
        reason = lines[-1] if isinstance(error, PythonException) else lines[0]
        raise SparkError(f"Spark gave up: {reason}") from error
