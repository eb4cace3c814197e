"""The routes that clouds ask: SageMaker's fixed ones, and those that Vertex AI names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service.data_plane import DataPlane
from service.rest.answer_schemas import Ready
from service.rest.cloud.dispatch import Targets, invoke
from service.rest.cloud.openapi import INVOKE
from service.rest.openapi import ERRORS

PING: Final = "/ping"
INVOCATIONS: Final = "/invocations"
# Routes that are health checks already; a setting may name one of them.
PROBES: Final = frozenset({PING, "/v2/health/live", "/v2/health/ready"})

# Paths that no router tells of.
OWN_PATHS: Final = PROBES | {INVOCATIONS, "/docs", "/openapi.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudRoutes:
    """Paths that a platform chose; None where it chose none."""

    health: str | None = None
    predict: str | None = None

    @property
    def probes(self) -> frozenset[str]:
        """Paths of health checks, which need no key: a platform cannot send one."""
        return frozenset({PING} | ({self.health} if self.health else set()))


def build_cloud_router(
    plane: DataPlane, targets: Targets, paths: CloudRoutes, others: Sequence[APIRouter]
) -> APIRouter:
    """Health checks, and routes that take what any of the targets takes.

    Args:
        plane: What they ask.
        targets: Routes that read their own bodies, by path.
        paths: What the platform chose.
        others: Routers whose paths are taken.

    Raises:
        ValueError: A path that the platform chose is another route's.
    """
    router = APIRouter(tags=["clouds"])
    health = [PING] if paths.health in {None, *PROBES} else [PING, str(paths.health)]
    asked = (
        [INVOCATIONS] if paths.predict in {None, INVOCATIONS} else [INVOCATIONS, str(paths.predict)]
    )
    chosen = [*health[1:], *asked[1:]]
    for path in chosen:
        if path in OWN_PATHS or chosen.count(path) > 1 or _is_taken(path, others):
            raise ValueError(
                f"health_route or predict_route: {path} is another route; choose another path"
            )
    for path in health:
        _add_health(router, plane, path)
    for path in asked:
        _add_invocations(router, plane, targets, path)
    return router


def _add_health(router: APIRouter, plane: DataPlane, path: str) -> None:
    @router.get(path, responses=ERRORS)
    async def ping() -> Ready:
        """Whether requests are taken, as `/v2/health/ready`."""
        plane.check_ready()
        return Ready()


def _add_invocations(router: APIRouter, plane: DataPlane, targets: Targets, path: str) -> None:
    @router.post(path, **INVOKE)
    async def invocations(request: Request) -> Response:
        """Whatever another route answers, chosen by the body or by a header."""
        plane.check_open()
        return await invoke(request, plane, targets)


def _is_taken(path: str, others: Sequence[APIRouter]) -> bool:
    return any(
        isinstance(route, APIRoute) and route.path_regex.match(path) is not None
        for router in others
        for route in router.routes
    )
