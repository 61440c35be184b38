#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fraiseql_wire_fuzz::targets::revocation_list(data));
