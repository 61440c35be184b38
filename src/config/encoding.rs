/// Returns whether the name of an encoding means UTF-8. Postgres ignores case and all characters
/// except letters and digits (`clean_encoding_name`), and accepts the old name `UNICODE`.
pub(crate) fn is_utf8(encoding: &str) -> bool {
    let cleaned = || encoding.chars().filter(char::is_ascii_alphanumeric);
    let is = |name: &str| cleaned().map(|c| c.to_ascii_lowercase()).eq(name.chars());
    is("utf8") || is("unicode")
}
