//! Random numbers from the operating system.

use crate::error::{Error, Result};

pub(super) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Error::authentication(format!("the operating system returned no random bytes: {e}"))
    })?;
    Ok(bytes)
}

/// Returns a number in 0..1.
pub(super) fn unit() -> Result<f64> {
    Ok(f64::from(u32::from_be_bytes(bytes()?)) / (f64::from(u32::MAX) + 1.0))
}

/// Shuffles a list.
pub(super) fn shuffle<T>(list: &mut [T]) -> Result<()> {
    for last in (1..list.len()).rev() {
        // The bias is below 2^-40 for fewer than 2^24 elements.
        let random = u64::from_be_bytes(bytes()?) % (last as u64 + 1);
        list.swap(last, usize::try_from(random).unwrap_or(last));
    }
    Ok(())
}
