"""docker-compose.yml is the stack that `make up` runs as processes: the same servers, settings, variables and ports.

Nothing here needs Docker: the file is read, filled in as `make up` fills it in, and compared.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from replank.objects import accounts
from replank_local import artifacts, compose, provision, report, services, state
from replank_local.credentials import Secrets
from replank_local.endpoints import S3_ACCESS_KEY, Endpoints
from replank_local.places import CHECKOUT, DEPLOY
from replank_local.ports import HOST
from replank_local.servers import SERVERS, kafka, postgres
from replank_local.servers.valkey import MEMORY_LIMITS
from replank_local.services import PROGRAMS, READABLE, READER, SERVICES, UNITS, VAULTS
from replank_local.state import State

OVERLAY: Final = DEPLOY / "docker" / "debian" / "overlay.yml"
LONG_RUNNING: Final = {*SERVERS, *PROGRAMS}
MIGRATIONS: Final = {f"{service}-migrate{phase}" for service in PROGRAMS for phase in ("", "-post")}
ONE_SHOTS: Final = {"databases", "accounts", *MIGRATIONS}
# Where each server listens inside; outside it is the port of that name.
INSIDE: Final = {
    "postgres": ("postgres", 5432),
    "kafka": ("kafka", 9092),
    "s3": ("s3", 7070),
    "jaeger": ("jaeger", 16686),
    "jaeger.otlp": ("jaeger", 4318),
    **{f"valkey-{kind}": (f"valkey-{kind}", 6379) for kind in MEMORY_LIMITS},
    **{service: (service, 8000) for service in PROGRAMS},
}
_PLACEHOLDER: Final = re.compile(r"\$\$|\$\{(\w+)(?::\?[^}]*|:-([^}]*))?\}")


class Resets(yaml.SafeLoader):
    """Reads compose's own tag ``!reset``."""


