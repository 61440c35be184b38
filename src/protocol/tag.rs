//! The tags of the server's messages, and their names in the protocol.

macro_rules! tags {
    ($($tag:ident $byte:literal $name:literal;)*) => {
        $(pub(crate) const $tag: u8 = $byte;)*

        /// Returns the name of the messages with this tag.
        pub(crate) fn name_of(tag: u8) -> &'static str {
            match tag {
                $($byte => $name,)*
                _ => "an unknown message",
            }
        }
    };
}

tags! {
    AUTHENTICATION b'R' "Authentication";
    BACKEND_KEY_DATA b'K' "BackendKeyData";
    BIND_COMPLETE b'2' "BindComplete";
    CLOSE_COMPLETE b'3' "CloseComplete";
    COMMAND_COMPLETE b'C' "CommandComplete";
    DATA_ROW b'D' "DataRow";
    EMPTY_QUERY_RESPONSE b'I' "EmptyQueryResponse";
    ERROR_RESPONSE b'E' "ErrorResponse";
    NEGOTIATE_PROTOCOL_VERSION b'v' "NegotiateProtocolVersion";
    NO_DATA b'n' "NoData";
    NOTICE_RESPONSE b'N' "NoticeResponse";
    NOTIFICATION_RESPONSE b'A' "NotificationResponse";
    PARAMETER_STATUS b'S' "ParameterStatus";
    PARSE_COMPLETE b'1' "ParseComplete";
    READY_FOR_QUERY b'Z' "ReadyForQuery";
    ROW_DESCRIPTION b'T' "RowDescription";
}
