"""What `make env` prints survives a shell, and what services are told belongs to them alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from replank_local import report, services, state
from replank_local.credentials import ADMIN, Secrets
from replank_local.endpoints import Endpoints
from replank_local.errors import NotRunning
from replank_local.processes import identity_of
from replank_local.servers import SERVERS
from replank_local.services import EXAMPLES, PROGRAMS, READER, SERVICES, STOREFRONT, UNITS, VAULTS
from replank_local.state import State

NAMED_BY_THE_CONTRACT = {
    *(f"REPLANK_{name}_URL" for name in ("SCHEMA", "AUTH_CACHE", "BENCHMARK", "ARCHIVER", "CONSOLE", "JAEGER", "S3")),
    *(f"REPLANK_{name}_DSN" for name in ("SCHEMA", "AUTH_CACHE", "BENCHMARK", "ARCHIVER")),
    *("REPLANK_STOREFRONT_URL", "REPLANK_STOREFRONT_DSN", "REPLANK_STOREFRONT_TABLES_DSN"),
    *("REPLANK_KAFKA", "REPLANK_TOKEN", "REPLANK_VALKEY_URL", "REPLANK_S3_ACCESS_KEY", "REPLANK_S3_SECRET_KEY"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a stack that runs, as far as its state says: its one process is this one."""
    me = identity_of(os.getpid())
    assert me is not None
    ports = {name: 1000 + number for number, name in enumerate(n for u in (*SERVERS.values(), *UNITS) for n in u.ports)}
    state.save(tmp_path, State(ports=ports, processes={"kafka": me}))
    Secrets(tmp_path / "secrets").renew_tokens(list(PROGRAMS))
    return tmp_path


def in_shell(script: str, exports: str) -> dict[str, str]:
    output = subprocess.run(
        ["bash", "-c", f"{script}; env -0"], env={"EXPORTS": exports}, capture_output=True, text=True, check=True
    ).stdout
    return dict(entry.split("=", 1) for entry in output.split("\0") if entry)


@pytest.mark.parametrize("script", ['eval "$EXPORTS"', "eval $EXPORTS"], ids=["quoted", "unquoted"])
def test_every_name_of_the_contract_arrives_in_the_shell(root: Path, script: str) -> None:
    variables = in_shell(script, report.shell_exports(root))
    assert variables.keys() >= NAMED_BY_THE_CONTRACT
    assert variables["REPLANK_CONSOLE_URL"] == ""
    assert variables["REPLANK_TOKEN"] == Secrets(root / "secrets").token_file("admin").read_text()


def test_values_that_a_shell_would_take_apart_arrive_whole() -> None:
    odd = {"ODD": "a 'b' \"c\" $HOME `id` \\ ;&|<>*"}
    assert in_shell('set -a; eval "$EXPORTS"', services.shell_file(odd))["ODD"] == odd["ODD"]


def test_a_stack_that_does_not_run_has_no_addresses(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="make up"):
        report.shell_exports(tmp_path)


def test_a_stack_whose_processes_are_all_dead_has_no_addresses(root: Path) -> None:
    known = state.load(root)
    known.processes["kafka"] = known.processes["kafka"].model_copy(update={"started": "1@00000000"})
    state.save(root, known)
    with pytest.raises(NotRunning):
        report.shell_exports(root)


def test_each_service_has_database_role_bucket_prefix_and_port_of_its_own(root: Path) -> None:
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    told = {service.name: services.environment(service, endpoints, secrets) for service in SERVICES.values()}
    for own in ("DSN", "HTTP_PORT", "SERVICE_TOKEN_FILE"):
        values = [told[service.name][f"{service.prefix}_{own}"] for service in SERVICES.values()]
        assert len(set(values)) == len(SERVICES), own
    buckets = [told[service.name][f"{service.prefix}_S3_BUCKET"] for service in SERVICES.values() if service.has_bucket]
    assert len({*buckets, *(vault.bucket for vault in VAULTS)}) == len(buckets) + len(VAULTS)


