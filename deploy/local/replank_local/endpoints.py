"""Where the servers of one stack are: the URLs that its services, its tests and its users are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from replank_local.credentials import Secrets
from replank_local.ports import HOST

S3_ACCESS_KEY: Final = "replank"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses made of a stack's ports and secrets. A missing port is a KeyError: that server is not part of it."""

    ports: Mapping[str, int]
    secrets: Secrets

    def http(self, name: str) -> str:
        return f"http://{HOST}:{self.ports[name]}"

    def postgres(self, *, role: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{role}:{self.secrets.password(role)}@{HOST}:{self.ports['postgres']}/{database}"

    @property
    def kafka(self) -> str:
        return f"{HOST}:{self.ports['kafka']}"

    @property
    def s3(self) -> str:
        return self.http("s3")

    @property
    def s3_secret_key(self) -> str:
        return self.secrets.password("s3")

    def valkey(self, instance: str) -> str:
        password = self.secrets.password("valkey")
        return f"redis://:{password}@{HOST}:{self.ports[f'valkey-{instance}']}/0"

    @property
    def jaeger(self) -> str:
        return self.http("jaeger")

    @property
    def otlp(self) -> str:
        """The base URL of Jaeger's OTLP/HTTP receiver."""
        return self.http("jaeger.otlp")

    def for_tests(self) -> dict[str, str]:
        """The variables by which `replank.testing` finds the servers that are part of this stack."""
        variables: dict[str, str] = {}
        if "postgres" in self.ports:
            variables["REPLANK_TEST_POSTGRES"] = self.postgres()
        if "kafka" in self.ports:
            variables["REPLANK_TEST_KAFKA"] = self.kafka
        if "valkey-authorization" in self.ports:
            variables["REPLANK_TEST_VALKEY"] = self.valkey("authorization")
        if "s3" in self.ports:
            variables["REPLANK_TEST_S3_URL"] = self.s3
            variables["REPLANK_TEST_S3_ACCESS_KEY"] = S3_ACCESS_KEY
            variables["REPLANK_TEST_S3_SECRET_KEY"] = self.s3_secret_key
        if "jaeger" in self.ports:
            variables["REPLANK_TEST_JAEGER"] = self.jaeger
            variables["REPLANK_TEST_OTLP"] = self.otlp
        return variables
