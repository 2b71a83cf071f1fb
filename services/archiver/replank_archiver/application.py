"""The composition root: settings -> resources -> routes and subscribers."""

from __future__ import annotations

from replank.contracts.archiver import PlanArchived, SchemasArchived
from replank.contracts.schema import MigrationPlanned, SchemaArchiveOldRequested
from replank.objects import ObjectStore, ObjectStoreSettings
from replank.service import Service
from replank_archiver import api
from replank_archiver.schemas.exports import Exports
from replank_archiver.settings import ArchiverSettings
from replank_archiver.subscribers import subscribe


def compose(settings: ArchiverSettings) -> Service:
    """Put the service together. Opens nothing."""
    service = Service(
        settings,
        name="archiver",
        package="replank_archiver",
        sends=[PlanArchived, SchemasArchived],
        receives=[MigrationPlanned, SchemaArchiveOldRequested],
    )
    objects = ObjectStore(object_store(settings))

    async def close_objects() -> None:
        objects.close()

    service.readiness.add("object store", objects.check)
    service.on_close(close_objects)
    service.before_consuming("object store", objects.ensure_bucket)
    exports = Exports(settings.schema_url, settings.service_token_file) if settings.schema_url else None
    if exports is not None:
        service.on_close(exports.close)
    service.consume(lambda inbox: subscribe(inbox, objects, exports))
    service.route(api.router(service.pools))
    return service


def object_store(settings: ArchiverSettings) -> ObjectStoreSettings:
    """The settings of the object store's client."""
    return ObjectStoreSettings(
        url=settings.s3_url,
        bucket=settings.s3_bucket,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
    )