def test_each_mode_of_the_vault_has_role_account_and_bucket_of_its_own_and_the_schema_service_no_other_account(
    root: Path,
) -> None:
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    told = {program.name: services.environment(program, endpoints, secrets) for program in PROGRAMS.values()}
    vault = json.loads(told["schema"]["REPLANK_SCHEMA_VAULT"])
    assert vault.keys() == {"standard", "pro"}
    for own in ("dsn", "s3_access_key", "s3_secret_key", "s3_bucket"):
        assert vault["standard"][own] != vault["pro"][own]
    own_database = urlsplit(told["schema"]["REPLANK_SCHEMA_DSN"])
    for mode in vault.values():
        assert urlsplit(mode["dsn"]).path == own_database.path
        assert urlsplit(mode["dsn"]).username != own_database.username
    assert secrets.password("s3") not in "".join(told["schema"].values())
    for name in told.keys() - {"schema"}:
        for mode in vault.values():
            assert mode["s3_secret_key"] not in "".join(told[name].values())
            assert (urlsplit(mode["dsn"]).password or "") not in "".join(told[name].values())


def test_the_administrator_may_do_everything_with_each_mode_of_the_vault_and_the_archiver_may_look(root: Path) -> None:
    secrets = Secrets(root / "secrets")
    service = SERVICES["auth-cache"]
    told = services.environment(service, Endpoints(state.load(root).ports, secrets), secrets)
    tuples = json.loads(told["REPLANK_AUTH_CACHE_BOOTSTRAP_TUPLES"])
    archiver = [entry for entry in tuples if entry["user"] == "service:archiver"]
    assert [(entry["relation"], entry["object"]) for entry in archiver] == [
        ("view", f"vault:{vault.mode}") for vault in VAULTS
    ]
    others = [entry for entry in tuples if entry not in archiver]
    assert {entry["user"] for entry in others} == {ADMIN}
    assert {(entry["relation"], entry["object"]) for entry in others} == {
        ("plan", "system:replank"),
        *((relation, f"vault:{vault.mode}") for vault in VAULTS for relation in ("view", "publish", "admin")),
    }


def test_databases_are_handed_on_to_those_that_move_or_measure_them_alone(root: Path) -> None:
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    told = {program.name: services.environment(program, endpoints, secrets) for program in PROGRAMS.values()}
    shop = told["storefront"]
    assert json.loads(told["schema"]["REPLANK_SCHEMA_DATABASES"]) == {
        "storefront-kv": shop["REPLANK_STOREFRONT_DSN"],
        "storefront": shop["REPLANK_STOREFRONT_TABLES_DSN"],
    }
    measured = json.loads(told["benchmark"]["REPLANK_BENCHMARK_TARGETS"])
    assert measured.keys() == {"schema", "storefront-kv", "storefront"}
    for dsn in measured.values():
        assert f"//{READER}:" in dsn, "it may only look"
    for name in told.keys() - {"schema", STOREFRONT.name}:
        assert f"//{STOREFRONT.role}:" not in "".join(told[name].values())


def test_what_make_env_says_of_a_program_is_what_the_program_is_told(root: Path) -> None:
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    said = report.addresses(endpoints)
    for program in PROGRAMS.values():
        told = services.environment(program, endpoints, secrets)
        for setting in program.databases:
            assert said[f"{program.prefix}_{setting}"] == told[f"{program.prefix}_{setting}"]


def test_an_example_is_no_service_and_knows_nothing_of_cache_and_objects(root: Path) -> None:
    assert not SERVICES.keys() & EXAMPLES.keys()
    secrets = Secrets(root / "secrets")
    endpoints = Endpoints(state.load(root).ports, secrets)
    for example in EXAMPLES.values():
        told = " ".join(services.environment(example, endpoints, secrets))
        assert "_S3_" not in told
        assert "VALKEY" not in told
