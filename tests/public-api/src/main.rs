//! Prints every public item of a crate, one per line, from rustdoc's JSON:
//! `fraiseql-wire-public-api NAME.json`.

use std::{env, error::Error};

/// Omitted: traits for the compiler only, which change without notice.
const INTERNAL: [&str; 2] = ["core::marker::Freeze", "core::marker::UnsafeUnpin"];

fn main() -> Result<(), Box<dyn Error>> {
    let json = env::args().nth(1).ok_or("the path of rustdoc's JSON is missing")?;
    // Without what the standard library implements for every type.
    let api = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true).build()?;
    for item in api.items().map(ToString::to_string) {
        if !INTERNAL.iter().any(|name| item.contains(name)) {
            println!("{item}");
        }
    }
    Ok(())
}
