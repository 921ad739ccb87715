"""A diagnosis: what a model's training did, and the page that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riskmtl import __version__
from riskmtl.diagnosis.course import Course
from riskmtl.diagnosis.findings import findings
from riskmtl.diagnosis.sections import sections
from riskmtl.files import replacing
from riskmtl.validation.layout import render
from riskmtl.validation.result import Question, Result

_PAGE = Path(__file__).parent / "page"
# A table of more lines would make the page heavy; the rest is in the model's history.
_LINES_SHOWN = 400
# A title of all heads beyond that would be a paragraph; the line below it has them.
_LONG = 80


@dataclass(frozen=True)
class Diagnosis:
    """
    What a training did.

    Parameters
    ----------
    title : str
    tasks : sequence of str
    facts : dict
        Of the model and its training.
    findings : sequence of str
        A plain sentence each.
    sections : sequence of (Question, Result)
    """

    title: str
    tasks: Sequence[str]
    facts: dict[str, Any]
    findings: Sequence[str]
    sections: Sequence[tuple[Question, Result]]

    def __getitem__(self, key: str) -> Result:
        """Result of the section of that key."""
        for section, result in self.sections:
            if section.key == key:
                return result
        raise KeyError(key)

    def to_html(self) -> str:
        """One page that needs neither script nor network."""
        return render("diagnosis.html", folder=_PAGE, diagnosis=self, lines_shown=_LINES_SHOWN)

    def write(self, out: str | Path) -> Path:
        """
        Write the page.

        Parameters
        ----------
        out : str or Path
            A file that ends in ``.html``, or a folder for ``diagnosis.html``, made if need be.

        Returns
        -------
        Path
            The page.

        Raises
        ------
        ValueError
            If it is another file.
        """
        out = Path(out)
        if out.suffix != ".html" or out.is_dir():
            if out.exists() and not out.is_dir():
                raise ValueError(f"{out}: is a file; choose a folder, or a file ending in .html")
            out = out / "diagnosis.html"
        with replacing(out) as scratch:
            scratch.write_text(self.to_html(), encoding="utf-8")
        return out


def diagnose(model: Any) -> Diagnosis:
    """
    Say what training did to each head of a network.

    Parameters
    ----------
    model : RiskModel or estimator
        A network, or a blend, of which its network is looked at.

    Returns
    -------
    Diagnosis
        Its ``findings`` are sentences; ``write`` makes the page.

    Raises
    ------
    ValueError
        If the model is no network, or was written before training was recorded.

    Examples
    --------
    >>> import polars as pl
    >>> from riskmtl import MultiTaskClassifier, diagnose
    >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX"] * 100})
    >>> y = pl.DataFrame({"fraud": [0, 1] * 100, "takeover": [0, 1, None, 0] * 50})
    >>> model = MultiTaskClassifier(network="single_task", epochs=1, random_state=0).fit(X, y)
    >>> for sentence in diagnose(model).findings:
    ...     print(sentence)
    No two heads share a network, so none can pull against another.
    Every head is at its best in the kept epoch, or all but.
    """
    model = getattr(model, "model_", model)
    course = Course.of(model)
    schema = model.schema
    facts = {
        "network": model.scorer.shape.network,
        "epochs": len(course.epochs),
        "kept": sorted({epoch for epoch in map(course.kept, course.tasks) if epoch is not None}),
        "created": str(model.lineage.get("created", ""))[:10],
        "version": __version__,
        **model.identity,
    }
    facts["kept"] = [course.epochs[place] for place in facts["kept"]]
    title = ", ".join(course.tasks)
    if schema is not None:
        title = schema.title or schema.name
    elif len(title) > _LONG:
        title = f"{len(course.tasks)} heads"
    return Diagnosis(title, course.tasks, facts, findings(course), sections(course))
