"""The `validate` section: what the tables must satisfy before anything trains."""

from __future__ import annotations

from pydantic import Field

from tasks.core.params import Section


class MinRows(Section):
    """Fewer rows than this in a split is critical; train counts again without its quarantine."""

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)


class LabelIssues(Section):
    """Out-of-fold label check. More suspects than `max_share` of the rows is a warning, and then
    none is set aside: the check is more likely too weak for the data than the labels that wrong."""

    folds: int = Field(default=5, ge=2, le=20)
    max_share: float = Field(default=0.05, ge=0, lt=1)


class ValidateParams(Section):
    """`validate`."""

    min_rows: MinRows
    min_share: float = Field(ge=0, le=1)  # of the mean class size, in train
    near_duplicate: float = Field(gt=0, le=1)  # cosine similarity of centred images
    label_issues: LabelIssues
    seed: int = Field(ge=0)
