# Sourced by scripts/engines.sh and scripts/platforms.sh: SQL that makes the relations for the
# checks, and a role with the password PGPASSWORD.
# shellcheck disable=SC2034

documents="select i as id, jsonb_build_object('id', i, 'name', 'n' || i, 'group', i % 10,
    'pad', repeat('x', 200)) as data from generate_series(1, 20000) i"
endless="create view endless as select a.data from documents a, documents b, documents c;
    create role probe login password '$PGPASSWORD';
    grant select on documents, endless to probe"
recreate="create function recreate(id text, kind text, key text, value text) returns json
    language plpgsql security definer as 'begin
        drop table if exists changing;
        execute format(''create table changing (id %s, data %s)'', id, kind);
        execute format(''insert into changing values (%L, %L)'', key, value);
        grant select on changing to public;
        return to_json(1);
    end'"
table="create table documents as $documents; alter table documents add primary key (id)"