Resets.add_constructor("!reset", lambda *_: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a stack that has its ports and secrets."""
    units = (*SERVERS.values(), *UNITS)
    ports = {name: 21000 + number for number, name in enumerate(name for unit in units for name in unit.ports)}
    state.save(tmp_path, State(way="docker", ports=ports))
    Secrets(tmp_path / "secrets").renew_tokens(list(PROGRAMS))
    return tmp_path


@pytest.fixture
def values(root: Path) -> dict[str, str]:
    return compose.variables(root, state.load(root), Secrets(root / "secrets"))


@pytest.fixture
def composition(values: dict[str, str]) -> dict[str, Any]:
    """The file as compose reads it: anchors resolved, every variable filled in."""
    filled: dict[str, Any] = fill(yaml.safe_load(compose.FILE.read_text()), values)
    return filled


def fill(node: Any, values: dict[str, str]) -> Any:
    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return values[found[1]] if found[2] is None else values.get(found[1], found[2])

    match node:
        case dict():
            return {key: fill(value, values) for key, value in node.items()}
        case list():
            return [fill(value, values) for value in node]
        case str():
            return _PLACEHOLDER.sub(one, node)
        case _:
            return node


def test_the_file_is_what_the_compose_specification_says() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(compose.FILE)]
    answer = subprocess.run(check, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_it_names_the_servers_and_services_of_the_native_stack_and_what_prepares_them(
    composition: dict[str, Any],
) -> None:
    assert composition["services"].keys() == LONG_RUNNING | ONE_SHOTS
    for name, service in composition["services"].items():
        assert service["restart"] == ("no" if name in ONE_SHOTS else "unless-stopped"), name
        assert "healthcheck" in service or name in ONE_SHOTS, name


def test_everything_that_it_refers_to_is_there(composition: dict[str, Any]) -> None:
    known = composition["services"]
    for name, service in known.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in known, f"{name} depends on {needed}"
            wanted = "service_completed_successfully" if needed in ONE_SHOTS else "service_healthy"
            assert how == {"condition": wanted}, f"{name} depends on {needed}"
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                source = volume.split(":")[0]
                there = (CHECKOUT / source).is_file() if source.startswith(".") else source in composition["volumes"]
                assert there, f"{name} mounts {source}"
        if "build" in service:
            assert (CHECKOUT / service["build"]["dockerfile"]).is_file()
            arguments = service["build"]["args"]
            project = CHECKOUT / arguments.get("SOURCE", f"services/{arguments['SERVICE']}") / "pyproject.toml"
            # The image starts the command of that name.
            assert f"replank-{arguments['SERVICE']}" in tomllib.loads(project.read_text())["project"]["scripts"]


def test_a_service_is_told_the_same_by_docker_as_without_it(root: Path, composition: dict[str, Any]) -> None:
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    for service in PROGRAMS.values():
        native = services.environment(service, endpoints, secrets)
        expected = {name: inside(value, endpoints, secrets, service.name) for name, value in native.items()}
        expected |= {f"{service.prefix}_HTTP_HOST": "0.0.0.0", f"{service.prefix}_HTTP_PORT": "8000"}
        for name in (service.name, f"{service.name}-migrate", f"{service.name}-migrate-post"):
            told = composition["services"][name]["environment"]
            assert {variable: as_read(str(value)) for variable, value in told.items()} == {
                variable: as_read(value) for variable, value in expected.items()
            }


def inside(value: str, endpoints: Endpoints, secrets: Secrets, service: str) -> str:
    """What a native value is in a container: the addresses and files there."""
    for name, (host, port) in INSIDE.items():
        value = value.replace(f"{HOST}:{endpoints.ports[name]}", f"{host}:{port}")
    return value.replace(str(secrets.jwks), "/run/replank/jwks.json").replace(
        str(secrets.token_file(service)), "/run/replank/token"
    )


def as_read(value: str) -> Any:
    """JSON by what it means, everything else as it is."""
    return json.loads(value) if value.startswith(("[", "{")) else value


def test_what_make_env_says_is_published_on_loopback_alone(root: Path, composition: dict[str, Any]) -> None:
    published: dict[str, tuple[str, int]] = {}
    for name, service in composition["services"].items():
        for port in service.get("ports", []):
            address, outside, within = port.rsplit(":", 2)
            assert address == HOST, f"{name} publishes {port}"
            published[outside] = (name, int(within))
    endpoints = Endpoints(state.load(root).ports, Secrets(root / "secrets"))
    for name, value in report.addresses(endpoints).items():
        for outside in re.findall(rf"{re.escape(HOST)}:(\d+)", value):
            assert outside in published, f"{name} is {value}"
    outside_of = {str(endpoints.ports[name]): place for name, place in INSIDE.items()}
    outside_of[str(endpoints.ports["kafka"])] = ("kafka", 29092)  # the listener that tells clients our own address
    assert published == outside_of


def test_postgres_and_kafka_are_set_as_without_docker(composition: dict[str, Any]) -> None:
    options = dict(word.removeprefix("-c").split("=") for word in composition["services"]["postgres"]["command"][1:])
    native = dict(re.findall(r"^(\w+) = '?([^'\n]+)'?$", postgres._SETTINGS, re.MULTILINE))
    elsewhere = {"listen_addresses", "port", "unix_socket_directories", "dynamic_shared_memory_type"}
    only_looks = {"log_line_prefix", "log_checkpoints", "password_encryption"}  # the last is the default
    assert options == {name: value for name, value in native.items() if name not in elsewhere | only_looks}

    told = composition["services"]["kafka"]["environment"]
    settings = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): str(value)
        for name, value in told.items()
        if name != "KAFKA_HEAP_OPTS"
    }
    lines = [line for line in kafka._SETTINGS.splitlines() if not line.startswith("#")]
    wanted = dict(line.split("=", 1) for line in lines)
    assert settings.keys() == wanted.keys()
    for name, value in wanted.items():
        if "listener" not in name and name not in {"log.dirs", "controller.quorum.voters"}:
            assert settings[name] == value, name


def test_caches_have_the_same_size_and_versions_are_the_same(composition: dict[str, Any]) -> None:
    known = composition["services"]
    for kind, size in MEMORY_LIMITS.items():
        assert known[f"valkey-{kind}"]["environment"]["MEMORY"] == size
        assert known[f"valkey-{kind}"]["environment"]["REDISCLI_AUTH"]
    version = {name: known[name]["image"].rsplit(":", 1)[1] for name in ("kafka", "s3", "jaeger")}
    assert artifacts.kafka_jars().path.name.startswith(f"kafka-{version['kafka']}-")
    assert artifacts.versitygw().path.name == f"versitygw-{version['s3']}"
    # Jaeger's modules go on as v1.N: each is released together with image 2.(N - 63).
    module = re.fullmatch(r"jaeger-v1\.(\d+)\.(\d+)", artifacts.jaeger().path.name)
    assert module is not None
    assert version["jaeger"] == f"2.{int(module[1]) - 63}.{module[2]}"


def test_the_same_databases_roles_and_extensions_are_made(composition: dict[str, Any]) -> None:
    script = (DEPLOY / "docker" / "databases.sh").read_text()
    made = dict(re.findall(r"^role (replank_\w+) (REPLANK_PASSWORD_\w+)$", script, re.MULTILINE))
    assert made.keys() == {READER, *(program.role for program in PROGRAMS.values()), *(vault.role for vault in VAULTS)}
    owned = {(name, service.role) for service in PROGRAMS.values() for name in service.databases.values()}
    assert set(re.findall(r"^database (replank_\w+) (replank_\w+)$", script, re.MULTILINE)) == owned
    readable = re.search(rf"^grant connect on database (.*) to {READER};$", script, re.MULTILINE)
    assert readable is not None
    assert set(readable[1].split(", ")) == set(READABLE.values())
    vaults = ", ".join(vault.role for vault in VAULTS)
    assert f"\ngrant connect on database {SERVICES['schema'].database} to {vaults};\n" in script
    given = composition["services"]["databases"]["environment"]
    assert set(made.values()) == {name for name in given if name.startswith("REPLANK_")}
    listed = re.search(r"where name in \(([^)]*)\)", script)
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == set(provision._EXTENSIONS)


def test_the_same_accounts_of_the_object_store_are_made(root: Path, composition: dict[str, Any]) -> None:
    secrets = Secrets(root / "secrets")
    one_shot = composition["services"]["accounts"]
    assert one_shot["entrypoint"] == ["python3", "-m", accounts.__name__]
    url, access_key, secret_key, made = accounts.from_environment(one_shot["environment"])
    assert (url, access_key) == ("http://s3:7070", S3_ACCESS_KEY)
    assert secret_key == composition["services"]["s3"]["environment"]["ROOT_SECRET_KEY"] == secrets.password("s3")
    assert made == provision.accounts(secrets)
    (folder,) = (word for word in composition["services"]["s3"]["command"] if word.startswith("--iam-dir="))
    assert f"accounts:{folder.removeprefix('--iam-dir=')}" in composition["services"]["s3"]["volumes"]


def test_a_service_can_do_nothing_that_it_need_not(composition: dict[str, Any]) -> None:
    for name in {*PROGRAMS, *ONE_SHOTS}:
        service = composition["services"][name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert "USER 10001:10001" in (DEPLOY / "docker" / "Dockerfile").read_text()


def test_each_service_is_handed_its_own_token_and_the_public_keys_and_nobody_the_signing_key(
    root: Path, composition: dict[str, Any]
) -> None:
    secrets = Secrets(root / "secrets")
    folder = root / "compose-secrets"
    compose._hand_out(secrets, folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # this account's alone
    private = (secrets.folder / "signing-key.pem").read_text()
    for service in PROGRAMS:
        (mount,) = composition["services"][service]["volumes"]
        assert Path(mount["source"]) == folder / service
        assert mount["read_only"] is True
        handed = {path.name: path for path in (folder / service).iterdir()}
        assert handed.keys() == {"jwks.json", "token"}
        assert handed["token"].read_text() == secrets.token_file(service).read_text()
        assert handed["jwks.json"].read_text() == secrets.jwks.read_text()
        for path in handed.values():
            assert stat.S_IMODE(path.stat().st_mode) == 0o644  # another account reads it in the container
            assert private not in path.read_text()
    for name in ONE_SHOTS - {"databases"}:
        assert "volumes" not in composition["services"][name]


def test_handing_out_again_replaces_what_a_running_container_sees(root: Path) -> None:
    secrets = Secrets(root / "secrets")
    folder = root / "compose-secrets"
    compose._hand_out(secrets, folder)
    mounted = (folder / "schema").stat().st_ino
    secrets.token_file("schema").write_text("another")
    compose._hand_out(secrets, folder)
    assert (folder / "schema" / "token").read_text() == "another"
    assert (folder / "schema").stat().st_ino == mounted


def test_two_checkouts_on_one_engine_have_containers_and_volumes_of_their_own(
    root: Path, values: dict[str, str]
) -> None:
    other = compose.variables(root / "other", state.load(root), Secrets(root / "secrets"))
    assert values["COMPOSE_PROJECT_NAME"] != other["COMPOSE_PROJECT_NAME"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", values["COMPOSE_PROJECT_NAME"])


def test_the_overlay_leaves_no_image_to_be_pulled_or_built(composition: dict[str, Any]) -> None:
    overlay = yaml.load(OVERLAY.read_text(), Loader=Resets)["services"]
    assert overlay.keys() == composition["services"].keys()
    for name, service in overlay.items():
        assert service["pull_policy"] == "never", name
        assert service.get("image") == (None if "build" in composition["services"][name] else "replank-debian/servers")
        assert service.get("build", "none") is None or name not in {*PROGRAMS, *MIGRATIONS}
