"""What there is to ask for: `/v1/models` and `/v1/classes`."""

import time
from typing import Annotated

from fastapi import APIRouter, Query

from service.answers import class_entry, model_card
from service.intake import Intake
from service.refusals import JsonRoute
from service.schemas import ClassList, ModelCard, ModelList, error_responses
from service.served_models import ServedModel


class ModelRoutes:
    """Describes the served models and their classes."""

    def __init__(self, intake: Intake) -> None:
        self._models = intake.models
        self._settings = intake.settings
        self._created = int(time.time())

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(route_class=JsonRoute, tags=["models"])
        router.get("/v1/models", summary="List the served models")(self.list)
        router.get(
            "/v1/models/{model_id}",
            summary="Describe a served model",
            responses=error_responses(404),
        )(self.describe)
        router.get(
            "/v1/classes",
            summary="List or search the classes of a model",
            responses=error_responses(400, 404),
        )(self.classes)
        return router

    async def list(self) -> ModelList:
        return ModelList(data=[await self._card(served) for served in self._models])

    async def describe(self, model_id: str) -> ModelCard:
        return await self._card(self._models.find(model_id))

    async def classes(
        self,
        q: Annotated[str, Query(max_length=100, description="Index, WordNet id or name.")] = "",
        model: Annotated[str | None, Query(description="Id of a served model.")] = None,
        limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
    ) -> ClassList:
        labels = self._models.find(model).info.class_labels
        found = labels.search(q, limit) if q.strip() else labels[:limit]
        return ClassList(data=[class_entry(label) for label in found])

    async def _card(self, served: ServedModel) -> ModelCard:
        worker = await served.ready_worker()
        return model_card(served.info, self._settings, self._created, worker)
