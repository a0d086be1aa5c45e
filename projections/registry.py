"""Every view that the projections process keeps."""

from projections.errors import UnknownView
from projections.view import View
from projections.views.activity import Activities
from projections.views.agents import Agents
from projections.views.datasets import Datasets
from projections.views.findings import Findings
from projections.views.jobs import Jobs
from projections.views.logs import LogSegments
from projections.views.loss_curve import LossCurves
from projections.views.models import Models
from projections.views.subscriptions import Subscriptions

VIEWS: tuple[View, ...] = (
    Jobs(),
    LossCurves(),
    LogSegments(),
    Datasets(),
    Models(),
    Agents(),
    Subscriptions(),
    Findings(),
    Activities(),
)


def view_named(name: str) -> View:
    """The view of that name.

    Raises:
        UnknownView: when there is none.
    """
    for view in VIEWS:
        if view.name == name:
            return view
    names = ", ".join(view.name for view in VIEWS)
    raise UnknownView(f"no read model is named {name[:100]!r}; there are {names}")
