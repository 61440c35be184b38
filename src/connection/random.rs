//! Chance, from the operating system.

use crate::error::{Error, Result};

pub(super) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::authentication(format!("the operating system gives no random bytes: {e}"))
    })?;
    Ok(bytes)
}

/// A number of 0..1.
pub(super) fn unit() -> Result<f64> {
    Ok(f64::from(u32::from_be_bytes(bytes()?)) / (f64::from(u32::MAX) + 1.0))
}

/// Puts a list into a random order.
pub(super) fn shuffle<T>(list: &mut [T]) -> Result<()> {
    for last in (1..list.len()).rev() {
        // The bias is below 2^-40 for any list that a person writes.
        let random = u64::from_be_bytes(bytes()?) % (last as u64 + 1);
        list.swap(last, usize::try_from(random).unwrap_or(last));
    }
    Ok(())
}
