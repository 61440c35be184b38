use fraiseql_wire::ConnectionConfig;

/// Long enough not to come about by chance.
const SECRET: &str = "Pl4ntedS3cret";

/// Any text as a connection string: it is taken or refused, and no password is ever shown.
pub fn connection_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A fuzzer sees what it is looked for by, and puts it where it is no secret.
    if text.contains(SECRET) {
        return;
    }
    // As it is, and with a password in each place where one can stand.
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
            // Every question can be answered.
            for target in config.targets() {
                let _ = (config.password_for(&target), target.to_string());
            }
            // A part that was split off by an unescaped character is no secret any more: only what
            // was taken as the password is.
            if !config.password().is_some_and(|p| p.contains(SECRET)) {
                return;
            }
            format!("{config} {config:?}")
        }
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(SECRET), "{text:?}: {shown}");
}
