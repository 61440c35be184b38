//! The relations of short queries, and their documents in Rust.

use serde::{Deserialize, de::DeserializeOwned};

use crate::clients::Weigh;

/// The number of rows. Their keys start at 1.
pub const ROWS: i64 = 10_000;

/// * `v_simple`: a view over one table.
/// * `tv_user`: a table of documents, with the index that serves `field("id").eq(..)`.
/// * `v_deep`: a view with four joins and nested aggregates.
pub const SQL: &str = "
    create table users (id bigint primary key, name text not null, email text not null,
                        company_id bigint not null);
    insert into users select i, 'Customer ' || i, 'customer' || i || '@example.com', 1 + i % 500
    from generate_series(1, 10000) i;

    create view v_simple as
    select id, jsonb_build_object('id', id, 'name', name, 'email', email) as data from users;

    create table tv_user (id bigint primary key, data jsonb not null);
    insert into tv_user select id, data from v_simple;
    create index on tv_user ((data->'id'));

    create table countries (id bigint primary key, name text not null);
    insert into countries select i, 'Country ' || i from generate_series(1, 50) i;
    create table companies (id bigint primary key, name text not null, country_id bigint not null);
    insert into companies select i, 'Company ' || i, 1 + i % 50 from generate_series(1, 500) i;
    create table products (id bigint primary key, sku text not null);
    insert into products select i, 'SKU-' || i from generate_series(1, 1000) i;
    create table orders (id bigint primary key, user_id bigint not null, status text not null);
    insert into orders select i, 1 + i % 10000, (array['new', 'paid', 'sent'])[1 + i % 3]
    from generate_series(1, 30000) i;
    create index on orders (user_id);
    create table lines (order_id bigint not null, product_id bigint not null, quantity int not null);
    insert into lines select 1 + i % 30000, 1 + i % 997, 1 + i % 9 from generate_series(1, 90000) i;
    create index on lines (order_id);

    create view v_deep as
    select u.id, jsonb_build_object(
        'id', u.id, 'name', u.name,
        'company', jsonb_build_object('name', c.name, 'country', k.name),
        'orders', coalesce(o.orders, '[]')) as data
    from users u
    join companies c on c.id = u.company_id
    join countries k on k.id = c.country_id
    left join lateral (
        select jsonb_agg(jsonb_build_object('id', o.id, 'status', o.status, 'lines', l.lines)
                         order by o.id) as orders
        from orders o
        left join lateral (
            select jsonb_agg(jsonb_build_object('sku', p.sku, 'quantity', l.quantity)
                             order by p.sku) as lines
            from lines l join products p on p.id = l.product_id
            where l.order_id = o.id) l on true
        where o.user_id = u.id) o on true;

    vacuum (freeze, analyze)";

/// A document of a relation.
pub trait Document: DeserializeOwned + Weigh + Send + Sync + Unpin + 'static {}

impl<T: DeserializeOwned + Weigh + Send + Sync + Unpin + 'static> Document for T {}

/// A document of `v_simple` and `tv_user`: about 75 bytes.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub struct User {
    id: u64,
    name: String,
    email: String,
}

/// A document of `v_deep`: about 550 bytes.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub struct Deep {
    id: u64,
    name: String,
    company: Company,
    orders: Vec<Order>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Company {
    name: String,
    country: String,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Order {
    id: u64,
    status: String,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Line {
    sku: String,
    quantity: u32,
}

impl Weigh for User {
    fn weigh(&self) -> u64 {
        self.id
    }
}

impl Weigh for Deep {
    fn weigh(&self) -> u64 {
        self.id
    }
}
