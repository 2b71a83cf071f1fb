"""Who may do what with the tables of each mode: its role may read and write them and append events, and nobody else.

Migrations make the tables; the rights are set by the service as it starts, since only then is it known which roles are
configured. They are compared with what the catalog says, and only differences are changed, also those that somebody
made by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import VaultMode
from replank.errors import ConfigurationError

_LOCK: Final = "select pg_advisory_xact_lock(hashtext('replank_schema.vault.grants'))"

# What makes a role too strong to be told apart from another one by grants; the first that is found is named.
_TOO_STRONG: Final = """
    select configured.mode, configured.role, coalesce(
        case when known.oid is null then 'does not exist' end,
        case when known.rolsuper then 'is a superuser' end,
        case when known.rolcreaterole then 'may create roles, and so become any' end,
        case when known.rolreplication then 'may replicate, and so read everything' end,
        (select 'is the owner of ' || owned.name || ' or a member of it'
           from (select nspname::text, nspowner from pg_namespace where nspname = any($3::text[])
                 union all
                 select datname::text, datdba from pg_database where datname = current_database()) owned (name, owner)
          where pg_has_role(known.oid, owned.owner, 'member') order by owned.name limit 1),
        (select format('is a member of %I', strong.rolname) from pg_roles strong
          where strong.rolname = any(array['pg_read_all_data', 'pg_write_all_data', 'pg_execute_server_program',
                                           'pg_read_server_files', 'pg_write_server_files'])
            and pg_has_role(known.oid, strong.oid, 'member') order by strong.rolname limit 1),
        (select format('is a member of %I, the role of mode %s', other.role, other.mode)
           from unnest($1::text[], $2::text[]) other (mode, role)
           join pg_roles others on others.rolname = other.role
          where other.mode <> configured.mode and pg_has_role(known.oid, others.oid, 'member') limit 1)
    ) as why
      from unnest($1::text[], $2::text[]) configured (mode, role)
      left join pg_roles known on known.rolname = configured.role
     order by configured.mode
"""

# The statements by which the rights become what they shall be, revocations first; none when they are. `held` is what
# the catalog says of everybody but the owner, `wanted` what shall be there; a grant to everybody has the grantee 0.
_DIFFERENCES: Final = """
    with configured as (
        select n.oid as namespace, n.nspname, n.nspowner, r.oid as role
          from unnest($1::text[], $2::text[]) c (namespace, role)
          join pg_namespace n on n.nspname = c.namespace
          join pg_roles r on r.rolname = c.role
    ), relations as (
        select c.oid, configured.*, c.relowner, c.relacl, c.relkind,
               format('%s %I.%I', case c.relkind when 'S' then 'sequence' else 'table' end, nspname, c.relname) as thing
          from configured join pg_class c on c.relnamespace = configured.namespace
         where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    ), held as (
        select format('schema %I', n.nspname) as thing, n.nspowner as owner, a.grantee, a.privilege_type, a.is_grantable
          from configured join pg_namespace n on n.oid = namespace cross join aclexplode(n.nspacl) a
        union all
        select thing, relowner, a.grantee, a.privilege_type, a.is_grantable
          from relations cross join aclexplode(relacl) a
        union all
        select thing, relowner, a.grantee, 'column ' || a.privilege_type, a.is_grantable
          from relations join pg_attribute on attrelid = relations.oid cross join aclexplode(attacl) a
    ), wanted as (
        select format('schema %I', nspname) as thing, role, array['USAGE'] as privileges from configured
        union all
        select thing, role, case relkind when 'S' then array['SELECT', 'USAGE']
                                         else array['DELETE', 'INSERT', 'SELECT', 'UPDATE'] end
          from relations
    ), others as (
        select held.thing, held.grantee, array_agg(held.privilege_type order by held.privilege_type) as privileges,
               bool_or(held.is_grantable) as grantable
          from held where held.grantee <> held.owner group by held.thing, held.grantee
    ), too_much as (
        select others.thing, others.grantee from others left join wanted
            on wanted.thing = others.thing and wanted.role = others.grantee
         where wanted.thing is null or others.grantable or not others.privileges <@ wanted.privileges
    ), too_little as (
        select wanted.* from wanted left join others
            on others.thing = wanted.thing and others.grantee = wanted.role
         where others.thing is null or not wanted.privileges <@ others.privileges
            or (wanted.thing, wanted.role) in (select thing, grantee from too_much)
    )
    select format('revoke all on %s from %s cascade', thing,
                  case grantee when 0 then 'public' else grantee::regrole::text end) as statement, 1 as turn
      from too_much
    union all
    -- Who has something here and is no mode's role was one once, and has no more to tell.
    select distinct format('revoke all on all functions in schema replank_outbox from %s', grantee::regrole), 1
      from too_much
     where grantee <> 0 and grantee not in (select role from configured)
    union all
    select format('grant %s on %s to %s', array_to_string(privileges, ', '), thing, role::regrole), 2 from too_little
    order by turn, statement
"""

_MAY_NOT_APPEND: Final = """
    select role from unnest($1::text[]) role
     where not has_schema_privilege(role, 'replank_outbox', 'usage')
        or exists (select from pg_proc p
                    where p.pronamespace = 'replank_outbox'::regnamespace
                      and p.proname in ('append', 'append_many', 'append_ordered')
                      and not has_function_privilege(role, p.oid, 'execute'))
"""


async def grant(conn: Connection, roles: Mapping[VaultMode, str]) -> None:
    """Let the role of each mode reach that mode's tables and append events, and take from all others what they had.

    To be called as the owner of the tables with the roles of all modes, at every start and by any number of processes:
    one transaction, three queries where nothing is to be changed. The owner keeps its rights. Whoever else had any
    loses the right to append events, too.

    Raises `ConfigurationError` for a role that no grant could keep from another mode: one role for two modes, the
    owner's, a superuser's, a member of any of those or of another mode's, one that is missing.
    """
    names = list(roles.values())
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"the role {names[0]} is configured for more than one mode of the vault", fix="give each mode its own role"
        )
    namespaces = [f"vault_{mode}" for mode in roles]
    async with conn.transaction():
        for found in await conn.fetch(_TOO_STRONG, list(roles), names, namespaces):
            if found["why"]:
                raise ConfigurationError(
                    f"the role {found['role']} of the vault's mode {found['mode']} {found['why']}",
                    fix="give each mode a role of its own that may log in, connect to this database, and nothing else",
                )
        if not await _differences(conn, namespaces, names) and not await conn.fetch(_MAY_NOT_APPEND, names):
            return
        # Two who change the same rights at once would fail each other.
        await conn.execute(_LOCK)
        for statement in await _differences(conn, namespaces, names):
            await conn.execute(statement)
        for (role,) in await conn.fetch(_MAY_NOT_APPEND, names):
            await outbox.grant_append(conn, role)


async def _differences(conn: Connection, namespaces: list[str], roles: list[str]) -> list[str]:
    return [row["statement"] for row in await conn.fetch(_DIFFERENCES, namespaces, roles)]
