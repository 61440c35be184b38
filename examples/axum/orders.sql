create table tv_order (id bigint primary key, data jsonb not null);

insert into tv_order
select i, jsonb_build_object(
    'id', i,
    'placed_at', timestamptz '2026-01-01 08:00+00' + i * interval '90 seconds',
    'status', (array['open', 'paid', 'shipped', 'returned'])[1 + i * 7 / 3 % 4],
    'customer', jsonb_build_object(
        'name', (array['Ada', 'Ben', 'Chloé', 'Dmitri', 'Ève'])[1 + i * 13 / 7 % 5] || ' '
             || (array['Ng', 'Olsen', 'Pérez', 'Quist', 'Rossi', 'Şahin'])[1 + i * 17 / 5 % 6],
        'city', (array['Lyon', 'Oslo', 'Porto', 'Kraków', 'Gent', 'Turku', 'Graz'])[1 + i * 11 / 9 % 7]),
    'total', round((5 + i * 7919::bigint % 60000) / 100.0, 2),
    'tags', to_jsonb((array['gift', 'express', 'b2b'])[1 : i * 5 / 7 % 4]))
from generate_series(1, 300000) i;

create view v_order as select data from tv_order order by id;
