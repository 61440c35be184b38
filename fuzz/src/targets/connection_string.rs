use fraiseql_wire::ConnectionConfig;

/// Too long to occur by chance.
const SECRET: &str = "Pl4ntedS3cret";

/// Fuzzes a connection string: it is accepted or rejected, and no password is ever shown.
pub fn connection_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A fuzzer can find this text, and could use it where it is no secret.
    if text.contains(SECRET) {
        return;
    }
    // Unchanged, and with a password in each place where one is possible.
    check(text);
    check(&format!("postgres://u:{SECRET}{text}"));
    check(&format!("postgres://h?{text}&password={SECRET}"));
    check(&format!("{text} password={SECRET}"));
    check(&format!("password='{SECRET}{text}"));
    // Not escaped, not quoted: parts of a password where something else is expected.
    check(&format!("postgres://u:a/b?{SECRET}={text}@h"));
    check(&format!("password=my {SECRET}={text}"));
    check(&format!("password=my {SECRET}='{text}"));
}

fn check(text: &str) {
    let shown = match ConnectionConfig::parse(text) {
        Ok(config) => {
            // Every getter returns.
            for target in config.targets() {
                let _ = (config.password_for(&target), target.to_string());
            }
            // A part that an unescaped character separates is not a secret: only the parsed
            // password is.
            if !config.password().is_some_and(|p| p.contains(SECRET)) {
                return;
            }
            format!("{config} {config:?}")
        }
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(SECRET), "{text:?}: {shown}");
}
