"""The page behind every problem's `type`."""

from fastapi import APIRouter
from pydantic import BaseModel

from command_api.domain.errors import NotFound
from command_api.problem_catalogue import CATALOGUE
from command_api.routes.calling import OpenRoute
from command_api.routes.problem_docs import problems

router = APIRouter(prefix="/problems", tags=["problems"], route_class=OpenRoute)


class ProblemPage(BaseModel):
    """What a problem code means and what to do about it."""

    code: str
    title: str
    status: int
    remedy: str


@router.get(
    "/{code}",
    operation_id="problems_get",
    response_model=ProblemPage,
    responses=problems(404, 422),
    summary="What a problem code means and what to do about it",
)
async def get(code: str) -> ProblemPage:
    found = CATALOGUE.get(code)
    if found is None:
        raise NotFound(f"there is no problem code {code[:100]!r}")
    return ProblemPage(code=code, title=found.title, status=found.status, remedy=found.remedy)
