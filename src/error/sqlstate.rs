//! SQLSTATE codes: [`SqlState`] and a constant for every code of [Appendix A] of the Postgres
//! manual.
//!
//! ```
//! use fraiseql_wire::sqlstate::{self, SqlState};
//!
//! fn is_deadlock(state: Option<&SqlState>) -> bool {
//!     state == Some(&sqlstate::T_R_DEADLOCK_DETECTED)
//! }
//! ```
//!
//! The names are those of the server's `errcodes.txt` without the prefix `ERRCODE_`.
//!
//! [Appendix A]: https://www.postgresql.org/docs/current/errcodes-appendix.html

use std::fmt;

/// A SQLSTATE: five characters that identify the kind of error.
///
/// Match on it rather than on the message, which is translated and reworded between versions.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// Parses a code: five ASCII digits or uppercase letters.
    pub(crate) fn from_code(code: &str) -> Option<Self> {
        let bytes: [u8; 5] = code.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()).then_some(Self(bytes))
    }

    /// Returns the five characters of the code, for example `40P01`.
    pub fn code(&self) -> &str {
        // A code is always ASCII, so the default is never used.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns the class, the first two characters of the code, for example `40`.
    pub fn class(&self) -> &str {
        self.code().get(..2).unwrap_or_default()
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({})", self.code())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $condition:literal;)*) => {
        $(
            #[doc = concat!("`", $code, "`: ", $condition, ".")]
            pub const $name: SqlState = SqlState(*$code.as_bytes().first_chunk().unwrap());
        )*
    };
}

