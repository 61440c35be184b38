use std::{
    io,
    sync::{Arc, OnceLock},
};

/// The name of the operating system's user, which is looked up when it is first needed.
///
/// The lookup can ask a directory service, so it must not be repeated for each query. Copies of a
/// configuration share the name.
#[derive(Debug, Clone, Default)]
pub(super) struct SystemUser(Arc<OnceLock<String>>);

impl SystemUser {
    /// # Errors
    ///
    /// The error of `look_up`. It is not kept, because a later lookup can succeed.
    pub(super) fn get(&self, look_up: impl FnOnce() -> io::Result<String>) -> io::Result<&str> {
        if let Some(name) = self.0.get() {
            return Ok(name);
        }
        let name = look_up()?;
        Ok(self.0.get_or_init(|| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_looked_up_once_for_all_copies() {
        let user = SystemUser::default();
        let failed = user.get(|| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
        let copy = user.clone();
        assert_eq!(copy.get(|| Ok("app".to_owned())).unwrap(), "app");
        for user in [user, copy] {
            assert_eq!(user.get(|| panic!("it is looked up again")).unwrap(), "app");
        }
    }
}