codes! {
    // Class 00 - Successful Completion
    SUCCESSFUL_COMPLETION = "00000", "successful completion";
    // Class 01 - Warning
    WARNING = "01000", "warning";
    WARNING_DYNAMIC_RESULT_SETS_RETURNED = "0100C", "dynamic result sets returned";
    WARNING_IMPLICIT_ZERO_BIT_PADDING = "01008", "implicit zero bit padding";
    WARNING_NULL_VALUE_ELIMINATED_IN_SET_FUNCTION = "01003", "null value eliminated in set function";
    WARNING_PRIVILEGE_NOT_GRANTED = "01007", "privilege not granted";
    WARNING_PRIVILEGE_NOT_REVOKED = "01006", "privilege not revoked";
    WARNING_STRING_DATA_RIGHT_TRUNCATION = "01004", "string data right truncation";
    WARNING_DEPRECATED_FEATURE = "01P01", "deprecated feature";
    // Class 02 - No Data (this is also a warning class per the SQL standard)
    NO_DATA = "02000", "no data";
    NO_ADDITIONAL_DYNAMIC_RESULT_SETS_RETURNED = "02001", "no additional dynamic result sets returned";
    // Class 03 - SQL Statement Not Yet Complete
    SQL_STATEMENT_NOT_YET_COMPLETE = "03000", "sql statement not yet complete";
    // Class 08 - Connection Exception
    CONNECTION_EXCEPTION = "08000", "connection exception";
    CONNECTION_DOES_NOT_EXIST = "08003", "connection does not exist";
    CONNECTION_FAILURE = "08006", "connection failure";
    SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION = "08001", "sqlclient unable to establish sqlconnection";
    SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION = "08004", "sqlserver rejected establishment of sqlconnection";
    TRANSACTION_RESOLUTION_UNKNOWN = "08007", "transaction resolution unknown";
    PROTOCOL_VIOLATION = "08P01", "protocol violation";
    // Class 09 - Triggered Action Exception
    TRIGGERED_ACTION_EXCEPTION = "09000", "triggered action exception";
    // Class 0A - Feature Not Supported
    FEATURE_NOT_SUPPORTED = "0A000", "feature not supported";
    // Class 0B - Invalid Transaction Initiation
    INVALID_TRANSACTION_INITIATION = "0B000", "invalid transaction initiation";
    // Class 0F - Locator Exception
    LOCATOR_EXCEPTION = "0F000", "locator exception";
    L_E_INVALID_SPECIFICATION = "0F001", "invalid locator specification";
    // Class 0L - Invalid Grantor
    INVALID_GRANTOR = "0L000", "invalid grantor";
    INVALID_GRANT_OPERATION = "0LP01", "invalid grant operation";
    // Class 0P - Invalid Role Specification
    INVALID_ROLE_SPECIFICATION = "0P000", "invalid role specification";
    // Class 0Z - Diagnostics Exception
    DIAGNOSTICS_EXCEPTION = "0Z000", "diagnostics exception";
    STACKED_DIAGNOSTICS_ACCESSED_WITHOUT_ACTIVE_HANDLER = "0Z002", "stacked diagnostics accessed without active handler";
    // Class 10 - XQuery Error
    INVALID_ARGUMENT_FOR_XQUERY = "10608", "invalid argument for xquery";
    // Class 20 - Case Not Found
    CASE_NOT_FOUND = "20000", "case not found";
    // Class 21 - Cardinality Violation
    CARDINALITY_VIOLATION = "21000", "cardinality violation";
    // Class 22 - Data Exception
    DATA_EXCEPTION = "22000", "data exception";
    ARRAY_ELEMENT_ERROR = "2202E", "array element error";
    CHARACTER_NOT_IN_REPERTOIRE = "22021", "character not in repertoire";
    DATETIME_FIELD_OVERFLOW = "22008", "datetime field overflow";
    DIVISION_BY_ZERO = "22012", "division by zero";
    ERROR_IN_ASSIGNMENT = "22005", "error in assignment";
    ESCAPE_CHARACTER_CONFLICT = "2200B", "escape character conflict";
    INDICATOR_OVERFLOW = "22022", "indicator overflow";
    INTERVAL_FIELD_OVERFLOW = "22015", "interval field overflow";
    INVALID_ARGUMENT_FOR_LOG = "2201E", "invalid argument for logarithm";
    INVALID_ARGUMENT_FOR_NTILE = "22014", "invalid argument for ntile function";
    INVALID_ARGUMENT_FOR_NTH_VALUE = "22016", "invalid argument for nth value function";
    INVALID_ARGUMENT_FOR_POWER_FUNCTION = "2201F", "invalid argument for power function";
    INVALID_ARGUMENT_FOR_WIDTH_BUCKET_FUNCTION = "2201G", "invalid argument for width bucket function";
    INVALID_CHARACTER_VALUE_FOR_CAST = "22018", "invalid character value for cast";
    INVALID_DATETIME_FORMAT = "22007", "invalid datetime format";
    INVALID_ESCAPE_CHARACTER = "22019", "invalid escape character";
    INVALID_ESCAPE_OCTET = "2200D", "invalid escape octet";
    INVALID_ESCAPE_SEQUENCE = "22025", "invalid escape sequence";
    NONSTANDARD_USE_OF_ESCAPE_CHARACTER = "22P06", "nonstandard use of escape character";
    INVALID_INDICATOR_PARAMETER_VALUE = "22010", "invalid indicator parameter value";
    INVALID_PARAMETER_VALUE = "22023", "invalid parameter value";
    INVALID_PRECEDING_OR_FOLLOWING_SIZE = "22013", "invalid preceding or following size";
    INVALID_REGULAR_EXPRESSION = "2201B", "invalid regular expression";
    INVALID_ROW_COUNT_IN_LIMIT_CLAUSE = "2201W", "invalid row count in limit clause";
    INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE = "2201X", "invalid row count in result offset clause";
    INVALID_TABLESAMPLE_ARGUMENT = "2202H", "invalid tablesample argument";
    INVALID_TABLESAMPLE_REPEAT = "2202G", "invalid tablesample repeat";
    INVALID_TIME_ZONE_DISPLACEMENT_VALUE = "22009", "invalid time zone displacement value";
    INVALID_USE_OF_ESCAPE_CHARACTER = "2200C", "invalid use of escape character";
    MOST_SPECIFIC_TYPE_MISMATCH = "2200G", "most specific type mismatch";
    NULL_VALUE_NOT_ALLOWED = "22004", "null value not allowed";
    NULL_VALUE_NO_INDICATOR_PARAMETER = "22002", "null value no indicator parameter";
    NUMERIC_VALUE_OUT_OF_RANGE = "22003", "numeric value out of range";
    SEQUENCE_GENERATOR_LIMIT_EXCEEDED = "2200H", "sequence generator limit exceeded";
    STRING_DATA_LENGTH_MISMATCH = "22026", "string data length mismatch";
    STRING_DATA_RIGHT_TRUNCATION = "22001", "string data right truncation";
    SUBSTRING_ERROR = "22011", "substring error";
    TRIM_ERROR = "22027", "trim error";
    UNTERMINATED_C_STRING = "22024", "unterminated c string";
    ZERO_LENGTH_CHARACTER_STRING = "2200F", "zero length character string";
    FLOATING_POINT_EXCEPTION = "22P01", "floating point exception";
    INVALID_TEXT_REPRESENTATION = "22P02", "invalid text representation";
    INVALID_BINARY_REPRESENTATION = "22P03", "invalid binary representation";
    BAD_COPY_FILE_FORMAT = "22P04", "bad copy file format";
    UNTRANSLATABLE_CHARACTER = "22P05", "untranslatable character";
    DATUM_VERSION_MISMATCH = "22P07", "datum version mismatch";
    NOT_AN_XML_DOCUMENT = "2200L", "not an xml document";
    INVALID_XML_DOCUMENT = "2200M", "invalid xml document";
    INVALID_XML_CONTENT = "2200N", "invalid xml content";
    INVALID_XML_COMMENT = "2200S", "invalid xml comment";
    INVALID_XML_PROCESSING_INSTRUCTION = "2200T", "invalid xml processing instruction";
    DUPLICATE_JSON_OBJECT_KEY_VALUE = "22030", "duplicate json object key value";
    INVALID_ARGUMENT_FOR_SQL_JSON_DATETIME_FUNCTION = "22031", "invalid argument for sql json datetime function";
    INVALID_JSON_TEXT = "22032", "invalid json text";
    INVALID_SQL_JSON_SUBSCRIPT = "22033", "invalid sql json subscript";
    MORE_THAN_ONE_SQL_JSON_ITEM = "22034", "more than one sql json item";
    NO_SQL_JSON_ITEM = "22035", "no sql json item";
    NON_NUMERIC_SQL_JSON_ITEM = "22036", "non numeric sql json item";
    NON_UNIQUE_KEYS_IN_A_JSON_OBJECT = "22037", "non unique keys in a json object";
    SINGLETON_SQL_JSON_ITEM_REQUIRED = "22038", "singleton sql json item required";
    SQL_JSON_ARRAY_NOT_FOUND = "22039", "sql json array not found";
    SQL_JSON_MEMBER_NOT_FOUND = "2203A", "sql json member not found";
    SQL_JSON_NUMBER_NOT_FOUND = "2203B", "sql json number not found";
    SQL_JSON_OBJECT_NOT_FOUND = "2203C", "sql json object not found";
    TOO_MANY_JSON_ARRAY_ELEMENTS = "2203D", "too many json array elements";
    TOO_MANY_JSON_OBJECT_MEMBERS = "2203E", "too many json object members";
    SQL_JSON_SCALAR_REQUIRED = "2203F", "sql json scalar required";
    SQL_JSON_ITEM_CANNOT_BE_CAST_TO_TARGET_TYPE = "2203G", "sql json item cannot be cast to target type";
    // Class 23 - Integrity Constraint Violation
    INTEGRITY_CONSTRAINT_VIOLATION = "23000", "integrity constraint violation";
    RESTRICT_VIOLATION = "23001", "restrict violation";
    NOT_NULL_VIOLATION = "23502", "not null violation";
    FOREIGN_KEY_VIOLATION = "23503", "foreign key violation";
    UNIQUE_VIOLATION = "23505", "unique violation";
    CHECK_VIOLATION = "23514", "check violation";
    EXCLUSION_VIOLATION = "23P01", "exclusion violation";
    // Class 24 - Invalid Cursor State
    INVALID_CURSOR_STATE = "24000", "invalid cursor state";
    // Class 25 - Invalid Transaction State
    INVALID_TRANSACTION_STATE = "25000", "invalid transaction state";
    ACTIVE_SQL_TRANSACTION = "25001", "active sql transaction";
    BRANCH_TRANSACTION_ALREADY_ACTIVE = "25002", "branch transaction already active";
    HELD_CURSOR_REQUIRES_SAME_ISOLATION_LEVEL = "25008", "held cursor requires same isolation level";
    INAPPROPRIATE_ACCESS_MODE_FOR_BRANCH_TRANSACTION = "25003", "inappropriate access mode for branch transaction";
    INAPPROPRIATE_ISOLATION_LEVEL_FOR_BRANCH_TRANSACTION = "25004", "inappropriate isolation level for branch transaction";
    NO_ACTIVE_SQL_TRANSACTION_FOR_BRANCH_TRANSACTION = "25005", "no active sql transaction for branch transaction";
    READ_ONLY_SQL_TRANSACTION = "25006", "read only sql transaction";
    SCHEMA_AND_DATA_STATEMENT_MIXING_NOT_SUPPORTED = "25007", "schema and data statement mixing not supported";
    NO_ACTIVE_SQL_TRANSACTION = "25P01", "no active sql transaction";
    IN_FAILED_SQL_TRANSACTION = "25P02", "in failed sql transaction";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = "25P03", "idle in transaction session timeout";
    TRANSACTION_TIMEOUT = "25P04", "transaction timeout";
    // Class 26 - Invalid SQL Statement Name
    INVALID_SQL_STATEMENT_NAME = "26000", "invalid sql statement name";
    // Class 27 - Triggered Data Change Violation
    TRIGGERED_DATA_CHANGE_VIOLATION = "27000", "triggered data change violation";
    // Class 28 - Invalid Authorization Specification
    INVALID_AUTHORIZATION_SPECIFICATION = "28000", "invalid authorization specification";
    INVALID_PASSWORD = "28P01", "invalid password";
    // Class 2B - Dependent Privilege Descriptors Still Exist
    DEPENDENT_PRIVILEGE_DESCRIPTORS_STILL_EXIST = "2B000", "dependent privilege descriptors still exist";
    DEPENDENT_OBJECTS_STILL_EXIST = "2BP01", "dependent objects still exist";
    // Class 2D - Invalid Transaction Termination
    INVALID_TRANSACTION_TERMINATION = "2D000", "invalid transaction termination";
    // Class 2F - SQL Routine Exception
    SQL_ROUTINE_EXCEPTION = "2F000", "sql routine exception";
    S_R_E_FUNCTION_EXECUTED_NO_RETURN_STATEMENT = "2F005", "function executed no return statement";
    S_R_E_MODIFYING_SQL_DATA_NOT_PERMITTED = "2F002", "modifying sql data not permitted";
    S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED = "2F003", "prohibited sql statement attempted";
    S_R_E_READING_SQL_DATA_NOT_PERMITTED = "2F004", "reading sql data not permitted";
    // Class 34 - Invalid Cursor Name
    INVALID_CURSOR_NAME = "34000", "invalid cursor name";
    // Class 38 - External Routine Exception
    EXTERNAL_ROUTINE_EXCEPTION = "38000", "external routine exception";
    E_R_E_CONTAINING_SQL_NOT_PERMITTED = "38001", "containing sql not permitted";
    E_R_E_MODIFYING_SQL_DATA_NOT_PERMITTED = "38002", "modifying sql data not permitted";
    E_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED = "38003", "prohibited sql statement attempted";
    E_R_E_READING_SQL_DATA_NOT_PERMITTED = "38004", "reading sql data not permitted";
    // Class 39 - External Routine Invocation Exception
    EXTERNAL_ROUTINE_INVOCATION_EXCEPTION = "39000", "external routine invocation exception";
    E_R_I_E_INVALID_SQLSTATE_RETURNED = "39001", "invalid sqlstate returned";
    E_R_I_E_NULL_VALUE_NOT_ALLOWED = "39004", "null value not allowed";
    E_R_I_E_TRIGGER_PROTOCOL_VIOLATED = "39P01", "trigger protocol violated";
    E_R_I_E_SRF_PROTOCOL_VIOLATED = "39P02", "srf protocol violated";
    E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED = "39P03", "event trigger protocol violated";
    // Class 3B - Savepoint Exception
    SAVEPOINT_EXCEPTION = "3B000", "savepoint exception";
    S_E_INVALID_SPECIFICATION = "3B001", "invalid savepoint specification";
    // Class 3D - Invalid Catalog Name
    INVALID_CATALOG_NAME = "3D000", "invalid catalog name";
    // Class 3F - Invalid Schema Name
    INVALID_SCHEMA_NAME = "3F000", "invalid schema name";
    // Class 40 - Transaction Rollback
    TRANSACTION_ROLLBACK = "40000", "transaction rollback";
    T_R_INTEGRITY_CONSTRAINT_VIOLATION = "40002", "transaction integrity constraint violation";
    T_R_SERIALIZATION_FAILURE = "40001", "serialization failure";
    T_R_STATEMENT_COMPLETION_UNKNOWN = "40003", "statement completion unknown";
    T_R_DEADLOCK_DETECTED = "40P01", "deadlock detected";
    // Class 42 - Syntax Error or Access Rule Violation
    SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION = "42000", "syntax error or access rule violation";
    SYNTAX_ERROR = "42601", "syntax error";
    INSUFFICIENT_PRIVILEGE = "42501", "insufficient privilege";
    CANNOT_COERCE = "42846", "cannot coerce";
    GROUPING_ERROR = "42803", "grouping error";
    WINDOWING_ERROR = "42P20", "windowing error";
    INVALID_RECURSION = "42P19", "invalid recursion";
    INVALID_FOREIGN_KEY = "42830", "invalid foreign key";
    INVALID_NAME = "42602", "invalid name";
    NAME_TOO_LONG = "42622", "name too long";
    RESERVED_NAME = "42939", "reserved name";
    DATATYPE_MISMATCH = "42804", "datatype mismatch";
    INDETERMINATE_DATATYPE = "42P18", "indeterminate datatype";
    COLLATION_MISMATCH = "42P21", "collation mismatch";
    INDETERMINATE_COLLATION = "42P22", "indeterminate collation";
    WRONG_OBJECT_TYPE = "42809", "wrong object type";
    GENERATED_ALWAYS = "428C9", "generated always";
    UNDEFINED_COLUMN = "42703", "undefined column";
    UNDEFINED_FUNCTION = "42883", "undefined function";
    UNDEFINED_TABLE = "42P01", "undefined table";
    UNDEFINED_PARAMETER = "42P02", "undefined parameter";
    UNDEFINED_OBJECT = "42704", "undefined object";
    DUPLICATE_COLUMN = "42701", "duplicate column";
    DUPLICATE_CURSOR = "42P03", "duplicate cursor";
    DUPLICATE_DATABASE = "42P04", "duplicate database";
    DUPLICATE_FUNCTION = "42723", "duplicate function";
    DUPLICATE_PSTATEMENT = "42P05", "duplicate prepared statement";
    DUPLICATE_SCHEMA = "42P06", "duplicate schema";
    DUPLICATE_TABLE = "42P07", "duplicate table";
    DUPLICATE_ALIAS = "42712", "duplicate alias";
    DUPLICATE_OBJECT = "42710", "duplicate object";
    AMBIGUOUS_COLUMN = "42702", "ambiguous column";
    AMBIGUOUS_FUNCTION = "42725", "ambiguous function";
    AMBIGUOUS_PARAMETER = "42P08", "ambiguous parameter";
    AMBIGUOUS_ALIAS = "42P09", "ambiguous alias";
    INVALID_COLUMN_REFERENCE = "42P10", "invalid column reference";
    INVALID_COLUMN_DEFINITION = "42611", "invalid column definition";
    INVALID_CURSOR_DEFINITION = "42P11", "invalid cursor definition";
    INVALID_DATABASE_DEFINITION = "42P12", "invalid database definition";
    INVALID_FUNCTION_DEFINITION = "42P13", "invalid function definition";
    INVALID_PSTATEMENT_DEFINITION = "42P14", "invalid prepared statement definition";
    INVALID_SCHEMA_DEFINITION = "42P15", "invalid schema definition";
    INVALID_TABLE_DEFINITION = "42P16", "invalid table definition";
    INVALID_OBJECT_DEFINITION = "42P17", "invalid object definition";
    // Class 44 - WITH CHECK OPTION Violation
    WITH_CHECK_OPTION_VIOLATION = "44000", "with check option violation";
    // Class 53 - Insufficient Resources
    INSUFFICIENT_RESOURCES = "53000", "insufficient resources";
    DISK_FULL = "53100", "disk full";
    OUT_OF_MEMORY = "53200", "out of memory";
    TOO_MANY_CONNECTIONS = "53300", "too many connections";
    CONFIGURATION_LIMIT_EXCEEDED = "53400", "configuration limit exceeded";
    // Class 54 - Program Limit Exceeded
    PROGRAM_LIMIT_EXCEEDED = "54000", "program limit exceeded";
    STATEMENT_TOO_COMPLEX = "54001", "statement too complex";
    TOO_MANY_COLUMNS = "54011", "too many columns";
    TOO_MANY_ARGUMENTS = "54023", "too many arguments";
    // Class 55 - Object Not In Prerequisite State
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000", "object not in prerequisite state";
    OBJECT_IN_USE = "55006", "object in use";
    CANT_CHANGE_RUNTIME_PARAM = "55P02", "cant change runtime param";
    LOCK_NOT_AVAILABLE = "55P03", "lock not available";
    UNSAFE_NEW_ENUM_VALUE_USAGE = "55P04", "unsafe new enum value usage";
    // Class 57 - Operator Intervention
    OPERATOR_INTERVENTION = "57000", "operator intervention";
    QUERY_CANCELED = "57014", "query canceled";
    ADMIN_SHUTDOWN = "57P01", "admin shutdown";
    CRASH_SHUTDOWN = "57P02", "crash shutdown";
    CANNOT_CONNECT_NOW = "57P03", "cannot connect now";
    DATABASE_DROPPED = "57P04", "database dropped";
    IDLE_SESSION_TIMEOUT = "57P05", "idle session timeout";
    // Class 58 - System Error (errors external to PostgreSQL itself)
    SYSTEM_ERROR = "58000", "system error";
    IO_ERROR = "58030", "io error";
    UNDEFINED_FILE = "58P01", "undefined file";
    DUPLICATE_FILE = "58P02", "duplicate file";
    FILE_NAME_TOO_LONG = "58P03", "file name too long";
    // Class 72 - Snapshot Failure (up to Postgres 16)
    SNAPSHOT_TOO_OLD = "72000", "snapshot too old";
    // Class F0 - Configuration File Error
    CONFIG_FILE_ERROR = "F0000", "config file error";
    LOCK_FILE_EXISTS = "F0001", "lock file exists";
    // Class HV - Foreign Data Wrapper Error (SQL/MED)
    FDW_ERROR = "HV000", "fdw error";
    FDW_COLUMN_NAME_NOT_FOUND = "HV005", "fdw column name not found";
    FDW_DYNAMIC_PARAMETER_VALUE_NEEDED = "HV002", "fdw dynamic parameter value needed";
    FDW_FUNCTION_SEQUENCE_ERROR = "HV010", "fdw function sequence error";
    FDW_INCONSISTENT_DESCRIPTOR_INFORMATION = "HV021", "fdw inconsistent descriptor information";
    FDW_INVALID_ATTRIBUTE_VALUE = "HV024", "fdw invalid attribute value";
    FDW_INVALID_COLUMN_NAME = "HV007", "fdw invalid column name";
    FDW_INVALID_COLUMN_NUMBER = "HV008", "fdw invalid column number";
    FDW_INVALID_DATA_TYPE = "HV004", "fdw invalid data type";
    FDW_INVALID_DATA_TYPE_DESCRIPTORS = "HV006", "fdw invalid data type descriptors";
    FDW_INVALID_DESCRIPTOR_FIELD_IDENTIFIER = "HV091", "fdw invalid descriptor field identifier";
    FDW_INVALID_HANDLE = "HV00B", "fdw invalid handle";
    FDW_INVALID_OPTION_INDEX = "HV00C", "fdw invalid option index";
    FDW_INVALID_OPTION_NAME = "HV00D", "fdw invalid option name";
    FDW_INVALID_STRING_LENGTH_OR_BUFFER_LENGTH = "HV090", "fdw invalid string length or buffer length";
    FDW_INVALID_STRING_FORMAT = "HV00A", "fdw invalid string format";
    FDW_INVALID_USE_OF_NULL_POINTER = "HV009", "fdw invalid use of null pointer";
    FDW_TOO_MANY_HANDLES = "HV014", "fdw too many handles";
    FDW_OUT_OF_MEMORY = "HV001", "fdw out of memory";
    FDW_NO_SCHEMAS = "HV00P", "fdw no schemas";
    FDW_OPTION_NAME_NOT_FOUND = "HV00J", "fdw option name not found";
    FDW_REPLY_HANDLE = "HV00K", "fdw reply handle";
    FDW_SCHEMA_NOT_FOUND = "HV00Q", "fdw schema not found";
    FDW_TABLE_NOT_FOUND = "HV00R", "fdw table not found";
    FDW_UNABLE_TO_CREATE_EXECUTION = "HV00L", "fdw unable to create execution";
    FDW_UNABLE_TO_CREATE_REPLY = "HV00M", "fdw unable to create reply";
    FDW_UNABLE_TO_ESTABLISH_CONNECTION = "HV00N", "fdw unable to establish connection";
    // Class P0 - PL/pgSQL Error
    PLPGSQL_ERROR = "P0000", "plpgsql error";
    RAISE_EXCEPTION = "P0001", "raise exception";
    NO_DATA_FOUND = "P0002", "no data found";
    TOO_MANY_ROWS = "P0003", "too many rows";
    ASSERT_FAILURE = "P0004", "assert failure";
    // Class XX - Internal Error
    INTERNAL_ERROR = "XX000", "internal error";
    DATA_CORRUPTED = "XX001", "data corrupted";
    INDEX_CORRUPTED = "XX002", "index corrupted";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_code_accepts_five_digits_or_uppercase_letters() {
        for bad in ["", "4000", "400011", "40p01", "4000\u{e9}", "40 01"] {
            assert_eq!(SqlState::from_code(bad), None, "{bad:?}");
        }
        let state = SqlState::from_code("40P01").unwrap();
        assert_eq!((state.code(), state.class()), ("40P01", "40"));
        assert_eq!(state, T_R_DEADLOCK_DETECTED);
    }
}
